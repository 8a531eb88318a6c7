"""What would be lost if a folder were lost: changes, stashes, and commits that no remote has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from engine.core.errors import PreconditionError
from engine.core.users import owner_of
from engine.process.output import MAX_LINES
from engine.security.sanitize import visible_line
from engine.workspace.git import UntrustedRepo

NAMED = 5
"""So many of each are named, the rest are counted."""
MAX_BRANCHES = 50
"""The branches with the latest commits; more are not looked at."""


@dataclass(frozen=True)
class UnpushedWork:
    """In a git repository; all empty if everything is committed and pushed."""

    changed: tuple[str, ...] = ()
    """Files that differ from the last commit."""
    untracked: tuple[str, ...] = ()
    """Files, and folders that hold nothing else; what .gitignore names is not counted."""
    stashes: int = 0
    unpushed: tuple[tuple[str, int], ...] = ()
    """(branch, its commits that are on no remote); for a HEAD on no branch its own beside those."""
    remarks: tuple[str, ...] = ()
    """What was not looked into, and what moving the folder means for others."""

    def __str__(self) -> str:
        """Sentences, each with its full stop; empty if there is nothing to tell."""
        commits = [f"{_plural(count, 'commit')} of {branch}" for branch, count in self.unpushed]
        found = [
            _counted(self.changed, "changed file"),
            _counted(self.untracked, "untracked file"),
            _plural(self.stashes, "stash", "stashes") if self.stashes else "",
            f"on no remote: {_listed(commits)}" if commits else "",
        ]
        told = "; ".join(part for part in found if part)
        return " ".join([*([f"It contains unpushed work: {told}."] if told else []), *self.remarks])


def unpushed_work(folder: Path) -> UnpushedWork:
    """Look into `folder`; nothing of it runs. Of what is no git repository git can tell nothing."""
    if folder.is_symlink() or not _is_repository(folder):
        return UnpushedWork()
    foreign = UntrustedRepo(folder, alone=True)
    try:
        is_bare = _asked(foreign, "rev-parse", "--is-bare-repository") == ("true",)
        changed, untracked = ((), ()) if is_bare else _files(foreign)
        return UnpushedWork(changed, untracked, _stashes(foreign), _unpushed(foreign), tuple(_remarks(folder)))
    except PreconditionError as error:
        why = visible_line(f"{error.what} {error.why}", 300)
        return UnpushedWork(remarks=(f"Cannot tell whether it contains unpushed work: {why}",))


def _is_repository(folder: Path) -> bool:
    return (folder / ".git").exists() or all((folder / name).exists() for name in ("HEAD", "objects", "refs"))


def _asked(foreign: UntrustedRepo, *arguments: str) -> tuple[str, ...]:
    """The lines of an answer. Raises PreconditionError if git gives none."""
    result = foreign.ask(*arguments)
    if not result.ok:
        whose = "" if foreign.folder.stat().st_uid == os.getuid() else f"It belongs to {owner_of(foreign.folder)}. "
        raise PreconditionError(f"git {arguments[0]} failed.", f"{whose}git: {result.ending}")
    return result.output


def _files(foreign: UntrustedRepo) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(changed, untracked). Every option is given: the folder's configuration may say to show nothing."""
    options = ("--porcelain", "--untracked-files=normal", "--no-renames", "--ignore-submodules=all")
    lines = [line.split(" ", 1) for line in _asked(foreign, "status", *options)]
    return (
        tuple(name for code, name in lines if code != "??"),
        tuple(name for code, name in lines if code == "??"),
    )


def _stashes(foreign: UntrustedRepo) -> int:
    # Not `git stash list`: that is a log, and with log.showSignature it runs gpg.program.
    if not foreign.ask("rev-parse", "--verify", "--quiet", "refs/stash").ok:
        return 0
    (count,) = _asked(foreign, "rev-list", "--walk-reflogs", "--count", "refs/stash")
    return max(int(count), 1)


def _unpushed(foreign: UntrustedRepo) -> tuple[tuple[str, int], ...]:
    found = []
    format_ = "--format=%(objectname) %(refname:lstrip=2)"
    for line in _asked(
        foreign, "for-each-ref", "--sort=-committerdate", f"--count={MAX_BRANCHES}", format_, "refs/heads"
    ):
        commit, _, branch = line.partition(" ")
        found.append((branch, _count(foreign, commit, "--not", "--remotes")))
    if not foreign.ask("symbolic-ref", "--quiet", "HEAD").ok:
        found.append(("HEAD, which is on no branch", _count(foreign, "HEAD", "--not", "--remotes", "--branches")))
    return tuple((branch, count) for branch, count in found if count)


def _count(foreign: UntrustedRepo, *commits: str) -> int:
    (count,) = _asked(foreign, "rev-list", "--count", *commits)
    return int(count)


def _remarks(folder: Path) -> list[str]:
    told = []
    if (folder / ".git").is_file():
        told.append("It is a linked worktree or a submodule: `git worktree repair` in it repairs the link.")
    worktrees = folder / ".git/worktrees"
    if worktrees.is_dir() and any(worktrees.iterdir()):
        told.append("Other worktrees are linked to it: `git worktree repair` in it repairs the links.")
    if (folder / ".gitmodules").exists():
        told.append("Its submodules were not checked.")
    return told


def _counted(names: tuple[str, ...], what: str) -> str:
    more = "+" if len(names) >= MAX_LINES else ""
    return f"{len(names)}{more} {what}{'' if len(names) == 1 else 's'} ({_listed(list(names))})" if names else ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(visible_line(name, 120) for name in names[:NAMED]) + more


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
