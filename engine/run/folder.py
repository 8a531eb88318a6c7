"""One run: its folder, the lock on it, and its manifest `run.json`."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.core.errors import ConfigError, DamagedState, DiskError, Stage3Error, UnsafeError
from engine.core.failpoints import failpoint
from engine.core.reading import refuse_special_file
from engine.core.system_errors import system_error
from engine.run.lock import RunLock
from engine.run.manifest import new_manifest, read_manifest
from engine.run.owner import Owner
from engine.run.results import Results
from engine.security.redaction import redacted
from engine.security.sanitize import visible_line
from engine.storage.files import restrict_umask, write_json

MAX_PID = 1 << 22


class Run:
    """A run folder. Reading needs no lock; writing does (`acquire`)."""

    def __init__(self, folder: Path, *, shared_cache: Path | None = None) -> None:
        """shared_cache   folder of the keyed caches, if not in the run folder: a trial uses that of its sweep"""
        self.folder = folder.expanduser().resolve()
        self.shared_cache = shared_cache
        self._lock = RunLock(self.folder)
        self.manifest: dict[str, Any] = {}
        self.reload()

    def __truediv__(self, name: str) -> Path:
        """The path of a file in the run folder: `run / layout.PAIRS_JSONL`."""
        return self.folder / name

    @property
    def cache(self) -> Path:
        """The folder of the keyed caches."""
        return self.shared_cache or self / layout.CACHE_DIR

    @property
    def archive(self) -> Path:
        return self.folder.with_name(self.folder.name + layout.ARCHIVE_SUFFIX)

    # -- the manifest ------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read `run.json`; a folder without one is a new run. Raises DamagedState if it cannot be read, UnsafeError if it is not
        a regular file.
        """
        path = self / layout.RUN_JSON
        try:
            self.manifest = read_manifest(path)
        except FileNotFoundError:
            self.manifest = new_manifest()
        except OSError as error:
            raise _unusable(path, error) from error

    def save(self) -> None:
        """Raises DamagedState as `require_in_place` does."""
        self.require_in_place()
        failpoint("manifest")
        write_json(self / layout.RUN_JSON, redacted(self.manifest))

    def stage(self, name: str) -> dict[str, Any]:
        """The record of a stage: `status`, `fingerprint`, `result`, `error`, …; empty before its first run."""
        return dict(self.manifest["stages"].get(name, {}))

    def result(self, name: str) -> dict[str, Any]:
        """The facts that a finished stage left for later stages."""
        return dict(self.stage(name).get("result", {}))

    def record_stage(self, name: str, **facts: Any) -> None:
        self.manifest["stages"][name] = {**self.stage(name), **facts}
        self.save()

    def forget_stage(self, name: str) -> None:
        self.manifest["stages"].pop(name, None)
        self.save()

    @property
    def results(self) -> Results:
        """The results of all finished stages, typed."""
        return Results(self.manifest["stages"])

    def set_aside(self, *relative: str, why: str, reusable: bool = True) -> Path | None:
        """Move outdated files of the run into `superseded/N/`. Returns that folder, or None if none of the files exist.

        why        the reason, recorded with them for users and for `stage3-tui clean`
        reusable   whether the next set may reuse records from them
        """
        existing = [name for name in relative if (self / name).exists()]
        if not existing:
            return None
        number = 1
        while (folder := self / layout.SUPERSEDED_DIR / str(number)).exists():
            number += 1
        folder.mkdir(parents=True)
        write_json(folder / layout.SUPERSEDED_NOTE, {"why": why, "reusable": reusable, "files": existing})
        for name in existing:
            if not (self / name).exists():
                continue  # moved along with its parent folder
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            failpoint("rename")
            (self / name).rename(target)
        return folder

    # -- the lock ----------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Lock the run for this process, until `release` or until it exits. Also tightens the umask, so that other users
        cannot change the run's files.

        Raises RunLocked with the owner, UnsafeError for a link that leads out of the folder, ConfigError if the folder's name
        is too long for the archive next to it, DiskError if the folder cannot be written.
        """
        restrict_umask()
        self._refuse_long_name()
        self._refuse_unsafe_files()
        try:
            # Private regardless of the umask, because it holds prompts and answers.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.take()
        except OSError as error:
            raise _unusable(self / layout.LOCK_FILE, error) from error
        self.reload()

    def require_in_place(self) -> None:
        """Raises DamagedState if the locked folder is no longer at its path, because writing there would leave a partial run.
        Does nothing before `acquire`.
        """
        if not self._lock.is_held or self._lock.is_in_place():
            return
        raise DamagedState(
            f"The run folder {self.folder} is gone.",
            "It was moved, deleted or replaced while this process was using it. Nothing more was written.",
            "Move it back and run the same command again, or start a new run with another --output-dir.",
        )

    def _refuse_long_name(self) -> None:
        """Refuse a name that would fail hours from now, when files named after the folder are written next to it."""
        if not self.folder.name:
            raise ConfigError(
                "The run folder would be /.", "The archive is written next to it.", "Use another --output-dir."
            )
        longest = f".{self.archive.name}.sha256.{MAX_PID}.part"  # from engine.storage.files.write_atomically
        parent = next(folder for folder in self.folder.parents if folder.is_dir())
        excess = len(os.fsencode(longest)) - os.pathconf(parent, "PC_NAME_MAX")
        if excess > 0:
            allowed = len(os.fsencode(self.folder.name)) - excess
            raise ConfigError(
                f"The name of the run folder is too long: {visible_line(self.folder.name, 80)}",
                "The archive next to it is named after it, and its name would exceed the limit of the file system.",
                f"Use an --output-dir whose name has at most {allowed} bytes.",
            )

    def refuse_new_links(self) -> None:
        """Raises UnsafeError if one of the run's own folders has become a link, so that files would be written elsewhere."""
        for name in layout.FOLDERS:
            if (self / name).is_symlink():
                _refuse_unsafe_file(self / name, self.folder)

    def _refuse_unsafe_files(self) -> None:
        """Refuse links that lead out of the run folder, special files, and a file in the place of a folder or the reverse. The
        run folder itself may be a link, because its path was resolved once.
        """
        for folder, folders, files in os.walk(self.folder):
            for path in (Path(folder, name) for name in (*folders, *files)):
                _refuse_unsafe_file(path, self.folder)
        for name in layout.FILES:
            _refuse_kind(self / name, is_folder=False)
        for name in layout.FOLDERS:
            _refuse_kind(self / name, is_folder=True)

    def release(self, *, for_restart: bool = False) -> None:
        """Release the run; with `for_restart`, this process is about to replace itself (exec) and continue the run."""
        self._lock.release(for_restart=for_restart)

    def owner(self) -> Owner | None:
        """The live process that holds this run; None if no process does."""
        return self._lock.owner()


