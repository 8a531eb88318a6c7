"""Stage 10: an archive that provably loads, the commands that fetch it, and a push to the Hub if requested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.core.events import Check, Event, Message
from engine.machine.memory import free_memory
from engine.packaging.archive import Archive, build_archive, existing_archive, hash_file
from engine.packaging.contents import byte_limit, packed_names, read_file
from engine.packaging.copy_commands import check_command, scp_command_of_this_machine, unzip_command
from engine.packaging.fresh_process import load_in_fresh_process
from engine.packaging.model_card import loading_code
from engine.packaging.secret_scan import known_secrets
from engine.push.push import push
from engine.run.folder import Run
from engine.run.results import PackagingResult
from engine.security.sanitize import visible_line
from engine.stages.base import Context, StageEnd, StageRun
from engine.stages.training import base_name
from engine.storage.files import sha256_of_file

READ_AS = {"push_public": lambda config: config.push_public if config.push_to_hub else None}


def evidence(context: Context) -> dict[str, Any]:
    """The files to pack, and whether the archive is still the one that was made."""
    run = context.run
    packed = [name for name in packed_names(run) if name != layout.RUN_JSON]
    made = run.results.packaging
    return {
        "the files to pack": {name: _sha256(run, name) for name in packed if (run / name).is_file()},
        **({} if made is None or is_whole(run.archive, made.sha256) else {"the archive": "gone or changed"}),
    }


def _sha256(run: Run, name: str) -> str:
    """The hash of what is packed of a file."""
    return sha256_of_file(run / name) if byte_limit(run, name) is None else read_file(run, name).sha256


def is_whole(archive: Path, sha256: str) -> bool:
    """Whether the archive exists as a regular file with its original bytes."""
    return archive.is_file() and not archive.is_symlink() and sha256_of_file(archive) == sha256


def run(context: Context) -> StageRun:
    folder, config = context.run, context.config
    archive, loads = yield from _build_or_reuse(context)
    result = _result_of(context, archive)
    yield from _archive_checks(archive, loads, result, config.accept_lookalikes)
    summary = f"{archive.path.name}: {archive.bytes:,} bytes, {len(archive.contents)} files"
    if config.push_to_hub is None:
        return StageEnd(summary, result)
    folder.record_stage("packaging", result=result.as_dict())  # the archive is done, whether or not the push succeeds
    pushed = yield from push(
        folder,
        config.push_to_hub,
        token=context.token,
        public=config.push_public,
        accept_lookalikes=config.accept_lookalikes is not None,
        stop=context.stop,
    )
    return StageEnd(f"{summary}; {pushed.in_words}", replace(result, pushed=pushed.as_dict()))


def _build_or_reuse(context: Context) -> Generator[Event, None, tuple[Archive, str]]:
    """Returns the archive, and where it was loaded as a test."""
    known, accepted = known_secrets(context.token), context.config.accept_lookalikes is not None
    found = existing_archive(context.run, known=known, accept_lookalikes=accepted)
    if found is not None:
        yield Message("info", "An intact archive of these files already exists; keeping it.")
        return found, "loaded in a fresh process when it was made"
    yield Message("info", "Packing the archive, then loading it in a fresh process.")
    effects: list[float] = []
    made = build_archive(
        context.run, lambda part: effects.append(_load(context, part)), known=known, accept_lookalikes=accepted
    )
    return made, f"in a fresh process; the adapter changes a logit by up to {effects[0]:.4g}"


def _load(context: Context, part: Path) -> float:
    """The effect of the adapter in the archive. Raises if it does not load."""
    free_memory()  # the process that loads it needs memory on the same device
    trained = context.run.results.training
    return load_in_fresh_process(
        part,
        context.config,
        base_commit=_base_commit(context),
        expected_tensors=None if trained is None else trained.tensors_sha256,
        stop=context.stop,
    )


def _archive_checks(archive: Archive, loads: str, result: PackagingResult, why_accepted: str | None) -> Iterator[Event]:
    for name in archive.left_out:
        yield Check(visible_line(name), "warning", "not on the list of files to pack; left out")
    for pair in archive.withheld:
        detail = "rejected, and contains what looks like a secret; left out of pairs.jsonl"
        yield Check(visible_line(f"pair {pair}", 40), "warning", detail)
    for finding in archive.accepted:
        detail = visible_line(f"{finding.what}; accepted: {why_accepted}")
        yield Check(f"{finding.file}:{finding.line}", "warning", detail)
    yield Check("archive", "ok", visible_line(str(archive.path)))
    yield Check("size", "ok", f"{archive.bytes:,} bytes, {len(archive.contents)} files")
    yield Check("contents", "ok", _files_by_folder(archive))
    yield Check("sha256", "ok", archive.sha256)
    yield Check("loads", "ok", loads)
    yield Check("fetch it", "ok", result.scp)
    yield Check("check and unpack", "ok", f"{result.check} && {result.unzip}")
    for name, line in zip(("load the base", "load the adapter"), result.load, strict=True):
        yield Check(name, "ok", line)


def _base_commit(context: Context) -> str | None:
    adapter = context.run.results.adapter
    return None if adapter is None else adapter.base_model_commit


def _result_of(context: Context, archive: Archive) -> PackagingResult:
    """What a screen needs to show the archive, and a person needs to fetch it."""
    hashes = hash_file(context.run)
    adapter = f"{context.run.folder.name}/{layout.ADAPTER_DIR}"
    return PackagingResult(
        archive=str(archive.path),
        sha256=archive.sha256,
        bytes=archive.bytes,
        files=len(archive.contents),
        contents=tuple(archive.contents),
        scp=scp_command_of_this_machine([archive.path, hashes]),
        check=check_command(hashes),
        unzip=unzip_command(archive.path),
        load=tuple(loading_code(base_name(context), _base_commit(context), adapter)),
    )


def _files_by_folder(archive: Archive) -> str:
    """The number of files in each folder: `models 6, pairs 3, …`."""
    counted = Counter(name.partition("/")[0] if "/" in name else "top" for name, _ in archive.contents)
    return ", ".join(f"{folder} {count}" for folder, count in sorted(counted.items()))
