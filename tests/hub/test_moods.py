"""Every mood of the Hub, through the stage and through `stage3-tui --auto`: the exit code and the three parts of the error."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.core.config import load_config
from engine.core.errors import Stage3Error
from engine.hub import TOKENS_PAGE
from engine.run.context import Context
from engine.run.folder import Run
from engine.stages import credentials
from tests.conftest import run_stage
from tests.support.fake_hub import FakeHub, Mood, fake_hub
from tests.support.hub_in_process import CANARY, use

ROOT = Path(__file__).parents[2]
BASE, DATA = "google/gemma-2b-it", "Anthropic/hh-rlhf"
PAGE = f"{{hub}}/{BASE}"
"""The base model's page on the fake Hub."""


@dataclass(frozen=True)
class Case:
    name: str
    code: int
    what: str
    why: str
    to_do: str
    account: Mood = "ok"
    base: Mood | dict[str, Mood] = "ok"
    token: bool = True


CASES = (
    Case("all is well", 0, "", "", ""),
    Case("public, and no token", 0, "", "", "", token=False),
    Case("wrong token", 4, "rejected the token (the variable HF_TOKEN) (401)", "revoked", TOKENS_PAGE, account="401"),
    Case("a login page", 5, "is not from the Hub", "proxy", "HTTPS_PROXY", account="portal"),
    Case("cut in the middle", 5, "was interrupted", "incomplete|peer closed", "same command", account="short"),
    Case("gated, and no token", 4, "without a token, and none was found", "gated", PAGE, base="gated", token=False),
    Case("licence not accepted", 4, "has not accepted its licence", "not in the authorized list", PAGE, base="gated"),
    Case("not yet granted", 4, "is still pending", "awaiting a review", PAGE, base="awaiting"),
    Case("fine-grained without the box", 4, "fine-grained token", "Please enable", TOKENS_PAGE, base="fine-grained"),
    Case("no permission", 4, "No access to", "You have no ␛", PAGE, base="403"),
    Case("missing", 4, "does not exist or is private", "404", PAGE, base="404"),
    Case("private", 4, "does not exist or is private", "401", PAGE, base="private"),
    Case("no such revision", 2, "no branch, tag or commit main", "Invalid rev", PAGE, base={"info": "no revision"}),
    Case("too many requests", 5, "429: too many requests", "limit", "in 3600 s", base="429"),
    Case("temporarily unavailable", 5, "503", "on its side", "status.huggingface.co", base="503"),
    Case("hangs", 5, "does not respond", "No data for", "HF_HUB_DOWNLOAD_TIMEOUT", base="hang"),
    Case("renamed", 0, "", "", "", base="redirect"),
    Case("redirected to another host", 0, "", "", "", base="redirect elsewhere"),
    Case(
        "account at another host", 5, "redirects to", "only to the host", "HF_ENDPOINT=", account="redirect elsewhere"
    ),
)
BY_NAME = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with fake_hub() as server:
        yield server


def put_in_mood(fake: FakeHub, case: Case) -> None:
    fake.account = case.account
    fake.repos = {BASE: case.base, DATA: "ok"}


def assert_error(case: Case, hub: FakeHub, what: str, why: str, to_do: str) -> None:
    assert case.what in what
    assert any(part in why for part in case.why.split("|"))
    assert case.to_do.format(hub=hub.endpoint) in to_do


@BY_NAME
def test_the_stage_raises_what_why_and_what_to_do(
    case: Case, fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(fake, monkeypatch, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    put_in_mood(fake, case)
    if case.token:
        monkeypatch.setenv("HF_TOKEN", CANARY)
    context = Context(load_config(environment={}), Run(tmp_path / "run"))
    stage = credentials.run(context)
    if case.code == 0:
        events, result = run_stage(stage)
        assert result.facts["reads"] == (BASE, DATA)
        assert (context.token is not None) == case.token
    else:
        events = []
        with pytest.raises(Stage3Error) as failed:
            for event in stage:
                events.append(event)
        assert failed.value.exit_code == case.code
        assert_error(case, fake, failed.value.what, failed.value.why, failed.value.what_to_do)
        assert CANARY not in str(failed.value)
    assert CANARY not in str(events)
    assert all(CANARY not in request.authorization for request in fake.elsewhere)


@pytest.mark.fault("F1")
@BY_NAME
def test_auto_exits_with_the_code_and_prints_the_same(case: Case, fake: FakeHub, tmp_path: Path) -> None:
    put_in_mood(fake, case)
    done = auto(fake, tmp_path, {"HF_TOKEN": CANARY} if case.token else {})
    assert done.returncode == case.code, done.stderr
    error = json.loads((tmp_path / "run/run.json").read_text())["error"]
    if case.code:
        assert_error(case, fake, error["what"], error["why"], error["what_to_do"])
        printed = dict(line.split(":", 1) for line in done.stderr.splitlines())
        assert_error(case, fake, printed["failed"], printed["why"], printed["next"])
        assert (error["stage"], error["exit_code"]) == ("credentials", case.code)
    else:
        assert error is None and done.stderr == ""
    assert_no_token(tmp_path / "run", done)


def auto(
    fake: FakeHub, folder: Path, environment: dict[str, str], *options: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """`stage3-tui --auto --until credentials` against `fake`, with its own home folder."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "STAGE3_"))}
    env = {
        **ours,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": fake.endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_ETAG_TIMEOUT": "1",
        **environment,
    }
    command = [sys.executable, "-m", "tui.cli", "--auto", "--until", "credentials", "--output-dir", str(folder / "run")]
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, cwd=folder, env=env, input=stdin, timeout=120
    )


def assert_no_token(folder: Path, done: subprocess.CompletedProcess[str] | None = None) -> None:
    """No file contains the canary, be it plain, reversed, as UTF-16 or in base64."""
    token = CANARY.encode()
    forms = (token, token[::-1], CANARY.encode("utf-16-le"), base64.b64encode(token))
    for path in folder.rglob("*"):
        if path.is_file():
            assert not any(form in path.read_bytes() for form in forms), path
    if done is not None:
        assert CANARY not in done.stdout + done.stderr
