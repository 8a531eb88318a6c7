"""Read files that somebody else may have written: regular files only, opened once, with a limit on bytes.

A path in a run folder, or one given by a person, may be a link to any file of this machine, a named pipe on which opening blocks
for ever, or an endless file. Every reader opens through here, and checks the open file, not the path.
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
"""Bytes of a configuration, a constitution or worked examples; people write a few thousand."""


ALWAYS_ALLOWED_BYTES = 256 << 20
"""Bytes that compressed data may always decompress to, however small it is."""
MAX_DECOMPRESSION_RATIO = 200
"""Beyond that, times its own size. Texts decompress to three to ten times theirs, columns of one value to fifty."""


class TooLarge(ValueError):
    """The file has more bytes than anything that belongs there."""


def open_file(path: Path, *, follow_links: bool = False) -> BufferedReader:
    """Open a regular file to read it.

    follow_links   for paths given by a person, which may be links, or a pipe of this process; nothing in a run folder is a link

    Raises UnsafeError for a link, a pipe, a socket or a device, and OSError for what cannot be opened, a folder among it.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        file = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link that is not to be followed; a socket
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


def read_file(path: Path, most: int, *, follow_links: bool = False) -> bytes:
    """A whole regular file of at most so many bytes. Raises TooLarge, and as `open_file` does."""
    with open_file(path, follow_links=follow_links) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise TooLarge(f"it has more than {format_size(most)}")
    return data


def read_toml(path: Path) -> dict[str, Any]:
    """A configuration file given by a person. Raises ValueError, UnsafeError, OSError."""
    try:
        found = tomllib.loads(read_file(path, MAX_CONFIG_BYTES, follow_links=True).decode("utf-8"))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    check_nesting(found)
    return found


def read_yaml(path: Path) -> Any:
    """A YAML or JSON document given by a person. Raises ValueError, UnsafeError, OSError."""
    import yaml  # takes a while, and few need it

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
    kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
    return UnsafeError(
        f"{visible_line(str(path))} is {kind}, not a regular file.",
        "Reading it could wait for ever, have no end, or show another file of this machine.",
        "Put a regular file in its place. A command that reads standard input takes - for it.",
    )
