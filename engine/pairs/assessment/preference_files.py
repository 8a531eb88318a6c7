"""Write TRL's conversational preference rows to JSON lines, or to Parquet in groups of a thousand rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Protocol

from engine.storage.jsonl import dumps

ROWS_PER_GROUP = 1000
PARQUET = ".parquet"


class RowWriter(Protocol):
    def add(self, row: dict[str, Any]) -> None: ...

    def finish(self) -> None:
        """Write the rows that are still in memory."""

    def close(self) -> None:
        """Release the writer, before its file is closed. What was not finished may be lost."""


def writer_for(path: Path, file: BinaryIO) -> RowWriter:
    """The writer for the suffix of the final file name."""
    return _Parquet(file) if path.suffix.lower() == PARQUET else _JsonLines(file)


class _JsonLines:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, row: dict[str, Any]) -> None:
        self._file.write(dumps(row).encode("ascii") + b"\n")

    def finish(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Nothing to release."""


class _Parquet:
    def __init__(self, file: BinaryIO) -> None:
        import pyarrow
        import pyarrow.parquet

        messages = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
        self._schema = pyarrow.schema([(name, messages) for name in ("prompt", "chosen", "rejected")])
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_GROUP:
            self._write()

    def finish(self) -> None:
        self._write()
        self.close()

    def close(self) -> None:
        self._writer.close()  # else it writes its footer when it is collected, to a closed file

    def _write(self) -> None:
        import pyarrow

        if self._rows:
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
            self._rows.clear()
