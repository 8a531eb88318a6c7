"""Stage 1 with real git repositories: an existing folder, a clone, and folders in its way."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from engine.core.config import load_config
from engine.core.errors import ConfigError, PreconditionError
from engine.run.context import Context
from engine.run.folder import Run
from tests.support.git_repositories import context, detail, drive, git, make_upstream, names_in, program

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


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="nowhere is not a folder"):
        drive(context(tmp_path, repo_root=tmp_path / "nowhere"))


def test_a_folder_inside_a_checkout_belongs_to_it(tmp_path: Path, upstream: Path) -> None:
    (upstream / "below").mkdir()
    assert drive(context(tmp_path, repo_root=upstream / "below"))[0].facts["commit"] == git(
        upstream, "rev-parse", "HEAD"
    )


def dirtied(upstream: Path) -> None:
    """As after copying: the files are the same but not their times, so git reads them again."""
    for path in upstream.iterdir():
        os.utime(path, (1_900_000_000, 1_900_000_000), follow_symlinks=False)


def arm(upstream: Path, canary: Path, trap: str) -> None:
    """Set the traps that a hostile .git/config can have for anyone who runs git status."""
    run = f"touch {canary};"
    if trap == "fsmonitor":
        git(upstream, "config", "core.fsmonitor", run)
    elif trap == "hook":
        (upstream / ".git/hooks").mkdir(exist_ok=True)
        for name in ("post-index-change", "reference-transaction", "post-checkout"):
            (upstream / ".git/hooks" / name).write_text(f"#!/bin/sh\n{run}\n")
            (upstream / ".git/hooks" / name).chmod(0o755)
    elif trap in ("clean", "process"):
        (upstream / ".git/info").mkdir(exist_ok=True)
        (upstream / ".git/info/attributes").write_text("* filter=evil\n")
        git(upstream, "config", f"filter.evil.{trap}", f"{run} cat")
        git(upstream, "config", "filter.evil.required", "true")
    elif trap == "included":
        (upstream / ".git/info").mkdir(exist_ok=True)
        (upstream / ".git/info/attributes").write_text("* filter=evil\n")
        (upstream / ".git/more").write_text(f'[filter "evil"]\n\tclean = "{run} cat"\n')
        git(upstream, "config", "include.path", "more")
    elif trap == "lazy fetch":
        for key, value in (("core.repositoryformatversion", "1"), ("extensions.partialClone", "origin"),
                           ("remote.origin.promisor", "true"), ("remote.origin.url", str(upstream)),
                           ("remote.origin.uploadpack", f"{run} false")):  # fmt: skip
            git(upstream, "config", key, value)
        (upstream / ".git/refs/heads/ghost").write_text("1" * 40 + "\n")
    elif trap == "signature":
        tree = git(upstream, "rev-parse", "HEAD^{tree}")
        signature = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n nothing\n -----END PGP SIGNATURE-----"
        who = "A Test <test@example.org> 1900000000 +0000"
        (canary.parent / "signed").write_text(f"tree {tree}\nauthor {who}\ncommitter {who}\n{signature}\n\nstashed\n")
        signed = git(upstream, "hash-object", "-t", "commit", "-w", str(canary.parent / "signed"))
        git(upstream, "update-ref", "--create-reflog", "refs/stash", signed)
        git(upstream, "config", "log.showSignature", "true")
        git(upstream, "config", "gpg.program", str(program(canary.parent / "bin", "gpg", f"#!/bin/sh\n{run}\n")))


TRAPS = ("fsmonitor", "hook", "clean", "process", "included", "lazy fetch", "signature")


@pytest.mark.parametrize("trap", TRAPS)
def test_inspecting_a_checkout_runs_none_of_its_code(tmp_path: Path, upstream: Path, trap: str) -> None:
    arm(upstream, tmp_path / "ran", trap)
    dirtied(upstream)
    (tmp_path / "ran").unlink(missing_ok=True)  # arming alone may set it off
    result, _ = drive(context(tmp_path, repo_root=upstream))
    assert not (tmp_path / "ran").exists()
    assert result.facts["dirty"] is False


@pytest.mark.parametrize("trap", TRAPS)
def test_a_careless_inspection_triggers_the_trap(tmp_path: Path, upstream: Path, trap: str) -> None:
    arm(upstream, tmp_path / "ran", trap)
    dirtied(upstream)
    (tmp_path / "ran").unlink(missing_ok=True)
    for careless in (["status"], ["rev-list", "--count", "--branches"], ["stash", "list"]):
        with contextlib.suppress(subprocess.CalledProcessError):
            git(upstream, *careless)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("trap", TRAPS)
def test_inspecting_a_folder_in_the_way_runs_none_of_its_code(
    tmp_path: Path, upstream: Path, here: Path, trap: str
) -> None:
    hostile = make_upstream(here / "upstream")
    arm(hostile, tmp_path / "ran", trap)
    dirtied(hostile)
    (tmp_path / "ran").unlink(missing_ok=True)
    drive(context(tmp_path, repo_url=str(upstream)))
    assert not (tmp_path / "ran").exists()
    assert names_in(here) == {"upstream", "upstream.aside-1"}


@pytest.mark.parametrize("name", ["e vil", "e  vil", "e=vil", "e\u200bvil"])
def test_a_repository_whose_filters_cannot_be_disabled_is_not_inspected(
    tmp_path: Path, upstream: Path, name: str
) -> None:
    with (upstream / ".git/config").open("a") as file:
        file.write(f'[filter "{name}"]\n\tclean = "touch {tmp_path}/ran; cat"\n')
    (upstream / ".git/info").mkdir(exist_ok=True)
    (upstream / ".git/info/attributes").write_text(f"* filter={name}\n")
    dirtied(upstream)
    result, events = drive(context(tmp_path, repo_root=upstream))
    assert not (tmp_path / "ran").exists()
    assert result.facts["commit"] is None and "Refusing to run git in" in detail(events, "commit")


# -- a clone -----------------------------------------------------------------------------------------------------------


def test_a_clone_is_at_the_head_of_its_branch(tmp_path: Path, upstream: Path, here: Path) -> None:
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


def test_links_are_not_created_and_do_not_count_as_changes(tmp_path: Path, upstream: Path, here: Path) -> None:
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


def test_a_folder_that_is_not_a_repository_cannot_be_cloned(tmp_path: Path, here: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(PreconditionError, match="Cannot clone"):
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


@pytest.mark.fault("F9")
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
    moved = detail(events, "moved aside")
    assert "upstream.aside-1, unchanged." in moved
    assert 'It contains unpushed work: 1 changed file (readme); 1 untracked file ("my new file").' in moved


def test_stashes_and_commits_that_no_remote_has_are_named(tmp_path: Path, upstream: Path, here: Path) -> None:
    git(here, "clone", "-q", str(upstream), "upstream")
    mine = here / "upstream"
    for text in ("one", "two"):
        (mine / "readme").write_text(text)
        git(mine, "stash")
    git(mine, "checkout", "-q", "-b", "idea")
    for _ in range(3):
        git(mine, "commit", "-q", "--allow-empty", "-m", "mine")
    git(mine, "checkout", "-q", "--detach", "main")
    git(mine, "commit", "-q", "--allow-empty", "-m", "on no branch")
    # What says to show nothing is the folder's own configuration.
    git(mine, "config", "status.showUntrackedFiles", "no")
    (mine / "new").touch()
    _, events = drive(context(tmp_path, repo_url=str(upstream)))
    assert (
        "It contains unpushed work: 1 untracked file (new); 2 stashes; "
        "on no remote: 3 commits of idea, 1 commit of HEAD, which is on no branch." in detail(events, "moved aside")
    )


def test_a_committed_and_pushed_clone_contains_no_unsaved_work(tmp_path: Path, upstream: Path, here: Path) -> None:
    git(here, "clone", "-q", str(upstream), "upstream")
    _, events = drive(context(tmp_path, repo_url=str(upstream)))
    assert detail(events, "moved aside").endswith("unchanged.")


def test_a_repository_without_a_remote_counts_as_unpushed(tmp_path: Path, upstream: Path, here: Path) -> None:
    make_upstream(here / "upstream")
    _, events = drive(context(tmp_path, repo_url=str(upstream)))
    assert "on no remote: 2 commits of main." in detail(events, "moved aside")


def test_a_bare_repository_in_the_way_is_inspected(tmp_path: Path, upstream: Path, here: Path) -> None:
    git(here, "clone", "-q", "--bare", str(upstream), "upstream")
    _, events = drive(context(tmp_path, repo_url=str(upstream)))
    assert "on no remote: 2 commits of main." in detail(events, "moved aside")


def test_what_was_not_inspected_is_reported(tmp_path: Path, upstream: Path, here: Path) -> None:
    git(here, "clone", "-q", str(upstream), "main")
    git(here / "main", "worktree", "add", "-q", "-b", "other", str(here / "upstream"))
    (here / "upstream/.gitmodules").write_text("")
    _, events = drive(context(tmp_path, repo_url=str(upstream)))
    moved = detail(events, "moved aside")
    assert "linked worktree" in moved and "git worktree repair" in moved and "submodules were not checked" in moved


@pytest.mark.parametrize("damage", ["no HEAD", "no configuration"])
def test_a_damaged_repository_in_the_way_is_moved_and_reported_as_unread(
    tmp_path: Path, upstream: Path, here: Path, damage: str
) -> None:
    git(here, "init", "-q")  # not searched: the one above would answer
    make_upstream(here / "upstream")
    (here / "upstream/.git" / {"no HEAD": "HEAD", "no configuration": "config"}[damage]).write_text("[[[\n")
    _, events = drive(context(tmp_path, repo_url=str(upstream)))
    assert "Cannot check whether it contains unpushed work: git " in detail(events, "moved aside")
    assert names_in(here) == {".git", "upstream", "upstream.aside-1"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_another_users_repository_is_not_inspected_and_its_owner_is_named(
    tmp_path: Path, upstream: Path, here: Path
) -> None:
    make_upstream(here / "upstream")
    for path in [here / "upstream", *(here / "upstream").rglob("*")]:
        os.lchown(path, 12345, 12345)
    _, events = drive(context(tmp_path, repo_url=str(upstream)))
    assert "contains unpushed work: git rev-parse failed. It belongs to user 12345." in detail(events, "moved aside")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_error_for_an_unwritable_folder_names_its_owner() -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom tests.support.git_repositories import context, drive\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "given = context(Path(sys.argv[1]), repo_url=sys.argv[1] + '/upstream', repo_root=sys.argv[1] + '/closed/clone')\n"
        "try:\n    drive(given)\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # others may look into it; into pytest's they may not
        Path(folder).chmod(0o755)
        make_upstream(Path(folder) / "upstream")
        (Path(folder) / "closed").mkdir(mode=0o755)
        # As nobody, in a process of its own: this one must stay what it is.
        done = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=Path(__file__).parents[2]
        )
    assert "DiskError Cannot create a folder in" in done.stdout, done.stderr
    assert "belongs to root" in done.stdout


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
def test_a_folder_in_use_is_not_moved(tmp_path: Path, upstream: Path, here: Path, target: str) -> None:
    before = names_in(tmp_path)
    root = {"RUN": tmp_path / "run", "SOURCE": upstream}.get(target, Path(target))
    given = context(tmp_path, repo_url=str(upstream), repo_root=root)
    given.run.save()
    with pytest.raises(PreconditionError, match="in the way"):
        drive(given)
    assert names_in(tmp_path) == before | {"run"}


# -- reused ------------------------------------------------------------------------------------------------------------


def test_our_clone_is_reused_by_another_run(tmp_path: Path, upstream: Path, here: Path) -> None:
    drive(context(tmp_path, repo_url=str(upstream)))
    (here / "upstream/artifact").write_text("kept")
    other = Context(
        load_config({"repo_url": str(upstream), "base_model_id": "."}, environment={}), Run(tmp_path / "other")
    )
    _, events = drive(other)
    assert "reused" in detail(events, "clone")
    assert (here / "upstream/artifact").read_text() == "kept"


def test_a_clone_made_by_others_is_not_reused(tmp_path: Path, upstream: Path, here: Path) -> None:
    git(here, "clone", "-q", str(upstream), "upstream")
    drive(context(tmp_path, repo_url=str(upstream)))
    assert names_in(here) == {"upstream", "upstream.aside-1"}


def test_our_clone_is_not_reused_if_its_configuration_changed(tmp_path: Path, upstream: Path, here: Path) -> None:
    drive(context(tmp_path, repo_url=str(upstream)))
    with (here / "upstream/.git/config").open("a") as file:
        file.write(f'[filter "e vil"]\n\tclean = "touch {tmp_path}/ran"\n')
    _, events = drive(context(tmp_path, repo_url=str(upstream)))
    assert names_in(here) == {"upstream", "upstream.aside-1"} and not (tmp_path / "ran").exists()
    assert "contains unpushed work: Refusing to run git in" in detail(events, "moved aside")


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


def test_fresh_clones_again_once_per_run(tmp_path: Path, upstream: Path, here: Path) -> None:
    drive(context(tmp_path, repo_url=str(upstream)))
    fresh = Context(
        load_config({"repo_url": str(upstream), "base_model_id": ".", "fresh": True}, environment={}),
        Run(tmp_path / "other"),
    )
    drive(fresh)
    drive(fresh)  # the same command again goes on, it does not start over
    assert names_in(here) == {"upstream", "upstream.aside-1"}


# -- without git -------------------------------------------------------------------------------------------------------


def test_without_git_a_folder_is_used_and_its_commit_is_not_known(
    tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    result, events = drive(context(tmp_path))
    assert result.facts["commit"] is None
    assert "Cannot start git" in detail(events, "commit")


@pytest.mark.fault("F9")
def test_without_git_nothing_is_cloned_and_the_way_to_get_it_is_reported(
    tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(PreconditionError, match="git: missing") as refused:
        drive(context(tmp_path, repo_url=str(upstream)))
    assert "apt install git" in refused.value.what_to_do and names_in(here) == set()
