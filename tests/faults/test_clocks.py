"""Durations are measured with the monotonic clock, whatever the wall clock does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.core import clock
from engine.core.events import Event, Message
from engine.core.layout import EVENTS_JSONL
from engine.pipeline.session import Session
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.journal import Journal, read_entries
from engine.run.state import fold
from tests.support.made_up_run import make_run
from tests.support.small_stages import SmallStage, small_stages
from tui.runs.watcher import Watcher

DAY = 86_400.0


@pytest.mark.fault("F2-19", "A16")
@pytest.mark.parametrize("jump", [-DAY, DAY])
def test_a_clock_that_jumps_during_a_stage_does_not_distort_its_duration(
    jump: float, context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    wall = time.time

    class ClockJumps(SmallStage):
        def run(self, context: Context) -> Iterator[Event]:
            yield Message("info", "before")
            monkeypatch.setattr(time, "time", lambda: wall() + jump)
            return (yield from super().run(context))

    stages = small_stages(monkeypatch)
    stages["preflight"] = ClockJumps("preflight")
    run_context = context()
    run_context.run.acquire()
    session = Session(run_context, lambda entry: None)
    session.run()
    session.close()
    run_context.run.release()
    recorded = Run(run_context.run.folder).manifest["stages"]
    assert all(0 <= stage["seconds"] < 60 for stage in recorded.values())
    state = fold(read_entries(run_context.run / EVENTS_JSONL))
    assert all(0 <= (stage.elapsed(clock.now()) or 0) < 60 for stage in state.stages.values())
    times = [entry.time for entry in read_entries(run_context.run / EVENTS_JSONL)]
    assert times == sorted(times)


@pytest.mark.fault("A16")
def test_journal_times_start_at_the_wall_clock(tmp_path: Path):
    journal = Journal(tmp_path / "events.jsonl")
    written = journal.append(Message("info", "now"))
    journal.close()
    assert abs(written.time - time.time()) < 3600


@pytest.mark.fault("F2-19")
def test_a_watcher_measures_time_from_the_newest_event_of_the_run(
    tmp_path: Path, config, monkeypatch: pytest.MonkeyPatch
):
    """It depends neither on the wall clock of this machine nor on that of the run."""
    run = Run(make_run(tmp_path / "run", through="pairs", start=1.79e9 + 40 * DAY))
    watcher = Watcher(run, config())
    newest = watcher.snapshot().last_time
    assert newest <= watcher.now() < newest + 30
    later = time.monotonic() + 100
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert newest + 90 < watcher.now() < newest + 130
