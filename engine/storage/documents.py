"""JSON documents that the program reads back: one reader for all of them, with a limit on bytes and depth, and types.

Files in a run folder may have been changed by an editor, an interrupted copy, another version, or a stranger. Either a
damaged file can be replaced (`read_json_or_none`), or reading it fails with its name (`read_json`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from engine.core.errors import DamagedState
from engine.core.reading import read_file
from engine.core.typed import validated
from engine.security.sanitize import visible_line
from engine.storage.jsonl import loads

T = TypeVar("T")

MAX_DOCUMENT_BYTES = 64 << 20
"""Bytes. The largest that a run writes, the metrics of a long training, has a few million."""
RESTORE_OR_RERUN = "Put the file back from a copy, or move it aside and run the same command again."


def read_json(
    path: Path,
    shape: type[T],
    *,
    max_bytes: int = MAX_DOCUMENT_BYTES,
    why: str = "",
    what_to_do: str = RESTORE_OR_RERUN,
) -> T:
    """The document in a file, as `shape` has it (a dataclass, a pydantic model, dict[str, int], …).

    why          a sentence beside what is wrong with it
    what_to_do   for the person who meets it

    Raises DamagedState with the file's name if it is not such a document, UnsafeError if it is not a regular file, and
    OSError if the file is missing or unreadable.
    """
    try:
        return validated(shape, loads(read_file(path, max_bytes)))
    except IsADirectoryError:
        fault = "It is a folder."
    except ValueError as error:
        fault = f"{str(error)[:1].upper()}{str(error)[1:]}."
    raise DamagedState(
        f"{visible_line(str(path))} cannot be read.", f"{visible_line(fault, 400)} {why}".strip(), what_to_do
    )


def read_json_or_none(path: Path, shape: type[T], *, max_bytes: int = MAX_DOCUMENT_BYTES) -> T | None:
    """For a file that is optional or can be made again: None if it is missing, unreadable or damaged. Raises only
    UnsafeError: a pipe or a link there was not put there by a run.
    """
    try:
        return read_json(path, shape, max_bytes=max_bytes)
    except (OSError, DamagedState):
        return None
