"""Read untrusted files safely: only regular files, opened once, with a limit on bytes.

A path in a run folder, or one that a user passes, may be a link to any file on this machine, a named pipe that blocks forever
when opened, or a file without end. Every reader opens files through this module, which checks the open file, not the path.
"""

from __future__ import annotations

import errno
import os
import stat
import tomllib
from io import BufferedReader
from pathlib import Path
from typing import Any

from engine.core.errors import UnsafeError
from engine.core.nesting import TOO_DEEP, check_nesting
from engine.core.sizes import format_size
from engine.security.sanitize import visible_line

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
    stat.S_IFLNK: "a link",
}


MAX_CONFIG_BYTES = 4 << 20
"""Bytes of a configuration, a constitution or worked examples; real ones have a few thousand."""


ALWAYS_ALLOWED_BYTES = 256 << 20
"""Compressed data of any size may decompress to this many bytes."""
MAX_DECOMPRESSION_RATIO = 200
"""The limit for larger data, as a multiple of its compressed size. Text reaches 3 to 10, a column of equal values 50."""


class TooLarge(ValueError):
    """The file has more bytes than is plausible for its kind."""


def open_file(path: Path, *, follow_links: bool = False) -> BufferedReader:
    """Open a regular file for reading.

    follow_links   for paths that a user passes, which may be links or a pipe of this process; a run folder contains no links

    Raises UnsafeError for a link, a pipe, a socket or a device, and OSError if the path is a folder or cannot be opened.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        file = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link that must not be followed; a socket
            refuse_special_file(path, path.lstat().st_mode)
        raise
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode) or (follow_links and stat.S_ISFIFO(mode) and _is_open_here(path)):
        os.set_blocking(file, True)
        return os.fdopen(file, "rb")
    os.close(file)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise _special_file_error(path, mode)


def read_file(path: Path, max_bytes: int, *, follow_links: bool = False) -> bytes:
    """The contents of a regular file. Raises TooLarge for more than `max_bytes`, and the errors of `open_file`."""
    with open_file(path, follow_links=follow_links) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise TooLarge(f"it is larger than {format_size(max_bytes)}")
    return data


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file that a user passes. Raises ValueError, UnsafeError, OSError."""
    try:
        found = tomllib.loads(read_file(path, MAX_CONFIG_BYTES, follow_links=True).decode("utf-8"))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    check_nesting(found)
    return found


def read_yaml(path: Path) -> Any:
    """A YAML or JSON document that a user passes. Raises ValueError, UnsafeError, OSError."""
    import yaml  # slow to import, and rarely needed

    try:
        found = yaml.safe_load(read_file(path, MAX_CONFIG_BYTES, follow_links=True).decode("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    check_nesting([found])
    return found


def refuse_special_file(path: Path, mode: int) -> None:
    """Raises UnsafeError if a file of this mode is neither a regular file nor a folder."""
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise _special_file_error(path, mode)


def _is_open_here(path: Path) -> bool:
    """Whether the path is a file descriptor of this process, like a shell's `<(command)`: opening it never blocks."""
    return path.parent.resolve() == Path(f"/proc/{os.getpid()}/fd")


def _special_file_error(path: Path, mode: int) -> UnsafeError:
    kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
    return UnsafeError(
        f"{visible_line(str(path))} is {kind}, not a regular file.",
        "Reading it could block forever, never end, or expose another file on this machine.",
        "Use a regular file instead. Commands that read standard input accept - in place of a file.",
    )
