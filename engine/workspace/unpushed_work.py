"""Find work in a folder that exists nowhere else: changes, stashes, and commits that are on no remote."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from engine.core.errors import PreconditionError
from engine.core.users import owner_of
from engine.process.output import MAX_LINES
from engine.security.sanitize import visible_line
from engine.workspace.git import UntrustedRepo

MAX_NAMES = 5
"""Names listed of each kind; the others are counted."""
MAX_BRANCHES = 50
"""Branches to check, those with the latest commits first."""


@dataclass(frozen=True)
class UnpushedWork:
    """The unpushed work in a git repository; all empty if everything is committed and pushed."""

    changed: tuple[str, ...] = ()
    """Files that differ from the last commit."""
    untracked: tuple[str, ...] = ()
    """Untracked files, and folders with only such files, except those that .gitignore excludes."""
    stashes: int = 0
    unpushed: tuple[tuple[str, int], ...] = ()
    """(branch, number of its commits that are on no remote). A detached HEAD has its own entry."""
    remarks: tuple[str, ...] = ()
    """What was not checked, and which links break when the folder is moved."""

    def __str__(self) -> str:
        """Complete sentences; empty if there is nothing to report."""
        commits = [f"{_plural(count, 'commit')} of {branch}" for branch, count in self.unpushed]
        found = [
            _counted(self.changed, "changed file"),
            _counted(self.untracked, "untracked file"),
            _plural(self.stashes, "stash", "stashes") if self.stashes else "",
            f"on no remote: {_listed(commits)}" if commits else "",
        ]
        work = "; ".join(part for part in found if part)
        return " ".join([*([f"It contains unpushed work: {work}."] if work else []), *self.remarks])


def unpushed_work(folder: Path) -> UnpushedWork:
    """Find the unpushed work in `folder` without executing anything in it; empty if it is not a git repository."""
    if folder.is_symlink() or not _is_repository(folder):
        return UnpushedWork()
    repo = UntrustedRepo(folder, alone=True)
    try:
        is_bare = _lines(repo, "rev-parse", "--is-bare-repository") == ("true",)
        changed, untracked = ((), ()) if is_bare else _files(repo)
        return UnpushedWork(changed, untracked, _stashes(repo), _unpushed(repo), tuple(_remarks(folder)))
    except PreconditionError as error:
        why = visible_line(f"{error.what} {error.why}", 300)
        return UnpushedWork(remarks=(f"Cannot check whether it contains unpushed work: {why}",))


def _is_repository(folder: Path) -> bool:
    return (folder / ".git").exists() or all((folder / name).exists() for name in ("HEAD", "objects", "refs"))


def _lines(repo: UntrustedRepo, *arguments: str) -> tuple[str, ...]:
    """The lines that git prints. Raises PreconditionError if the command fails."""
    result = repo.query(*arguments)
    if not result.ok:
        owner = "" if repo.folder.stat().st_uid == os.getuid() else f"It belongs to {owner_of(repo.folder)}. "
        raise PreconditionError(f"git {arguments[0]} failed.", f"{owner}git: {result.ending}")
    return result.output


def _files(repo: UntrustedRepo) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(changed, untracked). The options are explicit, because the folder's configuration may hide files."""
    options = ("--porcelain", "--untracked-files=normal", "--no-renames", "--ignore-submodules=all")
    lines = [line.split(" ", 1) for line in _lines(repo, "status", *options)]
    return (
        tuple(name for code, name in lines if code != "??"),
        tuple(name for code, name in lines if code == "??"),
    )


def _stashes(repo: UntrustedRepo) -> int:
    # Not `git stash list`, which is a log: with log.showSignature it would execute gpg.program.
    if not repo.query("rev-parse", "--verify", "--quiet", "refs/stash").ok:
        return 0
    (count,) = _lines(repo, "rev-list", "--walk-reflogs", "--count", "refs/stash")
    return max(int(count), 1)


def _unpushed(repo: UntrustedRepo) -> tuple[tuple[str, int], ...]:
    found = []
    format_ = "--format=%(objectname) %(refname:lstrip=2)"
    for line in _lines(repo, "for-each-ref", "--sort=-committerdate", f"--count={MAX_BRANCHES}", format_, "refs/heads"):
        commit, _, branch = line.partition(" ")
        found.append((branch, _count(repo, commit, "--not", "--remotes")))
    if not repo.query("symbolic-ref", "--quiet", "HEAD").ok:
        found.append(("HEAD, which is on no branch", _count(repo, "HEAD", "--not", "--remotes", "--branches")))
    return tuple((branch, count) for branch, count in found if count)


def _count(repo: UntrustedRepo, *commits: str) -> int:
    (count,) = _lines(repo, "rev-list", "--count", *commits)
    return int(count)


def _remarks(folder: Path) -> list[str]:
    remarks = []
    if (folder / ".git").is_file():
        remarks.append("It is a linked worktree or a submodule: run `git worktree repair` in it to repair the link.")
    worktrees = folder / ".git/worktrees"
    if worktrees.is_dir() and any(worktrees.iterdir()):
        remarks.append("Other worktrees are linked to it: run `git worktree repair` in it to repair the links.")
    if (folder / ".gitmodules").exists():
        remarks.append("Its submodules were not checked.")
    return remarks


def _counted(names: tuple[str, ...], what: str) -> str:
    more = "+" if len(names) >= MAX_LINES else ""
    return f"{len(names)}{more} {what}{'' if len(names) == 1 else 's'} ({_listed(list(names))})" if names else ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(visible_line(name, 120) for name in names[:MAX_NAMES]) + more


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
