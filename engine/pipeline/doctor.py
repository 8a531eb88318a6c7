"""What this machine can run: the checks of stages toolchain and dependencies, without a run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.core.config import Stage3Config
from engine.core.errors import Stage3Error
from engine.core.events import Check, Event
from engine.process.environment import quiet_libraries
from engine.run.context import Context
from engine.run.folder import Run


def examine(config: Stage3Config) -> Iterator[Check | Stage3Error]:
    """Check disk and token, then run stages toolchain and dependencies. An error ends only its part, not the others."""
    quiet_libraries()
    from engine.stages import dependencies, toolchain

    with tempfile.TemporaryDirectory() as folder:
        context = Context(config=config, run=Run(Path(folder)))
        parts: tuple[Callable[[], Iterator[Event]], ...] = (
            lambda: _disk_space(config),
            lambda: iter([token_check()]),
            lambda: toolchain.run(context),
            lambda: dependencies.run(context),
        )
        for part in parts:
            try:
                yield from (event for event in part() if isinstance(event, Check))
            except Stage3Error as error:
                yield error


def _disk_space(config: Stage3Config) -> Iterator[Event]:
    from engine.dpo.planning.disk_space import require_disk_space

    run = Run(config.output_dir)  # read only
    yield from require_disk_space(config, run)


def token_check() -> Check:
    """Where a token would come from; not whether the Hub accepts it."""
    from engine import hub

    name = "Hugging Face token"
    try:
        found = hub.find_token(None)
    except Stage3Error as error:
        return Check(name, "failed", f"{error.what} {error.what_to_do}")
    if found is None:
        return Check(name, "skipped", "none found; a run that uses only local files needs none")
    others = "".join(f"; another is in {place}" for place in hub.other_sources(found))
    return Check(name, "ok", f"{found.source} (stage credentials checks what it may read){others}")
