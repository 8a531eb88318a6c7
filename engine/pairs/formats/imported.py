"""Reads the pairs of `--pairs` and gives them unique ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError
from engine.pairs.data.record import Pair
from engine.pairs.formats.reading import BadRows, RowReader, pairs_of
from engine.pairs.formats.sources import rows_of_source
from engine.storage.jsonl import BadLine


def read_imported_pairs(config: Stage3Config, bad: BadRows) -> Iterator[Pair]:
    """Yield the pairs of `--pairs`; rows that are not pairs go to `bad`. Repeated ids get a numeric suffix.

    Raises ConfigError if there is nothing to read and, at the end, DataError if the share of bad rows exceeds
    `--max-bad-rows`.
    """
    if config.pairs is None:
        return
    source, seen = config.pairs.expanduser(), Counter[str]()
    if not source.exists():
        raise ConfigError(f"--pairs {source} does not exist.", "", "Pass the path of a file or a folder of pairs.")
    try:
        for _, read in pairs_of(rows_of_source(source), RowReader.of(config)):
            bad.rows += 1
            if isinstance(read, BadLine):
                bad.add(read)
                continue
            seen[read.id] += 1
            yield read if seen[read.id] == 1 else replace(read, id=f"{read.id}-{seen[read.id]}")
    except OSError as error:
        raise ConfigError(f"Cannot read --pairs {source}.", str(error), "Pass another file.") from error
    bad.raise_if_too_many(str(source), config.max_bad_rows)
    if not bad.rows:
        raise ConfigError(f"--pairs {source} is empty.", "", "Pass a file with one pair per row.")
