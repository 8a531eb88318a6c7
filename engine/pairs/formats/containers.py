"""Stream the rows of a file in constant memory: JSON lines, JSON, CSV, Parquet, Arrow or plain text.

The container is recognised by the first bytes of the file; CSV and text, which have no signature, by its name.
"""

from __future__ import annotations

import ast
import csv
import io
import re
import sys
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path, PurePath
from typing import Any, cast

from engine.core.errors import ConfigError, UnsafeError
from engine.core.reading import open_file
from engine.pairs.formats.documents import rows_in_document
from engine.pairs.formats.json_values import is_json_document, json_values
from engine.pairs.formats.nested_values import as_text
from engine.pairs.formats.streams import (
    as_utf8,
    decompressed,
    head,
    seekable,
    with_newlines,
    without_compression_suffix,
)
from engine.pairs.formats.tables import (
    ARROW,
    PARQUET,
    ROWS_PER_BATCH,
    arrow_batches,
    check_table,
    columns_with_dictionaries,
    parquet_file,
)
from engine.pairs.formats.unsupported import refuse_unsupported
from engine.security.sanitize import visible_line
from engine.storage.jsonl import MAX_LINE_BYTES, BadLine, loads, loads_allowing_nan, read_records

Row = dict[str, Any]
NumberedRow = tuple[int, Row | BadLine]
"""(row number from 0, row). In line-based files blank lines are counted."""

MAX_BATCH_BYTES = 64 << 20
"""Largest batch of a table, counting each dictionary text once for every row that refers to it."""
MAX_ROW_BYTES = 512 << 20
"""Largest row of a table, counted the same way."""
MAX_PARSED_CELL_CHARACTERS = 1 << 20
"""Longest CSV cell that is parsed as a list or an object."""
DELIMITERS = ",\t;|"
CSV_SUFFIXES, TEXT_SUFFIXES = (".csv", ".tsv"), (".txt", ".text")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")
DATA_SUFFIXES = (*JSON_SUFFIXES, *CSV_SUFFIXES, *TEXT_SUFFIXES, *TABLE_SUFFIXES)


def rows_of(path: Path, *, last_line_may_lack_newline: bool = True) -> Iterator[NumberedRow]:
    """The rows of one file. Raises OSError, UnsafeError unless it is a regular file, and ConfigError if it cannot hold rows.

    last_line_may_lack_newline   False for our own files, where a line without a newline was never acknowledged
    """
    with open_file(path, follow_links=True) as file:
        yield from rows_from(file, path.name, last_line_may_lack_newline=last_line_may_lack_newline)


def rows_from(
    file: BufferedReader, name: str = "", *, last_line_may_lack_newline: bool = True
) -> Iterator[NumberedRow]:
    """Like `rows_of`, for an open file or a pipe with this `name`."""
    try:
        plain = decompressed(file)
        start = head(plain)
    except EOFError as error:
        yield 0, BadLine(0, str(error))
        return
    if plain is not file and start.startswith(_COMPRESSED_TWICE):
        yield from rows_from(
            plain, without_compression_suffix(name), last_line_may_lack_newline=last_line_may_lack_newline
        )
        return
    yield from _rows(plain, start, without_compression_suffix(name), last_line_may_lack_newline)


_TAB_SEPARATED_HEADER = re.compile(rb"[A-Za-z][\w -]{0,40}(?:\t[A-Za-z][\w -]{0,40})+\r?\n")
"""The first line of a table that a spreadsheet program saved as text."""
_COMPRESSED_TWICE = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")


def _rows(file: BufferedReader, start: bytes, name: str, may_lack_newline: bool) -> Iterator[NumberedRow]:
    if start.startswith((PARQUET, ARROW, b"\xff\xff\xff\xff")):
        return _table_rows(file, start, name)
    refuse_unsupported(start, name)
    text, suffix = as_utf8(file), PurePath(name).suffix.lower()
    try:
        if suffix not in CSV_SUFFIXES:  # a CSV cell may contain a carriage return
            text = with_newlines(text)
        beginning = head(text)
        if suffix in CSV_SUFFIXES or (suffix in TEXT_SUFFIXES and _TAB_SEPARATED_HEADER.match(beginning)):
            return _csv_rows(text)
        if suffix in TEXT_SUFFIXES and not beginning.lstrip().startswith(b'{"'):
            return _text_rows(text, may_lack_newline)
        one_per_line = suffix != ".json" and suffix in JSON_SUFFIXES
        if is_json_document(text, one_per_line=one_per_line):
            return json_values(text) if one_per_line else rows_in_document(json_values(text))
    except EOFError as error:
        return iter([(0, BadLine(0, str(error)))])
    read = loads_allowing_nan if may_lack_newline else loads
    records = read_records(cast(Any, text), last_line_may_lack_newline=may_lack_newline, read=read)
    return rows_in_document(records) if suffix == ".json" else records


