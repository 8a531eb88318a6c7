"""Stage 1: the working folder, its commit, and free disk space.

A clone is made under a temporary name beside its target, checked, then renamed. A folder in the way is moved aside, never
deleted. A clone of ours at the right commit is reused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.core.errors import PreconditionError
from engine.core.events import Check, Message
from engine.core.sizes import format_size
from engine.dpo.planning.disk_space import require_disk_space
from engine.machine.programs import GIT, GIT_PURPOSE, require
from engine.run.results import WorkspaceResult
from engine.security.sanitize import visible_line
from engine.stages.base import Context, StageEnd, StageRun
from engine.workspace.clone import cloned_folder
from engine.workspace.git import UntrustedRepo
from engine.workspace.urls import check_ref, check_url


def run(context: Context) -> StageRun:
    config = context.config
    requested: dict[str, Any] = {}
    if config.repo_url is not None:
        source, ref = check_url(config.repo_url, allow_ssh=config.allow_ssh), check_ref(config.repo_ref)
        requested = {"url": source.url, "ref": ref, "fresh": config.fresh}
    free = yield from require_disk_space(config, context.run)
    if config.repo_url is None:
        folder = _existing_folder(config.repo_root)
    else:
        require(GIT, GIT_PURPOSE)
        folder = yield from cloned_folder(context.config, context.run, source, ref, context.stop)
    commit, dirty, remark = _state_of(folder)
    short = visible_line(str(folder))
    yield Check("folder", "ok", short)
    yield Check("commit", "ok" if commit else "warning", f"{commit}, {remark}" if commit else remark)
    before = context.run.results.workspace
    if before is not None and (before.folder, before.commit) != (str(folder), commit):
        was = f"{before.folder} at {before.commit}"
        yield Message("info", f"The workspace changed from {visible_line(was)} to {short} at {commit}.")
    at = f" at {commit[:12]}{', with changes' if dirty else ''}" if commit else ", not a git checkout"
    result = WorkspaceResult(folder=str(folder), commit=commit, dirty=dirty, free_bytes=free, **requested)
    return StageEnd(f"{short}{at}; {format_size(free)} free", result)


def _existing_folder(repo_root: Path | None) -> Path:
    folder = (repo_root or Path.cwd()).expanduser().resolve()
    if not folder.is_dir():
        raise PreconditionError(
            f"--repo-root {visible_line(str(folder))} is not a folder.",
            "--repo-root must be an existing folder; only --repo-url clones one.",
            "Pass the folder of a checkout, or add --repo-url to clone one there.",
        )
    return folder


def _state_of(folder: Path) -> tuple[str | None, bool | None, str]:
    """Commit, whether tracked files differ (None: unknown), and a remark. Untracked files are ignored: the run makes some."""
    repo = UntrustedRepo(folder, alone=False)
    try:
        head = repo.query("rev-parse", "--verify", "HEAD")
        if not head.ok or not head.output:
            if "not a git repository" in " ".join(head.tail):
                return None, False, "not a git checkout: the version of the files cannot be recorded"
            return None, False, f"unknown: {visible_line(head.ending, 200)}"
        status = repo.query("status", "--porcelain", "--untracked-files=no", "--no-renames", "--ignore-submodules=all")
    except PreconditionError as error:
        return None, False, f"unknown: {error.what} {error.why}"
    if not status.ok:
        return head.output[0], None, f"could not check for changed files: {visible_line(status.ending, 200)}"
    changed = len(status.output)
    remark = f"{changed} changed {'file' if changed == 1 else 'files'}" if changed else "no changes"
    return head.output[0], changed > 0, remark
