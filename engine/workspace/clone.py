"""A clone: made under a temporary name beside its target, checked, and renamed. A matching one of ours is reused."""

from __future__ import annotations

import glob
import os
import re
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, PreconditionError
from engine.core.events import Check, Event, Message
from engine.core.system_errors import system_error
from engine.process.children import run_child, stream_child_as_messages
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line
from engine.storage.documents import read_json_or_none
from engine.storage.files import sync_folder, write_json
from engine.workspace import NAME
from engine.workspace.errors import git_failure
from engine.workspace.git import QUERY_SECONDS, UntrustedRepo, ask, fetch_environment, git
from engine.workspace.lfs import fetch_large_files
from engine.workspace.move_aside import move_aside, refuse_to_move
from engine.workspace.urls import Source

MARKER = "stage3-tui.json"
"""In the `.git` folder of a clone that we made."""
CLONE_SECONDS = 1800.0
"""Limit of the transfer, and of the checkout."""


def target_of(config: Stage3Config, source: Source) -> Path:
    """Where the clone goes. Its own name is not resolved: a link in the way is moved aside as a link."""
    path = (config.repo_root or Path.cwd() / source.name).expanduser()
    return path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()


def cloned_folder(
    config: Stage3Config, run: Run, source: Source, ref: str, stop: StopToken
) -> Generator[Event, None, Path]:
    """The folder of a clone of `source` at `ref`. Raises a Stage3Error if there can be none; then nothing has its name."""
    target = target_of(config, source)
    if _is_reusable(source, ref, target, run, fresh=config.fresh):
        yield Check("clone", "ok", f"ours, at {visible_line(ref)} already: reused")
        return target
    if os.path.lexists(target):
        refuse_to_move(target, source, run)
    for left in sorted(target.parent.glob(f"{glob.escape(_prefix(target))}*")):
        what = f"{visible_line(str(left))} is of a clone that was killed, or that another process is making"
        yield Message("warning", f"{what}; if it was killed, you can remove it.")
    with _holder(target) as holder:
        part = Path(holder) / target.name
        yield Message("info", f"Cloning {source.shown} at {visible_line(ref)}.")
        commit = yield from _clone(source, ref, part, large_files=config.fetch_lfs, stop=stop)
        if os.path.lexists(target):
            yield from move_aside(target)
        part.rename(target)
        sync_folder(target.parent)
    yield Check("clone", "ok", f"{source.shown} at {visible_line(ref)} = {commit}")
    return target


def _prefix(target: Path) -> str:
    return f".{target.name}.clone-"


def _holder(target: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder beside the target, for what is not finished; it goes with whatever ends the clone."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=_prefix(target), dir=target.parent)
    except OSError as error:
        what = f"Cannot create a folder in {visible_line(str(target.parent))}."
        raise system_error(error, what) or PreconditionError(
            what, f"{visible_line(str(error))}.", "Choose another --repo-root."
        ) from error


def _clone(source: Source, ref: str, part: Path, *, large_files: bool, stop: StopToken) -> Generator[Event, None, str]:
    """Clone into `part`, which does not exist, and check the commit out. Returns the commit."""
    environment = fetch_environment(source)
    clone = ["clone", "--quiet", "--no-checkout", "--no-recurse-submodules", "--template=", "--no-local"]
    # Links would arrive as files also in later checkouts: the setting stays in the clone.
    argv = git(*clone, "--config", "core.symlinks=false", "--", source.url, str(part))
    result = yield from stream_child_as_messages(
        argv,
        prefix="git",
        level="debug",
        limit_seconds=CLONE_SECONDS,
        extra=environment,
        stop=stop,
    )
    if not result.ok:
        raise git_failure(f"Cannot clone {source.shown}", result)
    commit = _resolve(source, ref, part)
    checkout = ask(part, environment, "checkout", "--quiet", "--detach", commit, limit_seconds=CLONE_SECONDS)
    if not checkout.ok:
        raise git_failure(f"Cannot check out {commit}", checkout)
    _verify(source, commit, part)
    if large_files:
        yield from fetch_large_files(source, part, stop)
    marker = {"url": source.url, "ref": ref, "commit": commit, "made": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_json(part / ".git" / MARKER, marker)
    return commit


def _verify(source: Source, commit: str, part: Path) -> None:
    """Raises a Stage3Error if HEAD is not the commit, or a file of it is not as the commit has it."""
    environment = fetch_environment(source)
    head = ask(part, environment, "rev-parse", "--verify", "HEAD")
    if head.output != (commit,):
        raise git_failure(
            f"The clone is at {visible_line(' '.join(head.output)) or 'no commit'}, not at {commit}", head
        )
    different = ask(part, environment, "diff-index", "--name-only", "HEAD")
    if different.output or not different.ok:
        raise PreconditionError(
            f"The files of the clone differ from {commit}.",
            f"{visible_line(', '.join(different.output) or different.ending, 200)}: another program changed them, "
            "or the disk is faulty.",
            "Run the same command again, or choose another --repo-root.",
        )


def _resolve(source: Source, ref: str, clone: Path) -> str:
    """The commit of a branch, a tag or a (shortened) commit, in this order."""
    environment = fetch_environment(source)
    for name in (f"refs/remotes/origin/{ref}", f"refs/tags/{ref}", ref if re.fullmatch("[0-9a-f]{7,64}", ref) else ""):
        if name:
            found = ask(clone, environment, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
            if found.ok and found.output:
                return found.output[0]
    branches = ask(clone, environment, "for-each-ref", "--format=%(refname:lstrip=3)", "refs/remotes/origin")
    there = ", ".join(name for name in branches.output if name != "HEAD")
    raise ConfigError(
        f"{source.shown} has no {visible_line(ref, 100)} (--repo-ref).",
        f"It is not a branch, tag or commit there. Its branches: {visible_line(there, 300) or 'none'}.",
        "Pass one of them, a tag, or a commit.",
    )


# -- used again --------------------------------------------------------------------------------------------------------


def _is_reusable(source: Source, ref: str, target: Path, run: Run, *, fresh: bool) -> bool:
    """Whether the target is a clone of ours at the wanted commit, and --fresh not asked for, or granted before."""
    if target.is_symlink():
        return False
    marker = read_json_or_none(target / ".git" / MARKER, dict[str, Any])
    if marker is None or marker.get("url") != source.url:
        return False
    try:
        head = UntrustedRepo(target, alone=True).ask("rev-parse", "--verify", "HEAD").output
    except PreconditionError:  # its configuration is not what we left
        return False
    if len(head) != 1:
        return False
    recorded = run.result(NAME)
    same = {"folder": str(target), "commit": head[0], "url": source.url, "ref": ref}
    if same.items() <= recorded.items():  # this very run made it: a branch that has moved since does not move the run
        return not fresh or bool(recorded.get("fresh"))
    return not fresh and head[0] == _wanted_commit(source, ref)


def _wanted_commit(source: Source, ref: str) -> str | None:
    """What the remote says that `ref` is now; a whole commit is itself, a shortened one nothing that it could say."""
    if re.fullmatch("[0-9a-f]{40}", ref):
        return ref
    names = (f"refs/heads/{ref}", f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}")
    argv = git("ls-remote", "--", source.url, *names)
    result = run_child(argv, limit_seconds=QUERY_SECONDS, extra=fetch_environment(source))
    if not result.ok:
        raise git_failure(f"Cannot ask {source.shown} for {visible_line(ref)}", result)
    found = {name: commit for commit, _, name in (line.partition(" ") for line in result.output)}
    return next((found[name] for name in names if name in found), None)
