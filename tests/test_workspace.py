"""Stage 1 on real git repositories: a fresh clone, folders in the way, hostile addresses, room on the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from engine.config import load_config
from engine.context import Context
from engine.errors import ConfigError, PreconditionError, UnsafeError
from engine.events import Check, Event
from engine.run import Run
from engine.stages import workspace
from engine.stages.base import StageResult
from engine.stages.workspace import check_url


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main")
    return subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A repository with two commits on main, a tag on the first, and a symbolic link."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "readme").write_text("first")
    (folder / "link").symlink_to("/etc/passwd")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    git(folder, "tag", "-a", "v1", "-m", "v1")
    (folder / "readme").write_text("second")
    git(folder, "commit", "-qam", "second")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def context(tmp_path: Path, **options: Any) -> Context:
    options = {"base_model_id": str(tmp_path), **options}
    return Context(config=load_config(options, environment={}), run=Run(tmp_path / "run"))


def drive(context: Context) -> tuple[StageResult, list[Event]]:
    """Run the stage, and record its facts as the pipeline does."""
    events: list[Event] = []
    stage = workspace.run(context)
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            context.run.record_stage("workspace", status="done", result=dict(end.value.facts))
            return end.value, events


def detail(events: list[Event], name: str) -> str:
    return next(event.detail for event in events if isinstance(event, Check) and event.name == name)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- without a clone ---------------------------------------------------------------------------------------------------


def test_without_options_the_current_folder_is_used_and_need_not_be_a_checkout(tmp_path: Path, here: Path) -> None:
    result, _ = drive(context(tmp_path))
    assert (result.facts["folder"], result.facts["commit"], result.facts["dirty"]) == (str(here), None, False)
    assert names_in(here) == set()


def test_a_checkout_is_recorded_with_its_commit_and_its_changes(tmp_path: Path, upstream: Path) -> None:
    clean, _ = drive(context(tmp_path, repo_root=upstream))
    (upstream / "readme").write_text("changed")
    changed, _ = drive(context(tmp_path, repo_root=upstream))
    assert clean.facts["commit"] == changed.facts["commit"] == git(upstream, "rev-parse", "HEAD")
    assert (clean.facts["dirty"], changed.facts["dirty"]) == (False, True)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="nowhere is no folder"):
        drive(context(tmp_path, repo_root=tmp_path / "nowhere"))


def test_looking_at_a_checkout_runs_nothing_of_its(tmp_path: Path, upstream: Path) -> None:
    canary = tmp_path / "ran"
    git(upstream, "config", "core.fsmonitor", f"touch {canary};")
    drive(context(tmp_path, repo_root=upstream))
    assert not canary.exists()


# -- a clone -----------------------------------------------------------------------------------------------------------


def test_a_clone_stands_at_the_head_of_its_branch(tmp_path: Path, upstream: Path, here: Path) -> None:
    result, _ = drive(context(tmp_path, repo_url=str(upstream)))
    assert result.facts["folder"] == str(here / "upstream")
    assert result.facts["commit"] == git(upstream, "rev-parse", "main")
    assert (here / "upstream/readme").read_text() == "second"
    assert names_in(here) == {"upstream"}


@pytest.mark.parametrize("ref", ["v1", "COMMIT", "SHORT"])
def test_a_tag_and_a_commit_are_refs_too(tmp_path: Path, upstream: Path, here: Path, ref: str) -> None:
    first = git(upstream, "rev-parse", "v1^{commit}")
    result, _ = drive(
        context(tmp_path, repo_url=str(upstream), repo_ref={"COMMIT": first, "SHORT": first[:9]}.get(ref, ref))
    )
    assert result.facts["commit"] == first


def test_links_are_not_made_and_do_not_count_as_changes(tmp_path: Path, upstream: Path, here: Path) -> None:
    result, _ = drive(context(tmp_path, repo_url=str(upstream)))
    assert not (here / "upstream/link").is_symlink()
    assert result.facts["dirty"] is False


def test_an_unknown_ref_is_refused_names_the_branches_and_leaves_everything_as_it_was(
    tmp_path: Path, upstream: Path, here: Path
) -> None:
    (here / "upstream").mkdir()
    with pytest.raises(ConfigError) as refused:
        drive(context(tmp_path, repo_url=str(upstream), repo_ref="mian"))
    assert "mian" in refused.value.what and "main" in refused.value.why
    assert names_in(here) == {"upstream"}


def test_a_folder_that_is_no_repository_cannot_be_cloned(tmp_path: Path, here: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(PreconditionError, match="could not be cloned"):
        drive(context(tmp_path, repo_url=str(tmp_path / "plain")))
    assert names_in(here) == set()


def test_hooks_do_not_run(tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "ran"
    template = tmp_path / "template"
    for folder in (template / "hooks", upstream / ".git/hooks"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("post-checkout", "post-upload-pack", "pre-auto-gc", "reference-transaction"):
            (folder / name).write_text(f"#!/bin/sh\ntouch {canary}\n")
            (folder / name).chmod(0o755)
    (tmp_path / ".gitconfig").write_text(f"[init]\n\ttemplateDir = {template}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template))
    drive(context(tmp_path, repo_url=str(upstream)))
    assert not canary.exists()
    assert not (here / "upstream/.git/hooks").exists()


# -- in the way --------------------------------------------------------------------------------------------------------


def test_a_folder_in_the_way_is_moved_aside_and_its_uncommitted_work_is_named(
    tmp_path: Path, upstream: Path, here: Path
) -> None:
    git(here, "clone", "-q", str(upstream), "upstream")
    (here / "upstream/readme").write_text("my work")
    (here / "upstream/my new file").write_text("more of it")
    _, events = drive(context(tmp_path, repo_url=str(upstream)))
    assert names_in(here) == {"upstream", "upstream.aside-1"}
    assert (here / "upstream.aside-1/readme").read_text() == "my work"
    assert (here / "upstream/readme").read_text() == "second"
    told = detail(events, "moved aside")
    assert "upstream.aside-1" in told and "readme" in told and "my new file" in told


def test_a_second_folder_in_the_way_does_not_meet_the_first_one_that_went_aside(
    tmp_path: Path, upstream: Path, here: Path
) -> None:
    for name in ("upstream", "upstream.aside-1"):
        (here / name).mkdir()
        (here / name / name).touch()
    drive(context(tmp_path, repo_url=str(upstream)))
    assert names_in(here / "upstream.aside-1") == {"upstream.aside-1"}
    assert names_in(here / "upstream.aside-2") == {"upstream"}


def test_a_link_in_the_way_is_moved_not_what_it_points_to(tmp_path: Path, upstream: Path, here: Path) -> None:
    (tmp_path / "precious").mkdir()
    (here / "upstream").symlink_to(tmp_path / "precious")
    drive(context(tmp_path, repo_url=str(upstream)))
    assert (here / "upstream.aside-1").is_symlink() and not (here / "upstream").is_symlink()
    assert (tmp_path / "precious").is_dir()


@pytest.mark.parametrize("target", [".", "..", "RUN", "SOURCE"])
def test_a_folder_that_something_stands_on_is_not_moved(
    tmp_path: Path, upstream: Path, here: Path, target: str
) -> None:
    before = names_in(tmp_path)
    root = {"RUN": tmp_path / "run", "SOURCE": upstream}.get(target, Path(target))
    given = context(tmp_path, repo_url=str(upstream), repo_root=root)
    given.run.save()
    with pytest.raises(PreconditionError, match="in the way"):
        drive(given)
    assert names_in(tmp_path) == before | {"run"}


# -- used again --------------------------------------------------------------------------------------------------------


def test_our_own_clone_is_used_again_by_another_run(tmp_path: Path, upstream: Path, here: Path) -> None:
    drive(context(tmp_path, repo_url=str(upstream)))
    (here / "upstream/artifact").write_text("kept")
    other = Context(
        load_config({"repo_url": str(upstream), "base_model_id": "."}, environment={}), Run(tmp_path / "other")
    )
    _, events = drive(other)
    assert "used again" in detail(events, "clone")
    assert (here / "upstream/artifact").read_text() == "kept"


def test_a_clone_that_others_made_is_not_used_again(tmp_path: Path, upstream: Path, here: Path) -> None:
    git(here, "clone", "-q", str(upstream), "upstream")
    drive(context(tmp_path, repo_url=str(upstream)))
    assert names_in(here) == {"upstream", "upstream.aside-1"}


def test_a_run_stays_at_its_commit_when_the_branch_moves_but_a_new_run_follows_it(
    tmp_path: Path, upstream: Path, here: Path
) -> None:
    given = context(tmp_path, repo_url=str(upstream))
    first, _ = drive(given)
    git(upstream, "commit", "-q", "--allow-empty", "-m", "third")
    again, _ = drive(given)
    assert again.facts["commit"] == first.facts["commit"]
    other = Context(given.config, Run(tmp_path / "other"))
    followed, _ = drive(other)
    assert followed.facts["commit"] == git(upstream, "rev-parse", "main")
    assert names_in(here) == {"upstream", "upstream.aside-1"}


def test_fresh_clones_again_once_in_a_run(tmp_path: Path, upstream: Path, here: Path) -> None:
    drive(context(tmp_path, repo_url=str(upstream)))
    fresh = Context(
        load_config({"repo_url": str(upstream), "base_model_id": ".", "fresh": True}, environment={}),
        Run(tmp_path / "other"),
    )
    drive(fresh)
    drive(fresh)  # the same command again goes on, it does not start over
    assert names_in(here) == {"upstream", "upstream.aside-1"}


# -- hostile addresses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% /tmp/pwned",
        "ext::sh",
        "fd::17",
        "--upload-pack=touch pwned",
        "-oProxyCommand=x",
        "http://example.org/a.git",
        "git://example.org/a.git",
        "ssh://git@example.org/a.git",
        "git@example.org:a.git",
        "file:///etc",
        "https://user:hf_secret@example.org/a.git",
        "https://hf_secret@example.org/a.git",
        "https:///nohost",
        "https://example.org/a\nb",
        "https://example.org/\x1b]52;c;x\x07",
        "https://[broken/a",
        "",
    ],
)
def test_an_address_that_could_run_code_or_holds_a_password_is_refused(url: str) -> None:
    with pytest.raises(UnsafeError) as refused:
        check_url(url)
    assert "hf_secret" not in str(refused.value) and "\x1b" not in str(refused.value)


def test_https_addresses_and_paths_are_taken(tmp_path: Path) -> None:
    assert check_url("https://github.com/owner/some-repo.git").name == "some-repo"
    assert check_url("https://[::1]/owner/repo/").name == "repo"
    assert check_url(str(tmp_path)).is_path


@pytest.mark.parametrize("ref", ["--upload-pack=x", "", "a b", "main:evil", "a..b", "HEAD@{1}"])
def test_a_ref_that_is_no_name_is_refused(tmp_path: Path, upstream: Path, here: Path, ref: str) -> None:
    with pytest.raises(UnsafeError, match="--repo-ref"):
        drive(context(tmp_path, repo_url=str(upstream), repo_ref=ref))


# -- room --------------------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_refused_with_the_figures(
    tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, 1 << 30))
    drive(context(tmp_path))  # a local model: 1 GiB is enough
    with pytest.raises(PreconditionError, match=r"1\.0 GiB free; the run needs at least 2\.0 GiB"):
        drive(context(tmp_path, base_model_id="google/gemma-2b-it"))


def test_without_git_a_folder_is_used_and_its_commit_is_not_known(
    tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    result, events = drive(context(tmp_path))
    assert result.facts["commit"] is None
    assert "git could not be started" in detail(events, "commit")
