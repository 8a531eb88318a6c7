"""A table of operating system errors by errno: the meaning, the exit code and the remedy of each.

Libraries, git and uv report these errors in their own words; `errno_of` finds the number in their messages.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.core.errors import ConfigError, DiskError, MemoryExhausted, PreconditionError, Stage3Error
from engine.core.users import owner_of
from engine.security.sanitize import visible_line

THEN_RERUN = "then run the same command again: everything saved so far is kept"
MAX_REASON_CHARACTERS = 400


@dataclass(frozen=True)
class Meaning:
    """What one errno means for the user."""

    error: type[Stage3Error]
    what: str
    """Used if the caller does not describe what it was doing."""
    why: str
    what_to_do: str


MEANINGS: dict[int, Meaning] = {
    errno.ENOSPC: Meaning(
        DiskError,
        "Writing to disk failed.",
        "No space is left on the disk.",
        f"Free some space (`df -h`), {THEN_RERUN}.",
    ),
    errno.EDQUOT: Meaning(
        DiskError,
        "Writing to disk failed.",
        "Your quota on this disk is used up, even if the disk itself has free space.",
        f"Delete some of your files, or ask for a larger quota (`quota -s`), {THEN_RERUN}.",
    ),
    errno.EFBIG: Meaning(
        DiskError,
        "Writing to disk failed.",
        "A file would exceed the size limit of this process or of the file system.",
        f"Raise the limit (`ulimit -f unlimited`), or set --output-dir to a file system that allows larger files, {THEN_RERUN}.",
    ),
    errno.EROFS: Meaning(
        DiskError,
        "Writing to disk failed.",
        "The file system is read-only. The kernel remounts it that way after a disk error.",
        f"Check `dmesg` for the reason and remount it for writing, or use another --output-dir, {THEN_RERUN}.",
    ),
    errno.EIO: Meaning(
        DiskError,
        "The disk reported an error.",
        "A read or write failed: the device or its connection is failing.",
        "Check `dmesg`, copy the run folder to another disk while it is still readable, and continue there with --output-dir.",
    ),
    errno.ESTALE: Meaning(
        DiskError,
        "The disk reported an error.",
        "The network file system lost track of the file (stale handle).",
        f"Remount it, {THEN_RERUN}.",
    ),
    errno.EMFILE: Meaning(
        PreconditionError,
        "Too many files are open.",
        "This process has reached its limit of open files.",
        f"Raise the limit (`ulimit -n 4096`), {THEN_RERUN}.",
    ),
    errno.ENFILE: Meaning(
        PreconditionError,
        "Too many files are open.",
        "The whole system has reached its limit of open files.",
        f"Close programs that keep many files open, or raise fs.file-max, {THEN_RERUN}.",
    ),
    errno.ENOMEM: Meaning(
        MemoryExhausted,
        "Memory ran out.",
        "The system has no more memory for this process.",
        f"Close other programs, or raise the limit (`ulimit -v unlimited`, or the container's), {THEN_RERUN}.",
    ),
    errno.ENAMETOOLONG: Meaning(
        ConfigError,
        "A file name is too long.",
        "A name may have at most 255 bytes, and a path 4,095.",
        "Use a shorter path, for example with --output-dir.",
    ),
    errno.ENOTDIR: Meaning(
        ConfigError,
        "A file is where a folder is needed.",
        "One part of the path is not a folder.",
        "Use another path, for example with --output-dir.",
    ),
    errno.EACCES: Meaning(
        DiskError,
        "Permission denied.",
        "This user does not have access to the file.",
        "Run as the user who owns it, change its owner (chown), or use another path (--output-dir).",
    ),
}
MEANINGS[errno.EPERM] = MEANINGS[errno.EACCES]
PERMISSION_ERRNOS = frozenset({errno.EACCES, errno.EPERM})
DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})

NO_INODES = (
    "The disk has free space but no free inodes: it cannot hold more files.",
    f"Delete some files, even small ones (`df -i`), {THEN_RERUN}.",
)

_ERRNO_IN_TEXT = re.compile(r"\(?os error (\d+)\)?|Errno (\d+)", re.IGNORECASE)
# Without EACCES: ssh, the Hub and servers also report "Permission denied".
_ERRNO_BY_MESSAGE = {os.strerror(number): number for number in MEANINGS if number not in PERMISSION_ERRNOS}
_ERRNO_BY_PATTERN: tuple[tuple[re.Pattern[str], int], ...] = (
    # torch, safetensors and git report a full disk in their own words.
    (
        re.compile(r"iostream error|unexpected pos \d+ vs|StorageFull|PytorchStreamWriter|Out of diskspace"),
        errno.ENOSPC,
    ),
    # The dynamic linker and the interpreter, when `ulimit -v` or a container's limit is reached.
    (re.compile(r"failed to map segment from shared object|can't start new thread"), errno.ENOMEM),
)


def system_error(error: BaseException, what: str = "") -> Stage3Error | None:
    """The Stage3Error for a system error that `error` or one of its causes carries; None for other errors.

    what   a sentence about what failed because of it
    """
    number = errno_of(error)
    return None if number is None else error_of_errno(number, what, str(error), _file_of(error))


def error_of_errno(number: int, what: str = "", reported: str = "", file: Path | None = None) -> Stage3Error:
    """The error for an errno in the table.

    what       a sentence about what failed
    reported   the original message
    file       the file concerned
    """
    meaning = MEANINGS[number]
    why, what_to_do = meaning.why, meaning.what_to_do
    if number in DISK_FULL_ERRNOS and file is not None and _lacks_inodes(file):
        why, what_to_do = NO_INODES
    if number in PERMISSION_ERRNOS and file is not None:
        why = f"{why} {_owner_sentence(file)}".rstrip()
    reported = visible_line(reported, MAX_REASON_CHARACTERS)
    return meaning.error(what or meaning.what, f"{why} ({reported})" if reported else why, what_to_do)


def errno_of(error: BaseException) -> int | None:
    """The errno from the table that an exception or one of its causes carries or mentions; None if there is none."""
    number = carried_errno(error)
    if number is not None:
        return number
    return next((found for link in cause_chain(error) if (found := errno_in(str(link))) is not None), None)


def carried_errno(error: BaseException) -> int | None:
    """The errno from the table that an exception or one of its causes carries; None if none does."""
    for link in cause_chain(error):
        if isinstance(link, OSError) and link.errno in MEANINGS:
            return link.errno
        if isinstance(link, MemoryError):
            return errno.ENOMEM
    return None


def errno_in(text: str) -> int | None:
    """The errno from the table that a text mentions, as Rust, git, uv and C libraries write it; None if there is none."""
    for match in _ERRNO_IN_TEXT.finditer(text):
        if (number := int(match[1] or match[2])) in MEANINGS:
            return number
    for words, number in _ERRNO_BY_MESSAGE.items():
        if words in text:
            return number
    return next((number for pattern, number in _ERRNO_BY_PATTERN if pattern.search(text)), None)


def cause_chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes, newest first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _file_of(error: BaseException) -> Path | None:
    names = (link.filename for link in cause_chain(error) if isinstance(link, OSError))
    name = next((name for name in names if isinstance(name, str)), None)
    return None if name is None else Path(name)


def _owner_sentence(file: Path) -> str:
    """A sentence that names the owner of the file, or of the folder it would be in."""
    existing = next((path for path in (file, *file.parents) if os.access(path, os.F_OK)), None)
    return "" if existing is None else f"{visible_line(str(existing))} belongs to {owner_of(existing)}."


def _lacks_inodes(file: Path) -> bool:
    """Whether the disk of `file` (which need not exist) has free bytes but no free inode."""
    for path in (file, *file.parents):
        try:
            disk = os.statvfs(path)
        except OSError:  # it does not exist: try its parent folder
            continue
        return disk.f_files > 0 and disk.f_favail == 0 and disk.f_bavail > 0
    return False
