"""Finds the rows in a JSON document that is a single object: a page of the Hub's viewer, pandas' output, columns as lists, or
rows by id.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from engine.pairs.formats.values import NAMES_OF_ROLES
from engine.storage.jsonl import BadLine

Row = dict[str, Any]
ROWS = (
    "data", "rows", "records", "examples", "samples", "instances", "items", "pairs", "preferences", "prompts", "entries",
    "results", "dataset", "train", "test", "validation",
)  # fmt: skip
"""Keys under which an object holds its rows."""


def rows_in_document(rows: Iterator[tuple[int, Row | BadLine]]) -> Iterator[tuple[int, Row | BadLine]]:
    """The rows inside a document that is a single object; any other rows unchanged."""
    first = list(islice(rows, 2))
    if len(first) == 1 and isinstance(first[0][1], dict) and (inside := _rows_in(first[0][1])) is not None:
        return enumerate(map(_row, range(len(inside)), inside))
    return chain(first, rows)


def _row(number: int, value: Any) -> Row | BadLine:
    if isinstance(value, str):
        return {"text": value}
    return value if isinstance(value, dict) else BadLine(number, "it is neither an object nor a string")


def _rows_in(document: Row) -> list[Any] | None:
    key = next((name for name in ROWS if _is_list_of_rows(document.get(name))), None)
    if {"columns", "data"} <= document.keys() <= {"columns", "index", "data"}:  # pandas: split
        return [dict(zip(document["columns"], row, strict=False)) for row in document["data"]]
    if key is not None:
        return list(document[key])
    values = list(document.values())
    if _uniform(values, dict) and not any(NAMES_OF_ROLES & value.keys() for value in values):
        inner = [list(value) for value in values]
        if all(name.isdecimal() for name in inner[0]):  # pandas: columns
            return [{column: value[name] for column, value in document.items()} for name in inner[0]]
        return values if len(inner[0]) > 1 else None  # pandas: index; rows by id
    if _uniform(values, list) and values[0] and all(isinstance(value[0], (str, list)) for value in values):
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    return None


def _is_list_of_rows(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(row, str) for row in value) or (
        all(isinstance(row, dict) for row in value) and not NAMES_OF_ROLES & value[0].keys()
    )


def _uniform(values: list[Any], kind: type) -> bool:
    """Whether there are at least two values, all of this type and with the same keys or the same length."""
    if len(values) < 2 or not all(isinstance(value, kind) for value in values):
        return False
    return len({tuple(value) if kind is dict else len(value) for value in values}) == 1
