"""Fetch the large files of a clone (git-lfs) for --fetch-lfs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path

from engine.core.errors import PreconditionError
from engine.core.events import Event
from engine.process.children import stream_child_as_messages
from engine.run.stop import StopToken
from engine.workspace.errors import git_failure
from engine.workspace.git import fetch_environment, git_command
from engine.workspace.urls import Source

LFS_SECONDS = 3600.0
GET_LFS = "`apt install git-lfs`, or your system's package manager"

_FILTERS = (
    "filter.lfs.clean=git-lfs clean -- %f",
    "filter.lfs.smudge=git-lfs smudge -- %f",
    "filter.lfs.process=git-lfs filter-process",
    "filter.lfs.required=true",
)


def fetch_large_files(source: Source, clone: Path, stop: StopToken) -> Generator[Event, None, None]:
    """Replace the pointers with the files, from the server that belongs to `source`.

    Raises PreconditionError without git-lfs, and the errors of `git_failure`.
    """
    if shutil.which("git-lfs") is None:
        raise PreconditionError(
            "--fetch-lfs: git-lfs is missing.",
            "The large files can only be fetched with git-lfs.",
            f"Install it with {GET_LFS}, or omit --fetch-lfs.",
        )
    # A repository may name another server in its .lfsconfig; the command line takes precedence.
    settings = (*_FILTERS, f"lfs.url={lfs_address(source)}", "lfs.locksverify=false")
    config = [part for setting in settings for part in ("-c", setting)]
    environment = {key: value for key, value in fetch_environment(source).items() if key != "GIT_LFS_SKIP_SMUDGE"}
    result = yield from stream_child_as_messages(
        git_command(*config, "-C", str(clone), "lfs", "pull"),
        prefix="git-lfs",
        level="debug",
        limit_seconds=LFS_SECONDS,
        extra=environment,
        stop=stop,
    )
    if not result.ok:
        raise git_failure(f"Cannot fetch the large files of {source.shown}", result)
    # git rereads files that are as new as its index. Without the filters, it would take them for changed pointers.
    index = clone / ".git/index"
    os.utime(index, (index.stat().st_atime, index.stat().st_mtime + 2))


def lfs_address(source: Source) -> str:
    """The server that git-lfs uses by default for this source."""
    if source.kind == "path":
        return f"file://{source.url}"
    url = source.url.rstrip("/")
    return url if source.kind == "ssh" else f"{url if url.endswith('.git') else url + '.git'}/info/lfs"
