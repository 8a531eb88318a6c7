"""Which token is used, where other tokens are, and how a token is stored."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub
import pytest
from huggingface_hub import _login, constants

from engine.core.errors import AccessError, DiskError, UnsafeError
from engine.hub import FoundToken, find_token, other_sources, store_token
from engine.hub.token_file import read_token_file
from engine.pipeline.doctor import token_check
from engine.security.secrets import Secret
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.hub_in_process import CANARY, use


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as server:
        use(server, monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def log_in(value: str) -> Path:
    """Store a token as `hf auth login` does."""
    path = Path(constants.HF_TOKEN_PATH)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")
    return path


def source_and_value(passed: Secret | None) -> tuple[str, str]:
    found = find_token(passed)
    assert found is not None
    return found.source, found.secret.reveal()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- which -------------------------------------------------------------------------------------------------------------


def test_a_passed_token_precedes_the_variables_and_those_precede_the_login(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_token(None) is None
    stored = log_in("hf_stored")
    assert source_and_value(None) == (f"the login stored in {stored}", "hf_stored")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_old")
    assert source_and_value(None) == ("the variable HUGGING_FACE_HUB_TOKEN", "hf_old")
    monkeypatch.setenv("HF_TOKEN", " hf_variable\n")
    assert source_and_value(None) == ("the variable HF_TOKEN", "hf_variable")
    assert source_and_value(Secret("'hf_given'")) == ("passed to this run", "hf_given")
    assert fake.requests == []


def test_sources_of_other_tokens_are_named(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = log_in("hf_stored")
    monkeypatch.setenv("HF_TOKEN", "hf_variable")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_variable")
    used = find_token(None)
    assert used is not None and other_sources(used) == (f"the login stored in {stored}",)
    assert other_sources(FoundToken(Secret("hf_given"), "")) == (
        "the variable HF_TOKEN", "the variable HUGGING_FACE_HUB_TOKEN", f"the login stored in {stored}",
    )  # fmt: skip


@pytest.mark.fault("G10")
@pytest.mark.parametrize("value", ["hf_a b", "hf_ü", "hf_a\nhf_b", "''"])
def test_an_impossible_token_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(AccessError, match="is not a token") as refused:
        find_token(Secret(value))
    assert value not in str(refused.value)


def test_an_unreadable_login_is_an_access_error(fake: FakeHub) -> None:
    Path(constants.HF_TOKEN_PATH).mkdir(parents=True)
    with pytest.raises(AccessError, match="is unusable"):
        find_token(None)


def test_the_doctor_names_the_source_of_the_token_and_does_not_show_it(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert token_check().status == "skipped"
    stored = log_in(CANARY)
    assert token_check().detail.startswith(f"the login stored in {stored}")
    monkeypatch.setenv("HF_TOKEN", f"{CANARY}2")
    check = token_check()
    assert check.status == "ok" and check.detail.startswith("the variable HF_TOKEN")
    assert f"another is in the login stored in {stored}" in check.detail and "Canary" not in check.detail
    monkeypatch.setenv("HF_TOKEN", "hf_a b")
    assert token_check().status == "failed"
    assert fake.requests == []


# -- from a file -------------------------------------------------------------------------------------------------------


def test_a_token_file_that_only_we_can_read_is_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{CANARY}  \nand more\n")
    path.chmod(0o600)
    assert read_token_file(str(path)).reveal() == CANARY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o601])
def test_a_token_file_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text(CANARY)
    path.chmod(mode)
    with pytest.raises(UnsafeError, match=f"mode {mode:04o}") as refused:
        read_token_file(str(path))
    assert refused.value.what_to_do == f"Run `chmod 600 {path}`." and CANARY not in str(refused.value)


def test_the_error_for_a_binary_token_file_does_not_quote_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"hf_abc\xff\xfe")
    path.chmod(0o600)
    with pytest.raises(AccessError, match="is not a text file") as refused:
        read_token_file(str(path))
    assert "hf_abc" not in str(refused.value) and refused.value.__cause__ is None


AS_NOBODY = """
import os, sys
from engine.hub.token_file import read_token_file
os.setgid(65534); os.setuid(65534)
try:
    read_token_file(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_error_for_a_token_file_of_another_user_names_its_owner() -> None:
    with TemporaryDirectory() as folder:  # pytest's own cannot be entered by others
        Path(folder).chmod(0o755)
        path = Path(folder) / "token"
        path.write_text(CANARY)
        path.chmod(0o600)
        # In a new process: a fork of this one would continue the tests if anything in it failed.
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, str(path)], capture_output=True, text=True)
    assert done.stdout.startswith("AccessError"), done.stderr
    assert "It belongs to root, and this process runs as" in done.stdout and CANARY not in done.stdout


