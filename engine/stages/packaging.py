"""Stage 10: one archive that loads, the lines that bring it home, and a push to the Hub where it is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.core.events import Check, Event, Message
from engine.machine.memory import free_memory
from engine.packaging.archive import Archive, build_archive, existing_archive, hash_file
from engine.packaging.bring_home import check_line, scp_line_of_this_machine, unzip_line
from engine.packaging.contents import packed_names
from engine.packaging.fresh_process import load_in_fresh_process
from engine.packaging.model_card import load_lines
from engine.packaging.secret_scan import known_secrets
from engine.push.push import push
from engine.security.sanitize import visible_line
from engine.stages.base import Context, StageResult, StageRun
from engine.stages.training import base_name
from engine.storage.files import sha256_of_file

NAME = "packaging"
OUTPUTS: tuple[str, ...] = ()


def depends_on(context: Context) -> dict[str, Any] | None:
    run, config = context.run, context.config
    done_but_gone = run.stage(NAME).get("status") == "done" and not run.archive.is_file()
    packed = [name for name in packed_names(run) if name != layout.RUN_JSON]
    return {
        "training": run.result("training"),
        "files": {name: sha256_of_file(run / name) for name in packed if (run / name).is_file()},
        # An archive that was moved or deleted is made again; its bytes come out the same.
        **({"archive": "gone"} if done_but_gone else {}),
        **({"push_to_hub": config.push_to_hub, "push_public": config.push_public} if config.push_to_hub else {}),
    }


def run(context: Context) -> StageRun:
    folder, config = context.run, context.config
    archive, loads = yield from _made_or_found(context)
    facts = _facts(context, archive)
    yield from _told(archive, loads, facts, config.accept_lookalikes)
    summary = f"{archive.path.name}: {archive.bytes:,} bytes, {len(archive.contents)} files"
    if config.push_to_hub is None:
        return StageResult(summary, facts)
    folder.record_stage(NAME, result=facts)  # the archive stands, whatever becomes of the push
    pushed = yield from push(
        folder,
        config.push_to_hub,
        stage=NAME,
        token=context.token,
        public=config.push_public,
        accept_lookalikes=config.accept_lookalikes is not None,
        stop=context.stop,
    )
    return StageResult(f"{summary}; {pushed.in_words}", {**facts, "pushed": pushed.as_dict()})


def _made_or_found(context: Context) -> Generator[Event, None, tuple[Archive, str]]:
    """The archive, and what is known of its loading."""
    known, accepted = known_secrets(context.token), context.config.accept_lookalikes is not None
    found = existing_archive(context.run, known=known, accept_lookalikes=accepted)
    if found is not None:
        yield Message("info", "The archive of these files is there already, and whole; it is not made again.", NAME)
        return found, "it was loaded in a fresh process before it got its name"
    yield Message("info", "Packing, then loading the archive in a fresh process.", NAME)
    effects: list[float] = []
    made = build_archive(
        context.run, lambda part: effects.append(_load(context, part)), known=known, accept_lookalikes=accepted
    )
    return made, f"in a fresh process; the adapter changes a logit by up to {effects[0]:.4g}"


def _load(context: Context, part: Path) -> float:
    """The effect of the adapter in the archive; raises what keeps it from its name."""
    free_memory()  # the process that loads it needs room on the same device
    return load_in_fresh_process(
        part,
        context.config,
        base_commit=context.run.result("adapter").get("base_model_commit"),
        expected_tensors=context.run.result("training").get("tensors_sha256"),
        stop=context.stop,
    )


def _told(archive: Archive, loads: str, facts: dict[str, Any], why_accepted: str | None) -> Iterator[Event]:
    for name in archive.left_out:
        yield Check(NAME, visible_line(name), "warning", "not on the list of what is packed; left out")
    for pair in archive.withheld:
        detail = "rejected, and holds what looks like a secret; left out of pairs.jsonl"
        yield Check(NAME, visible_line(f"pair {pair}", 40), "warning", detail)
    for finding in archive.accepted:
        detail = visible_line(f"{finding.what}; accepted: {why_accepted}")
        yield Check(NAME, f"{finding.file}:{finding.line}", "warning", detail)
    yield Check(NAME, "archive", "ok", visible_line(str(archive.path)))
    yield Check(NAME, "size", "ok", f"{archive.bytes:,} bytes, {len(archive.contents)} files")
    yield Check(NAME, "contents", "ok", _in_short(archive))
    yield Check(NAME, "sha256", "ok", archive.sha256)
    yield Check(NAME, "loads", "ok", loads)
    yield Check(NAME, "bring it home", "ok", facts["scp"])
    yield Check(NAME, "check and unpack", "ok", f"{facts['check']} && {facts['unzip']}")
    for name, line in zip(("load the base", "load the adapter"), facts["load"], strict=True):
        yield Check(NAME, name, "ok", line)


def _facts(context: Context, archive: Archive) -> dict[str, Any]:
    """What a screen needs to show the archive, and a person to bring it home."""
    hashes = hash_file(context.run)
    commit = context.run.result("adapter").get("base_model_commit")
    adapter = f"{context.run.folder.name}/{layout.ADAPTER_DIR}"
    return {
        "archive": str(archive.path),
        "sha256": archive.sha256,
        "bytes": archive.bytes,
        "files": len(archive.contents),
        "contents": [list(member) for member in archive.contents],
        "scp": scp_line_of_this_machine([archive.path, hashes]),
        "check": check_line(hashes),
        "unzip": unzip_line(archive.path),
        "load": list(load_lines(base_name(context), commit, adapter)),
    }


def _in_short(archive: Archive) -> str:
    """How many files each folder has: `models 6, pairs 3, …`."""
    counted = Counter(name.partition("/")[0] if "/" in name else "top" for name, _ in archive.contents)
    return ", ".join(f"{folder} {count}" for folder, count in sorted(counted.items()))
