"""Batches of Parquet and Arrow tables. pyarrow is C++: it checks what a file says only if it is asked to, and can crash."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from engine.process.crash_check import check_in_child, checked_file

MAX_SURVEY_SECONDS = 10.0
"""How long the first look reads on in a large table."""
PARQUET, ARROW = b"PAR1", b"ARROW1"
ROWS_PER_BATCH = 256
"""Rows of Parquet and Arrow held in memory."""
BUFFER = 1 << 18
"""Bytes read at once: pyarrow's `pre_buffer` would hold a whole row group."""


def look_at_table(file: BinaryIO, name: str) -> None:
    """Raises UnsafeError if reading the table crashes or hangs (`engine.process.crash_check`)."""
    check_in_child(
        __name__,
        "pyarrow.parquet",
        file,
        name,
        remedy="Look at where it comes from. What pyarrow cannot read, its writer may: export it as JSON lines, and give those.",
    )


def crash_check() -> None:
    """In the child: decode all columns as far as the time reaches."""
    end = time.monotonic() + MAX_SURVEY_SECONDS
    with checked_file() as file:
        is_parquet = file.peek(len(PARQUET)).startswith(PARQUET)
        for batch in _parquet(file) if is_parquet else arrow_batches(file):
            batch.validate(full=True)
            if time.monotonic() > end:
                return


def _parquet(file: BinaryIO) -> Iterator[Any]:
    """Texts that rows name again and again are not copied for each of them."""
    facts = parquet_file(file).metadata
    packed = {
        name for group in range(facts.num_row_groups) for name in columns_with_dictionaries(facts.row_group(group))
    }
    table = parquet_file(file, read_dictionary=sorted(packed))
    yield from table.iter_batches(batch_size=ROWS_PER_BATCH, use_threads=False)


def columns_with_dictionaries(group: Any) -> list[str]:
    """Paths of the columns of a row group whose texts are stored once, and named by their rows."""
    columns = (group.column(number) for number in range(group.num_columns))
    return [column.path_in_schema for column in columns if column.has_dictionary_page]


def parquet_file(source: Any, **more: Any) -> Any:
    """pyarrow's ParquetFile, with small buffers."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=BUFFER, **more)


def arrow_batches(source: Any) -> Iterator[Any]:
    """The batches of an Arrow file."""
    import pyarrow.ipc

    with pyarrow.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
