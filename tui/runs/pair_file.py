"""A file of pairs instead of a run: the source of `stage3-tui browse FILE`.

Rows of any form are converted to native lines in a temporary folder; decisions about them are written beside the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event as Flag
from threading import Thread
from typing import TYPE_CHECKING

from engine.core import clock, layout
from engine.core.errors import ConfigError, ExitCode, Stage3Error
from engine.pairs.data.edits import edits_path_of
from engine.pairs.formats.native_lines import native_lines
from engine.pairs.formats.reading import RowReader, pairs_of
from engine.pairs.formats.sources import rows_of_source
from engine.run.folder import Run
from engine.run.state import RunState

if TYPE_CHECKING:
    from engine.core.config import Stage3Config

LINES_AT_ONCE = 200

log = logging.getLogger(__name__)


class _RunOfFile(Run):
    """A run in a temporary folder; the decisions are stored beside the file."""

    def __init__(self, folder: Path, edits: Path) -> None:
        super().__init__(folder)
        self._edits = edits

    def __truediv__(self, name: str) -> Path:
        return self._edits if name == layout.EDITS_JSONL else super().__truediv__(name)


class PairFile:
    """A source in which nothing is running, and decisions are allowed."""

    read_only = False
    token = None
    may_query_hub = False
    hands_off = False
    allows_decisions = True
    running = False
    exit_code: ExitCode | None = None

    def __init__(self, file: Path, config: Stage3Config) -> None:
        """Raises ConfigError if there is nothing to read, DataError for a KTO file."""
        self.file, self.config = file, config
        self.edits = edits_path_of(file.resolve()).resolve()
        self.problem = ""
        """Why reading stopped before the end of the file; empty if it did not."""
        if not file.is_file():
            raise ConfigError(f"There is no file {file}.", "", "Pass the path of a file of preference pairs.")
        lines = native_lines(pairs_of(rows_of_source(file), RowReader.of(config)))
        try:
            first = next(lines, None)
        except OSError as error:
            raise ConfigError(f"Cannot read {file}.", error.strerror or str(error), "Pass another file.") from error
        if first is None:
            raise ConfigError(f"{file} is empty.", "", "Pass a file with one pair per row.")
        self._folder = TemporaryDirectory(prefix="stage3-browse-")
        self.run: Run = _RunOfFile(Path(self._folder.name), self.edits)
        self.now = clock.now
        self._lines: Iterator[str] = chain([first], lines)
        self._state, self._done = RunState(), Flag()
        self._thread = Thread(target=self._read, name="pair file", daemon=True)
        for name in (layout.PAIRS_JSONL, layout.RUN_LOG):
            (self.run / name).parent.mkdir(parents=True, exist_ok=True)

    def open(self) -> None:
        """Start reading; the browser shows the rows as they arrive."""
        self._thread.start()

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        self._folder.cleanup()

    def snapshot(self) -> RunState:
        return self._state

    def stop(self, reason: str, exit_code: ExitCode = ExitCode.TERMINATED) -> None:
        """Nothing to stop."""

    def _read(self) -> None:
        try:
            with (self.run / layout.PAIRS_JSONL).open("w", encoding="ascii") as file:
                for number, line in enumerate(self._lines):
                    file.write(line)
                    if number % LINES_AT_ONCE == 0:
                        file.flush()
                        if self._done.is_set():
                            return
        except (OSError, Stage3Error) as error:
            self.problem = str(error)
            log.warning("could not read the whole file of pairs: %s", error)
