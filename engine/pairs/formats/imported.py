"""The pairs of `--pairs`: read, counted, each under an id of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError
from engine.pairs.data.record import Pair
from engine.pairs.formats.reading import BadRows, Reading, pairs_of
from engine.pairs.formats.sources import rows_of_place
from engine.storage.jsonl import BadLine


def read_imported_pairs(config: Stage3Config, bad: BadRows) -> Iterator[Pair]:
    """The pairs of `--pairs`, one at a time; rows that are none go to `bad`. An id that stands twice gets a number behind it.

    Raises, at the end, DataError if more rows than `--max-bad-rows` are no pair; before it ConfigError if there is
    nothing to read.
    """
    if config.pairs is None:
        return
    place, seen = config.pairs.expanduser(), Counter[str]()
    if not place.exists():
        raise ConfigError(
            f"--pairs {place}: there is no such file.", "", "Give the path of a file or a folder of pairs."
        )
    try:
        for _, read in pairs_of(rows_of_place(place), Reading.of(config)):
            bad.rows += 1
            if isinstance(read, BadLine):
                bad.add(read)
                continue
            seen[read.id] += 1
            yield read if seen[read.id] == 1 else replace(read, id=f"{read.id}-{seen[read.id]}")
    except OSError as error:
        raise ConfigError(f"--pairs {place} cannot be read.", str(error), "Give another file.") from error
    bad.refuse(str(place), config.max_bad_rows)
    if not bad.rows:
        raise ConfigError(f"--pairs {place}: there is nothing in it.", "", "Give a file with one pair a row.")
