"""Write small files atomically, and hash files and plain data."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.core.failpoints import failpoint
from engine.core.reading import open_file

PART_NAME = re.compile(r"\..+\.(?P<pid>\d{1,9})\.part", re.DOTALL)
"""The name of a temporary file of `write_atomically`."""


def write_atomically(path: Path, data: bytes | Iterable[bytes], mode: int = 0o644) -> None:
    """Replace the contents of `path` by `data`, which may come in pieces. A reader sees the old file or the new one, never a
    part of it, even after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(
            os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode), "wb"
        ) as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            failpoint("sync")
            os.fsync(file.fileno())
        failpoint("rename")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, data: Any) -> None:
    text = json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False)
    write_atomically(path, (text + "\n").encode("utf-8", errors="backslashreplace"))


def sync_folder(path: Path) -> None:
    """Sync a folder, so that renames in it survive a power cut."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        failpoint("sync")
        os.fsync(folder)
    finally:
        os.close(folder)


def publish_folder(part: Path, final: Path) -> None:
    """Sync everything in `part` and rename it to `final`. After a power cut, the whole folder exists under that name, or none."""
    for path in sorted(part.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        with open_file(path) as file:
            failpoint("sync")
            os.fsync(file.fileno())
    sync_folder(part)
    failpoint("rename")
    part.rename(final)
    sync_folder(final.parent)


def new_git_blob_hash(size: int) -> hashlib._Hash:
    """Git's hash object for a file of `size` bytes, before its contents are added. The Hub identifies small files by this hash."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises UnsafeError if it is not a regular file, and OSError."""
    digest = hashlib.sha256()
    with open_file(path, follow_links=True) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(data: Any) -> str:
    """SHA-256 of plain data, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def size_of_folder(path: Path) -> int:
    """Total bytes of the regular files below `path`. Links are not followed."""
    return sum(entry.lstat().st_size for entry in path.rglob("*") if entry.is_file() and not entry.is_symlink())


def restrict_umask() -> None:
    """Keep other users from writing to anything that this process creates from now on, regardless of its umask at the start."""
    os.umask(os.umask(0o077) | 0o022)