# -- CSV and text -----------------------------------------------------------------------------------------------------


def _csv_rows(file: BufferedReader) -> Iterator[NumberedRow]:
    """Rows keyed by the header. A cell may hold a list or an object, as JSON or as a Python literal."""
    csv.field_size_limit(min(MAX_LINE_BYTES, sys.maxsize))
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    start = head(file)
    sep_line = _SEP.match(start)
    delimiter = sep_line[1].decode() if sep_line else _delimiter(start)
    escape = "\\" if _ESCAPED_QUOTE.search(start) else None
    reader = csv.reader(
        text,
        delimiter=delimiter,
        strict=True,
        escapechar=escape,
        doublequote=escape is None,
        skipinitialspace=delimiter != "\t",
    )
    header: list[str] | None = None
    number = -1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except EOFError as error:
            yield number + 1, BadLine(number + 1, str(error))
            return
        except csv.Error as error:
            number += 1
            yield number, BadLine(number, f"not a CSV row: {error}")
            continue
        if header is None and (sep_line or not any(cell.strip() for cell in cells)):
            sep_line = None  # skip Excel's `sep=` line, or an empty one
        elif header is None:
            header = [cell.strip() for cell in cells]
            _refuse_duplicate_columns(header)
        elif any(cell.strip() for cell in cells):
            number += 1
            yield number, _csv_row(number, header, cells)


_SEP = re.compile(rb"\"?sep=([,;\t|])\"?\r?\n")
_ESCAPED_QUOTE = re.compile(rb"[^\\\"]\\\"[^,;\t|\r\n\"]")
"""A quote escaped with a backslash inside a cell, as Spark and MySQL write it."""


def _refuse_duplicate_columns(header: list[str]) -> None:
    """Raises ConfigError: of two columns with the same name, only the last would be read."""
    duplicate = next((name for name in header if name and header.count(name) > 1), None)
    if duplicate is not None:
        raise ConfigError(
            f"The table has two columns named {visible_line(duplicate, 60)!r}.",
            "It is unclear which of them to read.",
            "Rename one of them.",
        )


def _csv_row(number: int, header: list[str], cells: list[str]) -> Row | BadLine:
    if len(cells) != len(header):
        return BadLine(number, f"it has {len(cells)} cells, but the header has {len(header)}")
    for cell in cells:
        if not cell.isascii() and any("\udc80" <= character <= "\udcff" for character in cell):
            return BadLine(number, "a cell is not valid UTF-8: save the table as UTF-8")
    return {name: _cell(cell) for name, cell in zip(header, cells, strict=True)}


_MISSING = frozenset(("NULL", "\\N", "NaN", "nan", "<NA>"))
"""How databases, pandas and R write a missing value."""