# -- stored on request -------------------------------------------------------------------------------------------------


@pytest.mark.fault("B12")
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_only_we_can_read_a_stored_token_whatever_the_umask_and_the_hubs_client_finds_it(
    fake: FakeHub, umask: Callable[[int], int], mask: int
) -> None:
    umask(mask)
    place = store_token(Secret(CANARY))
    assert umask(mask) == mask, "the process's umask has changed"
    home = place.parent
    assert {path.name: oct(mode_of(path)) for path in home.iterdir()} == {"token": "0o600", "stored_tokens": "0o600"}
    assert mode_of(home) == 0o700
    assert huggingface_hub.get_token() == CANARY
    assert source_and_value(None) == (f"the login stored in {place}", CANARY)


def test_files_that_others_could_read_are_protected_before_the_token_is_written(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = log_in("hf_older")
    stored.chmod(0o666)
    stored.parent.chmod(0o777)
    write, modes = _login._write_secret, []

    def record_mode_and_write(path: Path, content: str) -> None:
        modes.append(mode_of(path))
        write(path, content)

    monkeypatch.setattr(_login, "_write_secret", record_mode_and_write)
    assert store_token(Secret(CANARY)) == stored
    assert modes == [0o600]
    assert (mode_of(stored), mode_of(stored.parent)) == (0o600, 0o700)


def test_no_git_credential_helper_is_called(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received = tmp_path / "received"
    helper = tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\ncat >> {received}\n")
    helper.chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text(f"[credential]\n\thelper = {helper}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = config.read_text()
    store_token(Secret(CANARY))
    assert not received.exists() and config.read_text() == before
    assert sorted(path.name for path in (tmp_path / "home").rglob("*")) == ["stored_tokens", "token"]


def test_the_mode_of_a_shared_folder_is_not_changed(fake: FakeHub) -> None:
    folder = Path(constants.HF_TOKEN_PATH).parent
    folder.mkdir(parents=True)
    folder.chmod(0o1777)
    with pytest.raises(UnsafeError, match="Cannot store the token"):
        store_token(Secret(CANARY))
    assert mode_of(folder) == 0o1777 and list(folder.iterdir()) == []


def test_a_rejected_token_is_not_stored(fake: FakeHub) -> None:
    fake.refused = {CANARY}
    with pytest.raises(AccessError, match="rejected the token"):
        store_token(Secret(CANARY))
    assert not Path(constants.HF_TOKEN_PATH).exists()


def test_an_unwritable_store_is_a_disk_error(fake: FakeHub) -> None:
    Path(constants.HF_TOKEN_PATH).parent.parent.mkdir(exist_ok=True)
    Path(constants.HF_TOKEN_PATH).parent.write_text("a file in the way")
    with pytest.raises(DiskError, match="Cannot store the token"):
        store_token(Secret(CANARY))


def test_a_token_name_that_the_store_cannot_save_is_a_disk_error(fake: FakeHub) -> None:
    fake.auth = {"accessToken": {"role": "read", "displayName": "DEFAULT"}}
    with pytest.raises(DiskError, match="Cannot store the token"):
        store_token(Secret(CANARY))
