"""What this machine can run: the findings of the stages that look at it, without a run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from engine.config import Stage3Config
from engine.context import Context
from engine.environment import quiet_libraries
from engine.errors import Stage3Error
from engine.events import Check
from engine.run import Run
from engine.telemetry import Gpus

GIB = 1 << 30


def examine(config: Stage3Config) -> Iterator[Check | Stage3Error]:
    """GPU, disk and token; then what the stages toolchain and dependencies find."""
    quiet_libraries()
    yield from gpu_checks()
    yield disk_check(config.output_dir)
    yield token_check()
    from engine.stages import dependencies, toolchain

    with tempfile.TemporaryDirectory() as folder:
        context = Context(config=config, run=Run(Path(folder)))
        for stage in (toolchain, dependencies):
            try:
                for event in stage.run(context):
                    if isinstance(event, Check):
                        yield event
            except Stage3Error as error:
                yield error


def gpu_checks() -> Iterator[Check]:
    gpus = Gpus()
    for gpu in gpus.read():
        total = (gpu.memory_total_bytes or 0) / GIB
        free = ((gpu.memory_total_bytes or 0) - (gpu.memory_used_bytes or 0)) / GIB
        yield Check("toolchain", f"GPU {gpu.index}", "ok", f"{gpu.name}, {free:.1f} of {total:.1f} GiB free")
    if gpus.note:
        yield Check("toolchain", "GPU", "warning", f"{gpus.note}; everything runs on the CPU, slowly")


def disk_check(folder: Path) -> Check:
    there = folder.expanduser().resolve()
    while not there.exists():
        there = there.parent
    usage = shutil.disk_usage(there)
    return Check("toolchain", "disk", "ok", f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free at {there}")


def token_check() -> Check:
    """Where a token would come from; not whether the Hub takes it."""
    from engine import hub

    name = "Hugging Face token"
    try:
        found = hub.find_token(None)
    except Stage3Error as error:
        return Check("credentials", name, "failed", f"{error.what} {error.what_to_do}")
    if found is None:
        return Check("credentials", name, "skipped", "none found; a run of only local models needs none")
    others = "".join(f"; another is in {place}" for place in hub.other_sources(found))
    return Check("credentials", name, "ok", f"{found.source} (stage credentials checks what it may read){others}")
