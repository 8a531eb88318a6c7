"""Reads batches of Parquet and Arrow tables. pyarrow is C++: it validates a file only on request, and can crash on a bad one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from engine.process.crash_check import check_in_child, checked_file

MAX_CHECK_SECONDS = 10.0
"""How long the check reads a large table."""
PARQUET, ARROW = b"PAR1", b"ARROW1"
ROWS_PER_BATCH = 256
"""Rows of Parquet and Arrow held in memory."""
BUFFER = 1 << 18
"""Bytes read at once. pyarrow's `pre_buffer` would keep an entire row group in memory."""


def check_table(file: BinaryIO, name: str) -> None:
    """Raise UnsafeError if reading the table crashes or hangs (`engine.process.crash_check`)."""
    check_in_child(
        __name__,
        "pyarrow.parquet",
        file,
        name,
        remedy="Check where it comes from. The program that wrote it may still read it: export it as JSON lines, and pass those.",
    )


def crash_check() -> None:
    """In the child: decode all columns until the time is up."""
    end = time.monotonic() + MAX_CHECK_SECONDS
    with checked_file() as file:
        is_parquet = file.peek(len(PARQUET)).startswith(PARQUET)
        for batch in _parquet(file) if is_parquet else arrow_batches(file):
            batch.validate(full=True)
            if time.monotonic() > end:
                return


def _parquet(file: BinaryIO) -> Iterator[Any]:
    """The batches of a Parquet file. Dictionary texts are not copied for each row that refers to them."""
    metadata = parquet_file(file).metadata
    columns = {
        name
        for group in range(metadata.num_row_groups)
        for name in columns_with_dictionaries(metadata.row_group(group))
    }
    table = parquet_file(file, read_dictionary=sorted(columns))
    yield from table.iter_batches(batch_size=ROWS_PER_BATCH, use_threads=False)


def columns_with_dictionaries(group: Any) -> list[str]:
    """Paths of the dictionary-encoded columns of a row group, whose texts are stored once and referred to by rows."""
    columns = (group.column(number) for number in range(group.num_columns))
    return [column.path_in_schema for column in columns if column.has_dictionary_page]


def parquet_file(source: Any, **options: Any) -> Any:
    """pyarrow's ParquetFile, with small buffers."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=BUFFER, **options)


def arrow_batches(source: Any) -> Iterator[Any]:
    """The batches of an Arrow file."""
    import pyarrow.ipc

    with pyarrow.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
