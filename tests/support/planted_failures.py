"""The program with every stage failing once, with the token in its events, log, exception and local variables.

`python -m tests.support.planted_failures ARGUMENTS` is `stage3-tui ARGUMENTS`; with `--auto` it is repeated in one process until it
succeeds.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator
from importlib import import_module
from typing import Any

from engine.core.events import Check, Event, Message
from engine.core.stage_table import STAGES
from engine.run.context import Context
from tui.cli import main

PLANTED = "a failure was planted"


def plant_failures() -> None:
    for name in STAGES:
        stage = import_module(f"engine.stages.{name}")
        stage.run = failing_once(name, stage.run)  # type: ignore[attr-defined]


def failing_once(name: str, run: Callable[[Context], Any]) -> Callable[[Context], Generator[Event, None, Any]]:
    failed = []

    def stage(context: Context) -> Generator[Event, None, Any]:
        if failed:
            return (yield from run(context))
        failed.append(name)
        token = context.token.reveal() if context.token is not None else "no token"
        yield Check("planted", "warning", f"Authorization: Bearer {token}", stage=name)
        yield Message("warning", f"about to fail with {token}", name)
        logging.getLogger("some.library").error("refused: %s", token)
        raise RuntimeError(f"{PLANTED} with {token}") from OSError(f"Bearer {token}")

    return stage


def until_it_succeeds(arguments: list[str]) -> None:
    for _ in range(3 * len(STAGES)):
        code = main(arguments)
        print("ended with", code, flush=True)
        if code == 0:
            return
    raise AssertionError("it never succeeded")


if __name__ == "__main__":
    plant_failures()
    given = sys.argv[1:]
    if "--auto" in given:
        until_it_succeeds(given)
    else:
        sys.exit(main(given))
