"""Reads the rows of a file, a folder, standard input (`-`) or a dataset on the Hub, or only those of some splits."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

from engine.core.errors import ConfigError, NetworkError
from engine.hub import cached_snapshot, is_offline
from engine.machine.error_mapping import as_stage3_error
from engine.pairs.formats.containers import NumberedRow, rows_from, rows_of
from engine.pairs.formats.folders import local_splits, rows_of_files

STDIN = Path("-")
_SPLIT_TERM = re.compile(r"^\s*([\w.-]+)\s*(?:\[\s*(-?\d*%?)\s*:\s*(-?\d*%?)\s*\])?\s*$")


class SplitTerm(NamedTuple):
    """`test[:1000]` is ("test", "", "1000")."""

    name: str
    start: str
    stop: str


def parse_split(expression: str) -> list[SplitTerm]:
    """Parse `test[:1000]+train[:1500]`: names, slices by row or per cent, and sums of them. Raises ConfigError."""
    terms = []
    for part in expression.split("+"):
        match = _SPLIT_TERM.match(part)
        if match is None:
            raise ConfigError(
                f"--split {expression!r}: {part.strip()!r} is not a valid split.",
                "A split is a name with an optional slice.",
                'Write it like "train", "test[:1000]" or "test[:1000]+train[10%:20%]".',
            )
        terms.append(SplitTerm(match[1], match[2] or "", match[3] or ""))
    return terms


def slice_of(term: SplitTerm, length: int) -> slice:
    """The slice of a term in a split of `length` rows; percentages are rounded to the nearest row."""

    def bound(text: str) -> int | None:
        if not text:
            return None
        return round(int(text[:-1]) * length / 100) if text.endswith("%") else int(text)

    return slice(bound(term.start), bound(term.stop))


def rows_of_splits(path: Path, expression: str, option: str) -> Iterator[NumberedRow]:
    """The rows of some splits of a local file or folder. Raises ConfigError."""
    for term, files in files_of_splits(path, expression, option):
        try:
            yield from _part(files, term)
        except OSError as error:
            raise ConfigError(f"Cannot read {path}.", str(error), "Download it again, or pass another file.") from error


def files_of_splits(path: Path, expression: str, option: str) -> list[tuple[SplitTerm, list[Path]]]:
    """The files of each split that an expression names. Raises ConfigError if one does not exist."""
    terms, files = parse_split(expression), local_splits(path, option)
    for term in terms:
        if term.name not in files:
            raise _no_such_split(expression, term.name, str(path), files)
    return [(term, files[term.name]) for term in terms]


def _no_such_split(expression: str, name: str, source: str, available: Iterable[str]) -> ConfigError:
    names = sorted(available)
    return ConfigError(
        f"--split {expression!r}: {source} has no split {name!r}.",
        f"Its splits: {', '.join(names)}. A single file has one split, train.",
        f'Use one of them, for example --split "{names[0]}[:100]".',
    )


def _part(files: list[Path], term: SplitTerm) -> Iterator[NumberedRow]:
    """The rows of one term. If its slice depends on the number of rows, the files are read twice rather than kept in memory."""
    if any(character in term.start + term.stop for character in "-%"):
        length = sum(1 for _ in rows_of_files(files))
        start, stop, _ = slice_of(term, length).indices(length)
        return islice(rows_of_files(files), start, max(start, stop))
    return islice(rows_of_files(files), int(term.start or 0), int(term.stop) if term.stop else None)


def rows_of_source(source: Path, split: str | None = None) -> Iterator[NumberedRow]:
    """All rows of a file, a folder or standard input, or only those of `split`.

    Raises OSError, ConfigError.
    """
    if source == STDIN:
        return rows_from(cast(BufferedReader, sys.stdin.buffer))
    if split is not None:
        return rows_of_splits(source, split, "")
    if source.is_dir():
        return rows_of_files(file for files in local_splits(source).values() for file in files)
    return rows_of(source)


def hub_rows(name: str, split: str, revision: str, token: str | None) -> Iterator[NumberedRow]:
    """The rows of a dataset on the Hub, read through the disk cache.

    Raises ConfigError if it has no such split, NetworkError, and the Hub's other errors.
    """
    from datasets import load_dataset

    try:
        with _hub_errors(f"{name} ({split})"):
            yield from enumerate(load_dataset(**_on_hub(name, revision, token), split=split))
    except ValueError as error:  # "Unknown split", among others
        available = hub_splits(name, revision, token)
        unknown = [term.name for term in parse_split(split) if term.name not in available]
        if not unknown:
            raise
        raise _no_such_split(split, unknown[0], f"the dataset {name}", available) from error


def hub_splits(name: str, revision: str, token: str | None) -> list[str]:
    """The names of a dataset's splits. Raises as `hub_rows`."""
    from datasets import get_dataset_split_names

    with _hub_errors(name):
        return [str(split) for split in get_dataset_split_names(**_on_hub(name, revision, token))]


def _on_hub(name: str, revision: str, token: str | None) -> dict[str, Any]:
    if is_offline() and (here := cached_snapshot(name, "dataset", revision)):
        return {"path": str(here)}  # otherwise `datasets` loads its newest copy, whatever the revision
    return {"path": name, "revision": revision, "token": token}


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, TimeoutError, OSError) as error:
        raise as_stage3_error(error) or NetworkError(
            f"Cannot load the dataset {what}.",
            str(error),
            "Check the network, or pass a local file.",
        ) from error
