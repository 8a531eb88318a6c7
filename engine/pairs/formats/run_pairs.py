"""Reads the pairs of a run's own file. stage3-tui writes complete lines, so a damaged line is an error and is not left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine.core.errors import DamagedState
from engine.pairs.data.record import Pair
from engine.pairs.formats.reading import read_pairs
from engine.security.sanitize import visible_line
from engine.storage.jsonl import BadLine


def run_pairs(path: Path) -> Iterator[tuple[int, Pair]]:
    """Yield (line from 0, pair), except for a last line without a newline. Raises DamagedState if a line is not a pair."""
    for line, pair in read_pairs(path, last_line_may_lack_newline=False):
        if isinstance(pair, BadLine):
            raise damaged_line(path, pair, "stage3-tui writes complete lines, so another program changed the file.")
        yield line, pair


def require_whole_lines(path: Path) -> None:
    """Raise as `run_pairs` does if a line is damaged; a missing file has no lines."""
    if path.is_file():
        for _ in run_pairs(path):
            pass


def damaged_line(path: Path, bad: BadLine, why: str) -> DamagedState:
    """The error for a damaged line in a file of the run."""
    return DamagedState(
        f"Line {bad.line + 1} of {visible_line(str(path))} is damaged: {bad.reason}.",
        why,
        "Repair or remove that line, then run the same command again: missing pairs are made again.",
    )