def _cell(cell: str) -> Any:
    if cell in _MISSING:
        return None
    if not cell.startswith(("[", "{")) or not cell.endswith(("]", "}")) or len(cell) > MAX_PARSED_CELL_CHARACTERS:
        return cell
    for read in (loads, ast.literal_eval):
        try:
            return read(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return cell


def _delimiter(start: bytes) -> str:
    """The most frequent delimiter in the first line, outside quotes."""
    first = start.strip().split(b"\n")[0].decode("utf-8", "replace")
    outside = "".join(first.split('"')[::2])
    return max(DELIMITERS, key=outside.count)


def _text_rows(file: BufferedReader, may_lack_newline: bool) -> Iterator[NumberedRow]:
    """One row per line, with the single column `text`."""
    number = -1
    while True:
        number += 1
        try:
            raw = file.readline(MAX_LINE_BYTES)
        except EOFError as error:
            yield number, BadLine(number, str(error))
            return
        if not raw or not (may_lack_newline or raw.endswith(b"\n")):
            return
        if raw.strip():
            yield number, _text_row(number, raw)


def _text_row(number: int, raw: bytes) -> Row | BadLine:
    if not raw.endswith(b"\n") and len(raw) == MAX_LINE_BYTES:
        return BadLine(number, f"longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        return {"text": raw.decode("utf-8").rstrip("\r\n")}
    except UnicodeDecodeError as error:
        return BadLine(number, f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not valid UTF-8")


# -- tables -----------------------------------------------------------------------------------------------------------


def _table_rows(file: BufferedReader, start: bytes, name: str) -> Iterator[NumberedRow]:
    """Parquet and Arrow, one batch at a time. Damage is reported and ends the file.

    Raises UnsafeError for a table that crashes pyarrow.
    """
    import pyarrow

    number = 0
    try:
        for batch in _batches(file, start, name):
            batch.validate(full=True)  # pyarrow itself trusts the offsets in a file, and reads wherever they point
            has_bytes = "binary" in str(batch.schema)
            for offset in range(0, batch.num_rows, ROWS_PER_BATCH):
                for row in batch.slice(offset, ROWS_PER_BATCH).to_pylist():
                    yield number, as_text(row) if has_bytes else row
                    number += 1
    except (pyarrow.ArrowException, OSError, EOFError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a disk error, not damage
        yield number, BadLine(number, f"the table is damaged from here on: {str(error).splitlines()[0]}")


def _batch_size(table: Any, source: Any, group: int) -> int:
    """How many rows of a row group to read at once: fewer if its dictionaries hold long texts, which each row would copy.

    Raises UnsafeError if even one row would not fit into memory.
    """
    metadata = table.metadata.row_group(group)
    dictionary_columns = columns_with_dictionaries(metadata)
    if not dictionary_columns or not metadata.num_rows:
        return ROWS_PER_BATCH
    as_dictionaries = parquet_file(source, read_dictionary=dictionary_columns)
    first = next(as_dictionaries.iter_batches(batch_size=1, row_groups=[group]), None)
    longest = max(map(_longest_text, first.columns), default=0) if first is not None else 0
    values = max(metadata.column(number).num_values for number in range(metadata.num_columns)) / metadata.num_rows
    row_bytes = longest * max(values, 1.0)
    if row_bytes > MAX_ROW_BYTES:
        raise UnsafeError(
            f"A row of the table expands to {row_bytes:,.0f} bytes.",
            "It repeats one long text so often that it would fill the memory.",
            "Check where the file comes from, and keep only the columns that hold prompts or pairs.",
        )
    return max(1, min(ROWS_PER_BATCH, int(MAX_BATCH_BYTES // max(row_bytes, 1))))


def _longest_text(array: Any) -> int:
    """Bytes of the longest text in the dictionaries of an array, including those inside lists and structs."""
    import pyarrow.compute
    import pyarrow.types

    if pyarrow.types.is_dictionary(array.type):
        texts = array.dictionary
        kinds = (
            pyarrow.types.is_string,
            pyarrow.types.is_large_string,
            pyarrow.types.is_binary,
            pyarrow.types.is_large_binary,
        )
        if not any(is_kind(texts.type) for is_kind in kinds) or not len(texts):
            return 0
        return int(pyarrow.compute.max(pyarrow.compute.binary_length(texts)).as_py() or 0)
    if pyarrow.types.is_struct(array.type):
        return max(map(_longest_text, array.flatten()), default=0)
    if pyarrow.types.is_list(array.type) or pyarrow.types.is_large_list(array.type):
        return _longest_text(array.values)
    return 0


def _batches(file: BufferedReader, start: bytes, name: str) -> Iterator[Any]:
    if not start.startswith((PARQUET, ARROW)):
        import pyarrow.ipc

        with pyarrow.ipc.open_stream(file) as reader:
            yield from reader
        return
    source = seekable(file)
    check_table(source, name)
    if start.startswith(ARROW):
        yield from arrow_batches(source)
        return
    table = parquet_file(source)
    for group in range(table.num_row_groups):
        yield from table.iter_batches(batch_size=_batch_size(table, source, group), row_groups=[group])
