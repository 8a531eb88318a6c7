"""Read JSON documents: one reader for all of them, which limits bytes and depth and checks types.

Files in a run folder may have been changed by an editor, an interrupted copy, another version, or an attacker. Use
`read_json_or_none` for a file that can be made again, and `read_json` for one whose damage must be reported.
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
"""The largest document of a run, the metrics of a long training, has a few million bytes."""
RESTORE_OR_RERUN = "Restore the file from a copy, or move it aside and run the same command again."


def read_json(
    path: Path,
    shape: type[T],
    *,
    max_bytes: int = MAX_DOCUMENT_BYTES,
    why: str = "",
    what_to_do: str = RESTORE_OR_RERUN,
) -> T:
    """The document in a file as `shape` (a dataclass, a pydantic model, dict[str, int], …).

    why          a sentence to add to the reason of an error
    what_to_do   the next step for the user after an error

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
        f"Cannot read {visible_line(str(path))}.", f"{visible_line(fault, 400)} {why}".strip(), what_to_do
    )


def read_json_or_none(path: Path, shape: type[T], *, max_bytes: int = MAX_DOCUMENT_BYTES) -> T | None:
    """`read_json` for a file that is optional or can be made again: None if it is missing, unreadable or damaged. Raises only
    UnsafeError, because a run never creates a pipe or a link.
    """
    try:
        return read_json(path, shape, max_bytes=max_bytes)
    except (OSError, DamagedState):
        return None
