"""Build an archive: read, anonymise, scan for secrets, write to a temporary name, read back, test, rename."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.core.errors import DamagedState, UnsafeError
from engine.core.failpoints import failpoint
from engine.core.reading import open_file, read_file
from engine.core.stage_table import STAGES
from engine.packaging.anonymise import anonymise
from engine.packaging.contents import Content, read_contents, refuse_changed, unlisted_names
from engine.packaging.scrubber import Scrubber
from engine.packaging.secret_scan import Finding, find_secrets, refuse_secrets
from engine.packaging.verify import read_files
from engine.packaging.zip_writer import MANIFEST, manifest_bytes, write_zip
from engine.pairs.data.edits import read_edits
from engine.run.folder import Run
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret
from engine.storage.files import sha256_of_file, sync_folder, write_atomically
from engine.storage.jsonl import loads

LARGEST_HASH_FILE = 4096
"""Bytes: a hash and a name."""


@dataclass(frozen=True)
class Archive:
    path: Path
    sha256: str
    bytes: int
    contents: tuple[tuple[str, int], ...]
    """(name without the top folder, bytes) of each file, in order."""
    left_out: tuple[str, ...] = ()
    """Names in the adapter's folder that are not on the allow-list."""
    withheld: tuple[str, ...] = ()
    """Ids of rejected pairs that are left out because their records contain what looks like a secret."""
    accepted: tuple[Finding, ...] = ()
    """Lookalikes of secrets that a person accepted."""


@dataclass
class _PackedFiles:
    """The files to pack."""

    files: dict[str, bytes]
    withheld: list[str] = field(default_factory=list)
    accepted: list[Finding] = field(default_factory=list)


def build_archive(
    run: Run,
    check: Callable[[Path], None] | None = None,
    *,
    known: Mapping[str, Secret] | None = None,
    accept_lookalikes: bool = False,
) -> Archive:
    """Pack `run` into `run.archive`, and write its hash beside it.

    check               called with the finished file under its temporary name; if it raises, the archive is not renamed
    known               secrets that must not be in the archive, by description
    accept_lookalikes   a person has reviewed what looks like a secret in the text of models and people

    Raises UnsafeError for a link, a device, a pickle or a secret among the packed files, PreconditionError without an adapter,
    DamagedState if the archive does not read back as written, or if the run changed meanwhile.
    """
    _refuse_existing_folder(run.archive)
    contents, packed = _prepare(run, known or {}, accept_lookalikes=accept_lookalikes)
    packed.files[MANIFEST] = manifest_bytes(packed.files, packed.withheld)
    part = run.archive.with_name(f".{run.archive.name}.part")
    try:
        write_zip(part, run.folder.name, packed.files)
        with open_file(part) as file:
            read_files(file, part)
        if check is not None:
            check(part)
        refuse_changed(run, contents)
        digest, size = sha256_of_file(part), part.stat().st_size
        failpoint("rename")
        part.replace(run.archive)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(run.archive.parent)
    write_atomically(hash_file(run), f"{digest}  {run.archive.name}\n".encode())
    return Archive(
        run.archive,
        digest,
        size,
        _sizes(packed.files),
        tuple(unlisted_names(run)),
        tuple(packed.withheld),
        tuple(packed.accepted),
    )


def _refuse_existing_folder(archive: Path) -> None:
    if archive.is_dir() and not archive.is_symlink():
        raise DamagedState(
            f"{visible_line(str(archive))} is a folder.",
            "The archive of this run needs that name.",
            "Move the folder away, and run the same command again.",
        )


def hash_file(run: Run) -> Path:
    return run.archive.with_name(run.archive.name + ".sha256")


def existing_archive(
    run: Run, *, known: Mapping[str, Secret] | None = None, accept_lookalikes: bool = False
) -> Archive | None:
    """The existing archive, if it is complete and matches the run; None otherwise.

    It was loaded before it got its name, so it is not loaded again. Of `run.json` only the training's record is compared,
    because the rest describes the machine at that time. Raises as `build_archive` for forbidden files and secrets.
    """
    try:
        archive, files = verified_archive(run)
    except DamagedState:
        return None
    _, current = _prepare(run, known or {}, accept_lookalikes=accept_lookalikes)
    compared = {*files, *current.files} - {layout.RUN_JSON, MANIFEST}
    if any(files.get(name) != current.files.get(name) for name in compared):
        return None
    if _training_record(files) != _training_record(current.files):
        return None
    return replace(archive, left_out=tuple(unlisted_names(run)), accepted=tuple(current.accepted))


