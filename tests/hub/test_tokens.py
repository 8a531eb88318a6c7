"""Which token is used, where others are stored, and how one is saved."""

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
    """As `hf auth login` leaves it."""
    path = Path(constants.HF_TOKEN_PATH)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")
    return path


def source_and_value(given: Secret | None) -> tuple[str, str]:
    found = find_token(given)
    assert found is not None
    return found.source, found.secret.reveal()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- which -------------------------------------------------------------------------------------------------------------


def test_the_given_token_comes_before_the_variables_and_those_before_the_login(
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


def test_other_places_are_named_where_they_hold_another_token(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_can_be_no_token_is_refused_unseen(value: str) -> None:
    with pytest.raises(AccessError, match="is not a token") as refused:
        find_token(Secret(value))
    assert value not in str(refused.value)


def test_a_login_that_cannot_be_read_is_an_access_error(fake: FakeHub) -> None:
    Path(constants.HF_TOKEN_PATH).mkdir(parents=True)
    with pytest.raises(AccessError, match="is unusable"):
        find_token(None)


def test_the_doctor_says_where_a_token_would_come_from_and_does_not_show_it(
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


def test_a_token_file_that_is_ours_alone_is_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{CANARY}  \nand more\n")
    path.chmod(0o600)
    assert read_token_file(str(path)).reveal() == CANARY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o601])
def test_a_token_file_that_others_reach_is_refused_with_the_mend(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text(CANARY)
    path.chmod(mode)
    with pytest.raises(UnsafeError, match=f"mode {mode:04o}") as refused:
        read_token_file(str(path))
    assert refused.value.what_to_do == f"chmod 600 {path}" and CANARY not in str(refused.value)


def test_a_token_file_that_is_not_text_shows_nothing_of_itself(tmp_path: Path) -> None:
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
def test_a_token_file_of_another_user_says_whose_it_is() -> None:
    with TemporaryDirectory() as folder:  # pytest's own cannot be entered by others
        Path(folder).chmod(0o755)
        path = Path(folder) / "token"
        path.write_text(CANARY)
        path.chmod(0o600)
        # In a process of its own: a fork of this one, if anything fails in it, would go on with the tests.
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, str(path)], capture_output=True, text=True)
    assert done.stdout.startswith("AccessError"), done.stderr
    assert "It belongs to root, and this process runs as" in done.stdout and CANARY not in done.stdout


# -- kept on request ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("B12")
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_stored_token_is_ours_alone_whatever_the_umask_and_the_hubs_client_finds_it(
    fake: FakeHub, umask: Callable[[int], int], mask: int
) -> None:
    umask(mask)
    place = store_token(Secret(CANARY))
    assert umask(mask) == mask, "the process's umask is as it was"
    home = place.parent
    assert {path.name: oct(mode_of(path)) for path in home.iterdir()} == {"token": "0o600", "stored_tokens": "0o600"}
    assert mode_of(home) == 0o700
    assert huggingface_hub.get_token() == CANARY
    assert source_and_value(None) == (f"the login stored in {place}", CANARY)


def test_files_that_were_open_to_others_are_closed_before_the_token_is_in_them(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = log_in("hf_older")
    stored.chmod(0o666)
    stored.parent.chmod(0o777)
    write, modes = _login._write_secret, []

    def look_and_write(path: Path, content: str) -> None:
        modes.append(mode_of(path))
        write(path, content)

    monkeypatch.setattr(_login, "_write_secret", look_and_write)
    assert store_token(Secret(CANARY)) == stored
    assert modes == [0o600]
    assert (mode_of(stored), mode_of(stored.parent)) == (0o600, 0o700)


def test_no_git_credential_helper_hears_of_it(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = tmp_path / "heard"
    helper = tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\ncat >> {heard}\n")
    helper.chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text(f"[credential]\n\thelper = {helper}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = config.read_text()
    store_token(Secret(CANARY))
    assert not heard.exists() and config.read_text() == before
    assert sorted(path.name for path in (tmp_path / "home").rglob("*")) == ["stored_tokens", "token"]


def test_a_folder_that_is_shared_is_not_made_ours(fake: FakeHub) -> None:
    folder = Path(constants.HF_TOKEN_PATH).parent
    folder.mkdir(parents=True)
    folder.chmod(0o1777)
    with pytest.raises(UnsafeError, match="Cannot store the token"):
        store_token(Secret(CANARY))
    assert mode_of(folder) == 0o1777 and list(folder.iterdir()) == []


def test_a_token_that_is_refused_is_not_stored(fake: FakeHub) -> None:
    fake.refused = {CANARY}
    with pytest.raises(AccessError, match="rejected the token"):
        store_token(Secret(CANARY))
    assert not Path(constants.HF_TOKEN_PATH).exists()


def test_a_place_that_cannot_be_written_says_so(fake: FakeHub) -> None:
    Path(constants.HF_TOKEN_PATH).parent.parent.mkdir(exist_ok=True)
    Path(constants.HF_TOKEN_PATH).parent.write_text("a file in the way")
    with pytest.raises(DiskError, match="Cannot store the token"):
        store_token(Secret(CANARY))


def test_a_name_of_the_token_that_the_store_cannot_hold_is_not_a_crash(fake: FakeHub) -> None:
    fake.auth = {"accessToken": {"role": "read", "displayName": "DEFAULT"}}
    with pytest.raises(DiskError, match="Cannot store the token"):
        store_token(Secret(CANARY))
