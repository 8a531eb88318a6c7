"""Export a training set: stream it to a temporary file, then rename the file into place."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from engine.core.errors import ConfigError, DiskError, Stage3Error
from engine.core.system_errors import system_error
from engine.pairs.assessment.preference_files import writer_for
from engine.pairs.assessment.training_set import preference_row
from engine.pairs.data.record import Pair
from engine.storage.files import sync_folder


class Export:
    """Writes rows in TRL's preference format to `path`. Without a call of `keep`, the `with` block leaves no file behind.

    Raises ConfigError for a path that must not be written, DiskError if writing fails.
    """

    def __init__(self, path: Path, inputs: Iterable[Path], *, force: bool = False) -> None:
        self.path = Path(os.path.realpath(path))
        """The path with symbolic links resolved: the target is replaced, not the link."""
        self.pairs = 0
        _check_target(path, self.path, inputs, force)
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            self._file = self._part.open("xb")
            self._rows = writer_for(self.path, self._file)
        except OSError as error:
            raise self._failed(error) from error

    def add(self, pair: Pair) -> None:
        try:
            self._rows.add(preference_row(pair))
        except OSError as error:
            raise self._failed(error) from error
        self.pairs += 1

    def keep(self) -> None:
        """Rename the file into place. A reader sees either the old file or the complete new one."""
        try:
            self._rows.finish()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> Export:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._rows.close()
            self._file.close()
        except OSError as close_error:
            if kind is None:
                raise self._failed(close_error) from close_error
        finally:
            self._part.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> Stage3Error:
        what = f"Cannot write {self.path}."
        return system_error(error, what) or DiskError(
            what, error.strerror or str(error), "Pass another path to --export."
        )


def _check_target(path: Path, target: Path, inputs: Iterable[Path], force: bool) -> None:
    what = f"Cannot export to {path}"
    if any(source.exists() and target.exists() and source.samefile(target) for source in inputs):
        raise ConfigError(f"{what}: it is one of the input files.", "", "Pass another file to --export.")
    if target.is_dir():
        raise ConfigError(f"{what}: it is a folder.", "", f"Pass a file, for example {path / 'train.jsonl'}.")
    if not target.parent.is_dir():
        raise ConfigError(f"{what}: the folder {target.parent} does not exist.", "", "Create it, or pass another file.")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{what}: it is not a regular file.", "", "Pass the name of a file.")
    if target.exists() and not force:
        raise ConfigError(
            f"{what}: it already exists.",
            "It may hold work of yours.",
            "Pass another file, or use --force to replace it.",
        )