def verified_archive(run: Run) -> tuple[Archive, dict[str, bytes]]:
    """The existing archive and its files by name, verified in one pass against the recorded hash and the manifest.

    Raises DamagedState if it is missing, or does not match.
    """
    expected = _recorded_hashes(run)
    try:
        file = open_file(run.archive)
    except OSError as error:
        raise _mismatch(run, f"Cannot read it: {error.strerror}.") from error
    except UnsafeError as error:
        raise _mismatch(run, error.what) from error
    with file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest not in expected or len(expected) > 1:
            recorded = " and ".join(sorted(expected)) or "no hash"
            raise _mismatch(run, f"Its SHA-256 is {digest}, but {recorded} was recorded.")
        size = file.tell()
        file.seek(0)
        files = read_files(file, run.archive)
    withheld = loads(files[MANIFEST]).get("withheld_pairs", [])
    return Archive(run.archive, digest, size, _sizes(files), withheld=tuple(withheld)), files


def _recorded_hashes(run: Run) -> set[str]:
    """The hashes in the file beside the archive and in `run.json`. More than one means that they disagree."""
    try:
        beside = read_file(hash_file(run), LARGEST_HASH_FILE).decode("ascii").split()[:1]
    except (OSError, ValueError, UnsafeError):
        beside = []
    recorded = run.result(STAGES[-1]).get("sha256")
    return {*beside, *([str(recorded)] if recorded else [])}


def _training_record(files: Mapping[str, bytes]) -> Any:
    """The training's record in a packed `run.json`."""
    record = loads(files.get(layout.RUN_JSON, b"{}"))
    return record.get("stages", {}).get("training", {}).get("result")


def _mismatch(run: Run, why: str) -> DamagedState:
    return DamagedState(
        f"The archive {run.archive} is not the one this run made.",
        why,
        "Rebuild it with `stage3-tui --auto --from packaging`.",
    )


def _sizes(files: Mapping[str, bytes]) -> tuple[tuple[str, int], ...]:
    return tuple((name, len(files[name])) for name in sorted(files))


def _prepare(
    run: Run, known: Mapping[str, Secret], *, accept_lookalikes: bool
) -> tuple[dict[str, Content], _PackedFiles]:
    """(files as read, files as packed)."""
    contents, private = read_contents(run), Scrubber.of(run)
    packed = _PackedFiles({name: anonymise(run, name, content.data, private) for name, content in contents.items()})
    _handle_secrets(run, packed, known, accept_lookalikes=accept_lookalikes)
    return contents, packed


# -- secrets ------------------------------------------------------------------------------------------------------------


def _handle_secrets(run: Run, packed: _PackedFiles, known: Mapping[str, Secret], *, accept_lookalikes: bool) -> None:
    """Leave out records of rejected pairs that contain a secret. Raises UnsafeError for other findings, unless accepted."""
    findings = find_secrets(packed.files, known)
    rejected = _rejected_ids(run) if findings else set()
    withheld = {found.record for found in findings if found.file == layout.PAIRS_JSONL and found.record in rejected}
    if withheld:
        packed.files[layout.PAIRS_JSONL] = _without_records(packed.files[layout.PAIRS_JSONL], withheld)
    remaining = [found for found in findings if not (found.file == layout.PAIRS_JSONL and found.record in withheld)]
    refuse_secrets(remaining, accepted=accept_lookalikes)
    packed.withheld, packed.accepted = sorted(withheld), remaining


def _rejected_ids(run: Run) -> set[str]:
    path = run / layout.EDITS_JSONL
    decisions = read_edits(path) if path.exists() else {}
    return {pair_id for pair_id, decision in decisions.items() if decision.accepted is False}


def _without_records(data: bytes, ids: set[str]) -> bytes:
    if not ids:
        return data
    return b"".join(line for line in BytesIO(data) if _id_of(line) not in ids)


def _id_of(line: bytes) -> str:
    try:
        return str(loads(line).get("id", ""))
    except (ValueError, AttributeError):
        return ""
