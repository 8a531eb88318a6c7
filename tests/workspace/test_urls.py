"""Which URLs may be cloned: a table of hostile ones, and one of accepted ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.core.errors import PreconditionError, UnsafeError
from engine.workspace.clone import target_of
from engine.workspace.lfs import lfs_address
from engine.workspace.urls import Source, check_ref, check_url
from tests.support.git_repositories import context

HOSTILE = [
    "",
    "ext::sh -c touch% /tmp/pwned",
    "ext::sh",
    "fd::17",
    "transport::https://example.org/a.git",
    "--upload-pack=touch pwned",
    "-u",
    "-oProxyCommand=x",
    "http://example.org/a.git",
    "git://example.org/a.git",
    "ftp://example.org/a.git",
    "file:///etc",
    "file://user:hf_secret@host/etc",
    "https://user:hf_secret@example.org/a.git",
    "https://hf_secret@example.org/a.git",
    "https://@example.org/a.git",
    "https://user:hf_sec@ret@example.org/a.git",
    "https://example.org/a.git?private_token=hf_secret",
    "https://example.org/a.git#hf_secret",
    "https:///nohost",
    "https://exämple.org/a.git",
    "https://example.org:port/a.git",
    "https://-example.org/a.git",
    "https://example.org/a b",
    "https://example.org/a\nb",
    "https://example.org/a\tb",
    "https://example.org/a\\b",
    "https://example.org/\x1b]52;c;x\x07",
    "https://example.org/\u202egit",
    "https://example.org/a\x00",
    "https://[broken/a",
    "HTTPS+ext://example.org/a",
]
SSH = [
    "ssh://git@example.org/a.git",
    "ssh://example.org:2222/a.git",
    "git@example.org:a.git",
    "example.org:owner/a.git",
]
HOSTILE_WITH_SSH = [
    "ssh://-oProxyCommand=touch/a.git",
    "ssh://user:hf_secret@example.org/a.git",
    "ssh://-l@example.org/a.git",
    "ssh:///nohost",
    "git+ssh://example.org/a.git",
    "-oProxyCommand=touch:a.git",
    "user@-oProxyCommand=touch:a.git",
    "-l@example.org:a.git",
    "user:hf_secret@example.org:a.git",
    "example.org:",
    "example.org:-u",
    "@example.org:a.git",
    "exa mple.org:a.git",
]


@pytest.mark.parametrize("url", HOSTILE + SSH)
def test_an_address_that_could_run_code_contains_a_password_or_uses_keys_is_refused(url: str) -> None:
    with pytest.raises(UnsafeError) as refused:
        check_url(url)
    assert refused.value.exit_code == 12
    assert not [part for part in ("hf_sec", "\x1b", "\n", "\u202e", "\x00") if part in str(refused.value)]


@pytest.mark.parametrize("url", HOSTILE + HOSTILE_WITH_SSH)
def test_a_hostile_address_is_refused_with_ssh_allowed_too(url: str) -> None:
    with pytest.raises(UnsafeError) as refused:
        check_url(url, allow_ssh=True)
    assert "hf_sec" not in str(refused.value)


@pytest.mark.parametrize("url", SSH)
def test_an_ssh_address_needs_the_option_which_the_error_names(url: str) -> None:
    assert check_url(url, allow_ssh=True) == Source(url, "ssh")
    with pytest.raises(UnsafeError) as refused:
        check_url(url)
    assert "--allow-ssh" in refused.value.what_to_do


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://github.com/owner/some-repo.git", "some-repo"),
        ("https://example.org:8443/owner/repo/", "repo"),
        ("https://[::1]/owner/repo", "repo"),
        ("git@example.org:repo.git", "repo"),
        ("https://example.org/..", "repository"),
        ("https://example.org/%2e%2e", "_2e_2e"),
    ],
)
def test_a_clone_is_named_after_its_address(url: str, name: str) -> None:
    assert check_url(url, allow_ssh=True).name == name


def test_a_path_must_be_an_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a repo").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert check_url("a repo") == check_url(str(tmp_path / "a repo")) == Source(str(tmp_path / "a repo"), "path")
    for url in ("file", "nowhere", "./nowhere", "no/where"):
        with pytest.raises(PreconditionError, match="is not a folder"):
            check_url(url)


def test_an_existing_path_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "host:repo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert check_url("host:repo").kind == "path"


@pytest.mark.parametrize(
    "ref", ["--upload-pack=x", "", "a b", "main:evil", "a..b", "HEAD@{1}", "a\x1bb", "a\u202eb", "main^", "x~1", "ma*n"]
)
def test_an_invalid_ref_is_refused(ref: str) -> None:
    with pytest.raises(UnsafeError, match="--repo-ref") as refused:
        check_ref(ref)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("ref", ["main", "feature/some.thing-1", "v1.0", "0123abc", "HEAD"])
def test_a_valid_ref_is_accepted(ref: str) -> None:
    assert check_ref(ref) == ref


def test_the_lfs_server_follows_from_the_address() -> None:
    assert lfs_address(Source("https://h/o/r", "https")) == "https://h/o/r.git/info/lfs"
    assert lfs_address(Source("https://h/o/r.git/", "https")) == "https://h/o/r.git/info/lfs"
    assert lfs_address(Source("/here/r", "path")) == "file:///here/r"
    assert lfs_address(Source("git@h:r.git", "ssh")) == "git@h:r.git"


def test_a_link_as_the_target_is_not_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    source = Source("https://h/o/r.git", "https")
    assert target_of(context(tmp_path, repo_root="link").config, source) == tmp_path / "link"
    assert target_of(context(tmp_path).config, source) == tmp_path / "r"
