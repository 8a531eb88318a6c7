"""One run: its folder, the lock on it, and its manifest `run.json`."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import time
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, Field

from engine.core import layout
from engine.core.errors import DamagedState, DiskError, RunLocked, UnsafeError
from engine.core.failpoints import failpoint
from engine.core.reading import refuse_odd
from engine.run.manifest import new_manifest, read_manifest
from engine.run.results import Results
from engine.security.redaction import redacted
from engine.security.sanitize import visible_line
from engine.storage.documents import read_json_or_none
from engine.storage.files import keep_others_from_writing, owner_of, write_json

LARGEST_LOCK = 64 << 10
"""Bytes; a lock has some hundred."""


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
        """Read `run.json`; a folder without one is a new run. Raises DamagedState for one that cannot be read, UnsafeError for
        one that is no regular file.
        """
        path = self / layout.RUN_JSON
        try:
            self.manifest = read_manifest(path)
        except FileNotFoundError:
            self.manifest = new_manifest()
        except OSError as error:
            raise _not_ours(path, error) from error

    def save(self) -> None:
        """Raises DamagedState as `require_in_place` does."""
        self.require_in_place()
        failpoint("manifest")
        write_json(self / layout.RUN_JSON, redacted(self.manifest))

    def stage(self, name: str) -> dict[str, Any]:
        """What is recorded of a stage: `status`, `fingerprint`, `result`, `error`, …; empty before it first ran."""
        return dict(self.manifest["stages"].get(name, {}))

    def result(self, name: str) -> dict[str, Any]:
        """The facts that a finished stage left for the later ones."""
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
        """Move files of the run that are to be made again into `superseded/N/`; None where there were none.

        why        written beside them, for people and for `stage3-tui clean`
        reusable   whether what is in them may be taken over by what is made next
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
                continue  # it went with the folder that holds it
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            failpoint("rename")
            (self / name).rename(target)
        return folder

    # -- the lock ----------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Take the run for this process, until `release` or the process's end. From then on nothing that the process makes
        can be changed by other users, whatever umask it came with.

        Raises RunLocked with the owner, UnsafeError for a link that leads out of the folder, DiskError for a folder that
        cannot be written.
        """
        keep_others_from_writing()
        self._refuse_odd_files()
        path = self / layout.LOCK_FILE
        try:
            # Whatever the umask: prompts and answers are in it.
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
            # The kernel's lock was free, yet its owner lives: a file system on which flock is a no-op.
            os.close(file)
            raise self._locked()
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_me()).encode(), 0)
        # A forked child (a data loader's worker) must not keep the lock when this process is gone.
        os.register_at_fork(after_in_child=lambda: _close_quietly(file))
        self._lock_file = file
        self.reload()

    def require_in_place(self) -> None:
        """Raises DamagedState if the folder that was taken is not at its path any more: whatever was written there now would be
        half a run. Nothing is asked before it was taken.
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
            f"The run folder {self.folder} is not there any more.",
            "It was moved, deleted or replaced while this process worked on it. Nothing more was written.",
            "Move it back to its place, and run the same command again; or begin a new run with another --output-dir.",
        )

    def refuse_new_links(self) -> None:
        """Raises UnsafeError if one of the run's own folders is a link by now: what is written there would land elsewhere."""
        for name in layout.FOLDERS:
            if (self / name).is_symlink():
                _refuse_odd_file(self / name, self.folder)

    def _refuse_odd_files(self) -> None:
        """The folder itself may be a link: it was resolved once. What is in it may lead to another place in it, at most, and is
        a file or a folder, each where a run has one.
        """
        for folder, folders, files in os.walk(self.folder):
            for path in (Path(folder, name) for name in (*folders, *files)):
                _refuse_odd_file(path, self.folder)
        for name in layout.FILES:
            _refuse_kind(self / name, is_folder=False)
        for name in layout.FOLDERS:
            _refuse_kind(self / name, is_folder=True)

    def release(self) -> None:
        if self._lock_file is not None:
            os.ftruncate(self._lock_file, 0)
            os.close(self._lock_file)
            self._lock_file = None

    def owner(self) -> dict[str, Any] | None:
        """The live process that holds this run: `pid`, `host`, `since`; None where there is none."""
        owner = _read_owner(self / layout.LOCK_FILE)
        return owner if owner is not None and _is_alive(owner) else None

    def _locked(self) -> RunLocked:
        owner = _read_owner(self / layout.LOCK_FILE) or {"pid": "unknown", "host": "unknown", "since": "unknown"}
        return RunLocked(
            f"The run {self.folder} is taken by process {owner['pid']} on {owner['host']}, since {owner['since']}.",
            "One process at a time may write to a run folder.",
            f"Watch it with `stage3-tui attach {self.folder}`, or stop it with `stage3-tui stop {self.folder}`.",
        )


def _refuse_odd_file(path: Path, run_folder: Path) -> None:
    mode = path.lstat().st_mode
    if not stat.S_ISLNK(mode):
        refuse_odd(path, mode)
    elif not _leads_into(path, run_folder):
        raise UnsafeError(
            f"{visible_line(str(path))} is a link that leads out of the run folder.",
            "What the run writes there would land elsewhere.",
            "Remove the link. To have a run on another disk, give its folder there with --output-dir.",
        )


def _refuse_kind(path: Path, *, is_folder: bool) -> None:
    """Raises DamagedState for a folder in the place of a file, or a file in that of a folder."""
    if not path.exists() or path.is_dir() is is_folder:
        return
    there, wanted = ("a file", "a folder") if is_folder else ("a folder", "a file")
    raise DamagedState(
        f"{visible_line(str(path))} is {there}.",
        f"A run has {wanted} of this name: something else put it there.",
        "Look at what it is, move it out of the run folder, and run the same command again.",
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
        "Start as that user, have the files given to you (chown), or give another --output-dir.",
    )


class _Owner(BaseModel):
    """The record in `logs/lock`."""

    model_config = ConfigDict(extra="allow")

    pid: int = Field(ge=1, lt=1 << 32, strict=True)
    host: str = Field(max_length=255)
    since: str = Field(max_length=64)
    process_started: float = Field(0.0, allow_inf_nan=False)


def _me() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "process_started": psutil.Process().create_time(),
    }


def _read_owner(path: Path) -> dict[str, Any] | None:
    """What the lock says of who holds the run; None where it is empty, or says nothing that can be right."""
    owner = read_json_or_none(path, _Owner, most=LARGEST_LOCK)
    return None if owner is None else owner.model_dump()


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether the recorded owner runs. A pid used again has another start time; of another host nothing is known."""
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
        return  # the parent had released it already
