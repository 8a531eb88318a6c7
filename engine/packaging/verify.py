"""Verify an archive against its manifest (names, kinds, sizes, hashes) before any of it is used."""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from engine.core.errors import DamagedState
from engine.core.reading import ALWAYS_ALLOWED_BYTES, open_file
from engine.core.sizes import format_size
from engine.packaging.contents import LISTED
from engine.packaging.zip_writer import MANIFEST
from engine.storage.jsonl import loads

LARGEST_MANIFEST = 16 << 20
"""Bytes; a manifest has a few lines for each of about twenty files."""
MAX_DECOMPRESSION_RATIO = 50
"""How many times its own size an archive may expand to. Most of it is the adapter, stored uncompressed; texts expand tenfold."""

_NAME = re.compile(r"[A-Za-z0-9._/-]+")
_DAMAGE_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, NotImplementedError),
    *(ValueError, LookupError, TypeError, AttributeError),
)
"""What zipfile and json raise for damaged data."""


def read_back(archive: Path) -> dict[str, str]:
    """The hash of each file in an archive, by name without the top folder.

    Raises DamagedState if the content does not match the manifest, or if it contains anything that our archives never do.
    """
    with open_file(archive) as file:
        return {name: hashlib.sha256(data).hexdigest() for name, data in read_files(file, archive).items()}


def read_files(file: IO[bytes], archive: Path) -> dict[str, bytes]:
    """All files of the archive that is open as `file`, by name without the top folder. Raises DamagedState as `read_back`."""
    try:
        with zipfile.ZipFile(file) as packed:
            entries = packed.infolist()
            problem = _invalid_entry(entries) or _expands_too_far(entries, archive.stat().st_size)
            files = {} if problem else {_inner(entry): packed.read(entry) for entry in entries}
        problem = problem or _manifest_mismatch(files)
    except _DAMAGE_ERRORS as error:
        problem = str(error) or type(error).__name__
    if problem:
        raise DamagedState(
            f"The archive {archive} does not read back as it was written.",
            f"{problem[:1].upper()}{problem[1:]}.",
            "Check the disk, then rebuild it with `stage3-tui --auto --from packaging`.",
        )
    return files


def _inner(entry: zipfile.ZipInfo) -> str:
    return entry.filename.partition("/")[2]


def _invalid_entry(entries: list[zipfile.ZipInfo]) -> str:
    """Why these entries cannot be those of one of our archives; empty if they can."""
    names = [entry.orig_filename for entry in entries]
    if len({name.partition("/")[0] for name in names}) != 1:
        return "its names do not all start with the same folder"
    if len({name.lower() for name in names}) != len(names):
        return "a name occurs twice"
    for entry in entries:
        name = entry.orig_filename
        top, _, inner = name.partition("/")
        parts = name.split("/")
        if (
            not all(parts)
            or {".", ".."} & {*parts}
            or "\\" in name
            or not top.isprintable()
            or not _NAME.fullmatch(inner)
        ):
            return f"the name {name!a} leaves the folder"
        if inner not in (*LISTED, MANIFEST):
            return f"{name!a} is not on the allow-list"
        if not stat.S_ISREG(entry.external_attr >> 16):
            return f"{name!a} is not a regular file"
    return "" if any(_inner(entry) == MANIFEST for entry in entries) else "it has no manifest"


def _expands_too_far(entries: list[zipfile.ZipInfo], size: int) -> str:
    """Why these are more bytes than an archive of this size can hold; empty if they are not. zipfile reads no more of an entry
    than its recorded size.
    """
    if sum(entry.compress_size for entry in entries) > size:
        return "its files overlap"
    for entry in entries:
        if _inner(entry) == MANIFEST and entry.file_size > LARGEST_MANIFEST:
            return f"its manifest has more than {format_size(LARGEST_MANIFEST)}"
    if sum(entry.file_size for entry in entries) > max(ALWAYS_ALLOWED_BYTES, MAX_DECOMPRESSION_RATIO * size):
        return f"it expands to more than {MAX_DECOMPRESSION_RATIO} times its size"
    return ""


def _manifest_mismatch(files: dict[str, bytes]) -> str:
    """The first difference between the files and their manifest; empty if there is none."""
    listed: dict[str, Any] = loads(files[MANIFEST])["files"]
    for name in sorted({*listed, *files} - {MANIFEST}):
        data, facts = files.get(name), listed.get(name)
        if data is None or facts is None:
            return f"{name} is {'not in it' if data is None else 'not in its manifest'}"
        if (facts["bytes"], facts["sha256"]) != (len(data), hashlib.sha256(data).hexdigest()):
            return f"{name} does not match its manifest"
    return ""
