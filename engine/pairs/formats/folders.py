"""Find the data files of a folder and group them by split, as `datasets` and the Hub lay them out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from engine.core.errors import ConfigError
from engine.core.layout import RUN_JSON
from engine.pairs.formats.containers import DATA_SUFFIXES, NumberedRow, rows_of
from engine.pairs.formats.streams import without_compression_suffix
from engine.storage.files import sha256_of_file, sha256_of_json

_SHARD = re.compile(r"[-_.]?\d{3,}(-of-\d+)?(-[0-9a-f]{16,})?$")
_ABOUT = ("dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json")
"""Metadata files that `datasets` saves beside the data."""
_TEXTS_ABOUT = ("readme", "license", "licence", "notice", "changelog", "citation", "requirements")
"""Names of text files about the data, such as LICENSE.txt."""
_NAMES_NO_SPLIT = ("data", "cache", "default", "plain_text")


def local_splits(path: Path, option: str = "") -> dict[str, list[Path]]:
    """The splits of a local dataset. A single file is `train`; in a folder, each file or set of shards is a split
    with its name.

    Raises ConfigError if there are no data files.
    """
    if path.is_file() or (path.exists() and not path.is_dir()):
        return {"train": [path]}
    found: dict[str, list[Path]] = {}
    for file in _data_files(path) if path.is_dir() else ():
        found.setdefault(_split_of(file, path), []).append(file)
    if found:
        return found
    raise ConfigError(
        f"{option} {path}: no data files found.".strip(),
        f"Data files end in {', '.join(DATA_SUFFIXES)}, and may be compressed.",
        "Pass a file, a folder with one file per split, or a Hub id such as Anthropic/hh-rlhf.",
    )


def has_rows(path: Path) -> bool:
    """Whether the path is, or contains, a data file that is not empty."""
    files = _data_files(path) if path.is_dir() else [path]
    return any(file.is_file() and file.stat().st_size > 0 for file in files)


def rows_of_files(paths: Iterable[Path]) -> Iterator[NumberedRow]:
    """The rows of several files, numbered consecutively. Raises OSError, ConfigError."""
    first = 0
    for path in paths:
        number = -1
        for number, row in rows_of(path):
            yield first + number, row
        first += number + 1


def _data_files(folder: Path) -> list[Path]:
    """The data files in a folder and its subfolders, except in run folders."""
    of_runs = {file.parent for file in folder.rglob(RUN_JSON)}
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and PurePath(without_compression_suffix(file.name)).suffix.lower() in DATA_SUFFIXES
        and file.name not in _ABOUT
        and file.name.split(".")[0].casefold() not in _TEXTS_ABOUT
        and not of_runs.intersection(file.parents)
        and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    )


def _split_of(file: Path, folder: Path) -> str:
    """`data/train-00000-of-00002.parquet` and `train/data-00000-of-00001.arrow` both belong to train."""
    name = _SHARD.sub("", without_compression_suffix(file.name).split(".")[0])
    if name and name not in _NAMES_NO_SPLIT:
        return name
    parents = [part for part in file.relative_to(folder).parts[:-1] if part not in _NAMES_NO_SPLIT]
    return parents[-1] if parents else "train"


def hash_of_files(path: Path | None) -> str | None:
    """Hash of a file, or of a folder's data files and their names; None for None.

    Raises ConfigError if the path does not exist.
    """
    if path is None:
        return None
    if not path.exists():
        raise ConfigError(f"--pairs {path} does not exist.", "", "Pass the path of a file or a folder of pairs.")
    if not path.is_dir():
        return sha256_of_file(path)
    files = [file for files in local_splits(path, "--pairs").values() for file in files]
    return sha256_of_json([[str(file.relative_to(path)), sha256_of_file(file)] for file in files])
