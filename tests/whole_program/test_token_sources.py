"""How a token reaches a run, and where it must never appear: on a command line, in a child, in the run folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.test_moods import BASE, DATA, assert_no_token, auto
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.hub_in_process import CANARY
from tests.tui.test_cli import stage3


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with fake_hub() as server:
        server.repos = {BASE: "members", DATA: "ok"}
        yield server


def test_standard_input_and_a_file_take_precedence_over_the_variable(fake: FakeHub, tmp_path: Path) -> None:
    fake.refused = {"hf_OfTheVariable"}
    environment = {"HF_TOKEN": "hf_OfTheVariable"}
    done = auto(fake, tmp_path, environment, "--token-stdin", stdin=f"{CANARY}\n")
    assert done.returncode == 0, done.stderr
    assert "HF_TOKEN holds a different token from the one in use" in done.stdout
    file = tmp_path / "token"
    file.write_text(CANARY)
    file.chmod(0o640)
    refused = auto(fake, tmp_path, environment, "--token-file", str(file))
    assert refused.returncode == 12 and f"chmod 600 {file}" in refused.stderr
    file.chmod(0o600)
    done = auto(fake, tmp_path, environment, "--token-file", str(file))
    assert done.returncode == 0, done.stderr
    assert {request.authorization for request in fake.requests} == {f"Bearer {CANARY}"}
    assert_no_token(tmp_path / "run", done)


def test_the_hubs_own_login_is_used_and_named(fake: FakeHub, tmp_path: Path) -> None:
    stored = tmp_path / "home/token"
    stored.parent.mkdir()
    stored.write_text(CANARY)
    done = auto(fake, tmp_path, {}, "--verbose")
    assert done.returncode == 0 and f"the login stored in {stored}" in done.stdout
    assert_no_token(tmp_path / "run", done)


def test_a_browser_login_can_be_started_from_the_command_line(fake: FakeHub, tmp_path: Path) -> None:
    fake.login_interval = 0.05
    assert auto(fake, tmp_path, {}).returncode == 4
    assert "/oauth/device" not in fake.paths()
    done = auto(fake, tmp_path, {}, "--device-login")
    assert done.returncode == 0, done.stderr
    assert f"open {fake.endpoint}/device in any browser, and enter the code ABCD-1234" in done.stdout
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hf_oauth_" not in path.read_bytes(), path


@pytest.mark.parametrize("options", [["--token", CANARY], [f"--token={CANARY}"], [f"--hf-token={CANARY}"]])
def test_no_option_takes_a_token_and_the_error_does_not_repeat_it(options: list[str], tmp_path: Path) -> None:
    done = stage3("--auto", *options, cwd=tmp_path)
    assert done.returncode == 2 and CANARY not in done.stdout + done.stderr


def test_the_error_for_an_unknown_variable_does_not_show_its_value(tmp_path: Path) -> None:
    done = stage3("--auto", cwd=tmp_path, STAGE3_TOKEN=CANARY)
    assert done.returncode == 2 and CANARY not in done.stdout + done.stderr


SPY = """#!/bin/sh
{ echo "$0 $*"; env; } >> SEEN
echo "spy 9.9.9"
"""


def test_no_child_of_a_run_receives_the_token(fake: FakeHub, tmp_path: Path) -> None:
    """Stand-ins for git, uv and similar programs record their command line and environment."""
    tools, seen = tmp_path / "tools", tmp_path / "seen"
    tools.mkdir()
    for name in ("git", "uv", "tmux", "nvidia-smi"):
        (tools / name).write_text(SPY.replace("SEEN", str(seen)))
        (tools / name).chmod(0o755)
    secrets = {"HF_TOKEN": CANARY, "HUGGING_FACE_HUB_TOKEN": CANARY, "STAGE3_SERVER_TOKEN": CANARY}
    done = auto(fake, tmp_path, {**secrets, "PATH": f"{tools}:/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    text = seen.read_text()
    assert f"{tools}/git" in text and f"PATH={tools}" in text
    assert CANARY not in text
    assert_no_token(tmp_path, done)
