"""A stall is detected, reported and logged; nothing is ended because of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.core.errors import ExitCode
from engine.core.events import Event, Message, Progress, RunFinished, RunStarted, StageStarted, Stalled
from engine.core.layout import RUN_LOG
from engine.pipeline.session import Session
from engine.run import watchdog
from engine.run.context import Context
from engine.run.journal import Entry
from engine.run.state import RunState
from engine.run.watchdog import MIN_SECONDS, TIMES_THE_LONGEST, StallWatchdog
from engine.stages.base import StageEnd
from tests.support.small_stages import Made, SmallStage, small_stages
from tui.widgets.status_lines import title_line


class Watched:
    """A watchdog with a clock that the test controls."""

    def __init__(self, folder: Path) -> None:
        self.now, self.events = 1_000.0, []
        self.log = folder / "run.log"
        self.watch = StallWatchdog(self.events.append, self.log, lambda: self.now)

    def after(self, seconds: float, event: Event | None = None) -> list[Event]:
        """The events after this many seconds, when `event` arrives (if any) and a check runs."""
        self.now += seconds
        self.events.clear()
        if event is not None:
            self.watch.note_event(event)
        self.watch.check()
        return list(self.events)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    made = Watched(tmp_path)
    made.after(1, StageStarted("training"))
    return made


def a_step(number: int) -> Progress:
    return Progress(number, 99, "steps", stage="training")


@pytest.mark.fault("A19")
def test_a_long_silence_is_reported_once_and_its_end_too(watched: Watched):
    watched.after(3, a_step(1))
    assert watched.after(MIN_SECONDS - 1) == []
    stalled, message = watched.after(2)
    assert stalled == Stalled("training", MIN_SECONDS + 1)
    assert isinstance(message, Message) and message.level == "warning" and "5.0 min" in message.text
    assert watched.after(600) == []
    resumed, message = watched.after(1, a_step(2))
    assert resumed == Stalled("training", 0.0)
    assert isinstance(message, Message) and "after 15.0 min" in message.text


def test_a_stage_with_slow_steps_may_be_silent_for_longer(watched: Watched):
    slow = MIN_SECONDS / 2
    watched.after(slow, a_step(1))
    assert watched.after(TIMES_THE_LONGEST * slow - 1) == []
    assert watched.after(2) != []


def test_the_limit_of_one_stage_does_not_carry_over_to_the_next(watched: Watched):
    watched.after(MIN_SECONDS - 1, a_step(1))
    watched.after(1, StageStarted("packaging"))
    assert watched.after(MIN_SECONDS + 1) != []


def test_an_interactive_stage_may_wait_for_the_user(watched: Watched):
    watched.after(1, StageStarted("credentials"))
    assert watched.after(3 * MIN_SECONDS) == []


@pytest.mark.fault("A19")
def test_a_hanging_run_reports_where_it_hangs_and_finishes_when_it_continues(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    released = threading.Event()

    class Hangs(SmallStage):
        def run(self, context: Context) -> Any:
            yield Progress(1, 2, "things", stage="toolchain")
            a_lock_that_is_never_released(released)
            yield Progress(2, 2, "things", stage="toolchain")
            return StageEnd("done", Made(1))

    stages = small_stages(monkeypatch)
    stages["toolchain"] = Hangs("toolchain")
    monkeypatch.setattr(watchdog, "MIN_SECONDS", 0.3)
    states, shown = [RunState()], []

    def listen(entry: Entry) -> None:
        states.append(states[-1].apply_entry(entry))
        if isinstance(entry.event, Stalled):
            shown.append(title_line(states[-1], "run", "", entry.time, 100).plain)
            released.set()

    at_work = context()
    at_work.run.acquire()
    session = Session(at_work, listen)
    try:
        assert session.run(until="toolchain") is ExitCode.DONE
    finally:
        session.close()
        at_work.run.release()
    assert "silent for" in shown[0] and "silent for" not in shown[1]
    assert "a_lock_that_is_never_released" in (at_work.run / RUN_LOG).read_text()


def a_lock_that_is_never_released(released: threading.Event) -> None:
    assert released.wait(20)


def test_the_end_of_a_process_is_not_a_stall():
    state = RunState().apply(RunStarted("run", "0", 1, "here"), 1.0).apply(Stalled("pairs", 400.0), 500.0)
    assert state.stalled_since == 100.0
    assert state.apply(RunFinished(143, "stopped"), 501.0).stalled_since is None
    assert state.apply(RunStarted("run", "0", 2, "here"), 502.0).stalled_since is None
