"""Clone a repository: under a temporary name beside its target, then checked and renamed. A matching clone is reused."""

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
from engine.workspace.git import COMMAND_SECONDS, UntrustedRepo, fetch_environment, git_command, run_git
from engine.workspace.lfs import fetch_large_files
from engine.workspace.move_aside import move_aside, refuse_to_move
from engine.workspace.urls import Source

MARKER = "stage3-tui.json"
"""The file in the `.git` folder that marks a clone as ours."""
CLONE_SECONDS = 1800.0
"""Time limit of the transfer, and of the checkout."""


def target_of(config: Stage3Config, source: Source) -> Path:
    """Where the clone goes. Its last part is not resolved, so that a link in the way is moved aside as a link."""
    path = (config.repo_root or Path.cwd() / source.name).expanduser()
    return path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()


def cloned_folder(
    config: Stage3Config, run: Run, source: Source, ref: str, stop: StopToken
) -> Generator[Event, None, Path]:
    """The folder of a clone of `source` at `ref`. If it raises a Stage3Error, nothing new is at the target."""
    target = target_of(config, source)
    if _is_reusable(source, ref, target, run, fresh=config.fresh):
        yield Check("clone", "ok", f"reused: already at {visible_line(ref)}")
        return target
    if os.path.lexists(target):
        refuse_to_move(target, source, run)
    for unfinished in sorted(target.parent.glob(f"{glob.escape(_prefix(target))}*")):
        what = f"{visible_line(str(unfinished))} is an unfinished clone: it was killed, or another process is making it"
        yield Message("warning", f"{what}. If it was killed, you can remove it.")
    with _temporary_folder(target) as temporary:
        part = Path(temporary) / target.name
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


def _temporary_folder(target: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder beside the target for the unfinished clone; it is removed however the clone ends."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=_prefix(target), dir=target.parent)
    except OSError as error:
        what = f"Cannot create a folder in {visible_line(str(target.parent))}."
        raise system_error(error, what) or PreconditionError(
            what, f"{visible_line(str(error))}.", "Choose another --repo-root."
        ) from error


def _clone(source: Source, ref: str, part: Path, *, large_files: bool, stop: StopToken) -> Generator[Event, None, str]:
    """Clone into `part`, which does not exist yet, and check out `ref`. Returns the commit."""
    environment = fetch_environment(source)
    clone = ["clone", "--quiet", "--no-checkout", "--no-recurse-submodules", "--template=", "--no-local"]
    # The setting stays in the clone, so later checkouts also write links as plain files.
    argv = git_command(*clone, "--config", "core.symlinks=false", "--", source.url, str(part))
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
    checkout = run_git(part, environment, "checkout", "--quiet", "--detach", commit, limit_seconds=CLONE_SECONDS)
    if not checkout.ok:
        raise git_failure(f"Cannot check out {commit}", checkout)
    _verify(source, commit, part)
    if large_files:
        yield from fetch_large_files(source, part, stop)
    marker = {"url": source.url, "ref": ref, "commit": commit, "made": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_json(part / ".git" / MARKER, marker)
    return commit


def _verify(source: Source, commit: str, part: Path) -> None:
    """Raises a Stage3Error if HEAD is not the commit, or if a file differs from it."""
    environment = fetch_environment(source)
    head = run_git(part, environment, "rev-parse", "--verify", "HEAD")
    if head.output != (commit,):
        raise git_failure(
            f"The clone is at {visible_line(' '.join(head.output)) or 'no commit'}, not at {commit}", head
        )
    changed = run_git(part, environment, "diff-index", "--name-only", "HEAD")
    if changed.output or not changed.ok:
        raise PreconditionError(
            f"The files of the clone differ from {commit}.",
            f"{visible_line(', '.join(changed.output) or changed.ending, 200)}: another program changed them, "
            "or the disk is faulty.",
            "Run the same command again, or choose another --repo-root.",
        )


def _resolve(source: Source, ref: str, clone: Path) -> str:
    """The commit of a branch, a tag or a (possibly shortened) commit, tried in this order."""
    environment = fetch_environment(source)
    for name in (f"refs/remotes/origin/{ref}", f"refs/tags/{ref}", ref if re.fullmatch("[0-9a-f]{7,64}", ref) else ""):
        if name:
            found = run_git(clone, environment, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
            if found.ok and found.output:
                return found.output[0]
    refs = run_git(clone, environment, "for-each-ref", "--format=%(refname:lstrip=3)", "refs/remotes/origin")
    branches = ", ".join(name for name in refs.output if name != "HEAD")
    raise ConfigError(
        f"{source.shown} has no {visible_line(ref, 100)} (--repo-ref).",
        f"It is not a branch, tag or commit there. Its branches: {visible_line(branches, 300) or 'none'}.",
        "Pass one of them, a tag, or a commit.",
    )


# -- reuse -------------------------------------------------------------------------------------------------------------


def _is_reusable(source: Source, ref: str, target: Path, run: Run, *, fresh: bool) -> bool:
    """Whether the target is our clone at the wanted commit. With `fresh`, only if this run has already cloned afresh."""
    if target.is_symlink():
        return False
    marker = read_json_or_none(target / ".git" / MARKER, dict[str, Any])
    if marker is None or marker.get("url") != source.url:
        return False
    try:
        head = UntrustedRepo(target, alone=True).query("rev-parse", "--verify", "HEAD").output
    except PreconditionError:  # its configuration has been changed since
        return False
    if len(head) != 1:
        return False
    recorded = run.result(NAME)
    same = {"folder": str(target), "commit": head[0], "url": source.url, "ref": ref}
    if same.items() <= recorded.items():  # this run made it, and keeps its commit even if the branch has moved since
        return not fresh or bool(recorded.get("fresh"))
    return not fresh and head[0] == _wanted_commit(source, ref)


def _wanted_commit(source: Source, ref: str) -> str | None:
    """The commit that `ref` has on the remote now; None if it has no such branch or tag. A full commit is returned as it is."""
    if re.fullmatch("[0-9a-f]{40}", ref):
        return ref
    names = (f"refs/heads/{ref}", f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}")
    argv = git_command("ls-remote", "--", source.url, *names)
    result = run_child(argv, limit_seconds=COMMAND_SECONDS, extra=fetch_environment(source))
    if not result.ok:
        raise git_failure(f"Cannot look up {visible_line(ref)} in {source.shown}", result)
    found = {name: commit for commit, _, name in (line.partition(" ") for line in result.output)}
    return next((found[name] for name in names if name in found), None)
