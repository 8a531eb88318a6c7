"""One run: its folder, the lock on it, and its manifest `run.json`."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from engine.core import layout
from engine.core.errors import DamagedState, DiskError, RunLocked, UnsafeError
from engine.core.failpoints import failpoint
from engine.run.results import Results
from engine.security.redaction import redacted
from engine.security.sanitize import visible_line
from engine.storage.files import keep_others_from_writing, owner_of, write_json

SCHEMA = 1


class Run:
    """A run folder. Reading needs no lock; whoever writes holds it (`acquire`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().resolve()
        self._lock_file: int | None = None
        self.manifest: dict[str, Any] = {}
        self.reload()

    def __truediv__(self, name: str) -> Path:
        """The path of a file in the run folder: `run / layout.PAIRS_JSONL`."""
        return self.folder / name

    @property
    def archive(self) -> Path:
        return self.folder.with_name(self.folder.name + layout.ARCHIVE_SUFFIX)

    # -- the manifest ------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read `run.json`; a folder without one is a new run. Raises DamagedState for one that cannot be read."""
        path = self / layout.RUN_JSON
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(manifest["stages"], dict):
                raise TypeError('"stages" is not an object')
        except FileNotFoundError:
            self.manifest = {"schema": SCHEMA, "config": {}, "stages": {}}
            return
        except PermissionError as error:
            raise _not_ours(path, error) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedState(
                f"{path} cannot be read.",
                f"{error}. stage3-tui writes this file atomically, so something else changed it.",
                f"Restore it from a copy, or move {self.folder} aside to start again.",
            ) from error
        if manifest.get("schema") != SCHEMA:
            raise DamagedState(
                f"{path} has schema {manifest.get('schema')!r}; this version reads {SCHEMA}.",
                "Another version of stage3-tui made this run.",
                "Use that version, or give another --output-dir.",
            )
        self.manifest = manifest

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
        """The same, typed."""
        return Results(self.manifest["stages"])

    def set_aside(self, *relative: str, why: str, reusable: bool = True) -> Path | None:
        """Move outdated files of the run into `superseded/N/`, which is returned; None if none of them exist.

        why        the reason, written beside them for people and for `stage3-tui clean`
        reusable   whether the next set may reuse records from them
        """
        there = [name for name in relative if (self / name).exists()]
        if not there:
            return None
        number = 1
        while (folder := self / layout.SUPERSEDED_DIR / str(number)).exists():
            number += 1
        folder.mkdir(parents=True)
        write_json(folder / layout.SUPERSEDED_NOTE, {"why": why, "reusable": reusable, "files": there})
        for name in there:
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

        Raises RunLocked with the owner, UnsafeError for a link that leads out of the folder, DiskError if the folder
        cannot be written.
        """
        keep_others_from_writing()
        self._refuse_links_out()
        path = self / layout.LOCK_FILE
        try:
            # Private whatever the umask: it holds prompts and answers.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _not_ours(path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise self._locked() from None
        owner = _read_owner(path)
        if owner is not None and _is_alive(owner) and owner["pid"] != os.getpid():
            # flock succeeded although its owner is alive: on this file system flock does nothing.
            os.close(file)
            raise self._locked()
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_me()).encode(), 0)
        # A forked child (a data loader's worker) must not hold the lock after this process has exited.
        os.register_at_fork(after_in_child=lambda: _close_quietly(file))
        self._lock_file = file
        self.reload()

    def require_in_place(self) -> None:
        """Raises DamagedState if the locked folder is no longer at its path: writing there would leave half a run. Does
        nothing before `acquire`.
        """
        if self._lock_file is None:
            return
        try:
            is_there = os.path.samestat(os.fstat(self._lock_file), (self / layout.LOCK_FILE).stat())
        except OSError:
            is_there = False
        if is_there:
            return
        raise DamagedState(
            f"The run folder {self.folder} is gone.",
            "It was moved, deleted or replaced while this process worked on it. Nothing more was written.",
            "Move it back and run the same command again, or start a new run with another --output-dir.",
        )

    def _refuse_links_out(self) -> None:
        """The folder itself may be a link (resolved once, in `__init__`); links inside it must stay inside it."""
        for folder, folders, files in os.walk(self.folder):
            for path in (Path(folder, name) for name in (*folders, *files)):
                if path.is_symlink() and not _leads_into(path, self.folder):
                    raise UnsafeError(
                        f"{visible_line(str(path))} is a link that leads out of the run folder.",
                        "The run would write outside its folder.",
                        "Remove the link. To put a run on another disk, give a folder there as --output-dir.",
                    )

    def release(self) -> None:
        if self._lock_file is not None:
            os.ftruncate(self._lock_file, 0)
            os.close(self._lock_file)
            self._lock_file = None

    def owner(self) -> dict[str, Any] | None:
        """The live process that holds this run: `pid`, `host`, `since`; None if no process does."""
        owner = _read_owner(self / layout.LOCK_FILE)
        return owner if owner is not None and _is_alive(owner) else None

    def _locked(self) -> RunLocked:
        owner = _read_owner(self / layout.LOCK_FILE) or {"pid": "unknown", "host": "unknown", "since": "unknown"}
        return RunLocked(
            f"The run {self.folder} is in use by process {owner['pid']} on {owner['host']}, since {owner['since']}.",
            "Only one process at a time may write to a run folder.",
            f"Watch it with `stage3-tui attach {self.folder}`, or stop it with `stage3-tui stop {self.folder}`.",
        )


def _leads_into(link: Path, folder: Path) -> bool:
    try:
        return link.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # a link to itself
        return False


def _not_ours(path: Path, error: OSError) -> DiskError:
    there = next(place for place in (path, *path.parents) if os.access(place, os.F_OK))
    return DiskError(
        f"{visible_line(str(path))} cannot be used.",
        f"{error.strerror or error}; {visible_line(str(there))} belongs to {owner_of(there)}.",
        "Run as that user, take ownership of the files (chown), or give another --output-dir.",
    )


def _me() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "process_started": psutil.Process().create_time(),
    }


def _read_owner(path: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and {"pid", "host", "since"} <= owner.keys() else None


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether the recorded owner is running. A reused pid has another start time; owners on other hosts cannot be checked."""
    if owner["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(owner["pid"]))
        return abs(process.create_time() - float(owner.get("process_started", 0))) < 1 and process.status() != "zombie"
    except (psutil.Error, ValueError, TypeError):
        return False


def _close_quietly(file: int) -> None:
    try:
        os.close(file)
    except OSError:
        return  # the parent had already released it