def _refuse_unsafe_file(path: Path, run_folder: Path) -> None:
    mode = path.lstat().st_mode
    if not stat.S_ISLNK(mode):
        refuse_special_file(path, mode)
    elif not _leads_into(path, run_folder):
        raise UnsafeError(
            f"{visible_line(str(path))} is a link that leads out of the run folder.",
            "The run would write its files elsewhere.",
            "Remove the link. To keep a run on another disk, set --output-dir to a folder there.",
        )


def _refuse_kind(path: Path, *, is_folder: bool) -> None:
    """Raises DamagedState for a folder in the place of a file, or a file in that of a folder."""
    if not path.exists() or path.is_dir() is is_folder:
        return
    actual, expected = ("a file", "a folder") if is_folder else ("a folder", "a file")
    raise DamagedState(
        f"{visible_line(str(path))} is {actual}.",
        f"In a run folder, this name belongs to {expected}: another program created it.",
        "Check what it is, move it out of the run folder, and run the same command again.",
    )


def _leads_into(link: Path, folder: Path) -> bool:
    try:
        return link.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # a link to itself
        return False


def _unusable(path: Path, error: OSError) -> Stage3Error:
    what = f"Cannot use {visible_line(str(path))}."
    return system_error(error, what) or DiskError(what, f"{error.strerror or error}.", "Use another --output-dir.")
