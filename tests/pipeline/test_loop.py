"""The pipeline over ten small stages that write real files into a real run folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.core.errors import DataError, ExitCode, NetworkError
from engine.core.events import Event, Message, RunFinished, StageFinished, StageStarted
from engine.core.stage_table import STAGES
from engine.pipeline import loop
from engine.run.context import Context
from engine.stages.base import StageResult


@dataclass
class Small:
    """A stage that leaves one file, depends on one value, and fails when it is told to."""

    name: str
    depends: Any = 1
    failure: BaseException | None = None
    ran: int = 0
    outcome: str = "done"
    OUTPUTS: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        self.OUTPUTS = (f"{self.name}.txt",)

    def depends_on(self, context: Context) -> dict[str, Any] | None:
        return None if self.depends is None else {"value": self.depends}

    def run(self, context: Context) -> Iterator[Event]:
        self.ran += 1
        (context.run / f"{self.name}.txt").write_text(f"made {self.ran}")
        yield Message("info", f"{self.name} at work", self.name)
        if self.failure is not None:
            raise self.failure
        return StageResult(f"{self.name} fine", {"n": self.ran}, self.outcome)


@pytest.fixture
def stages(monkeypatch) -> dict[str, Small]:
    made = {name: Small(name) for name in STAGES}
    monkeypatch.setattr(loop, "load_stage", made.__getitem__)
    return made


def run(context: Context, **arguments: Any) -> tuple[list[Event], ExitCode]:
    events, generator = [], loop.run_pipeline(context, **arguments)
    while True:
        try:
            events.append(next(generator))
        except StopIteration as end:
            return events, end.value


def ran(stages: dict[str, Small]) -> list[int]:
    return [stage.ran for stage in stages.values()]


def finished(events: list[Event]) -> dict[str, StageFinished]:
    return {event.stage: event for event in events if isinstance(event, StageFinished)}


def test_all_ten_run_in_order_and_are_recorded(stages, context):
    at_work = context()
    events, code = run(at_work)
    assert code is ExitCode.DONE and ran(stages) == [1] * 10
    assert [event.stage for event in events if isinstance(event, StageStarted)] == list(STAGES)
    assert events[-1] == RunFinished(0, "packaging fine")
    assert at_work.run.result("pairs") == {"n": 1}


def test_what_is_done_and_holds_is_skipped(stages, context):
    run(context(), until="pairs")
    events, code = run(context())
    assert code is ExitCode.DONE and ran(stages) == [1] * 10
    assert finished(events)["pairs"].reused and not finished(events)["quality"].reused


def test_a_stage_whose_grounds_changed_is_done_again_with_what_follows_and_the_old_files_are_kept(stages, context):
    run(context())
    stages["quality"].depends = 2
    at_work = context()
    events, _ = run(at_work)
    assert ran(stages) == [1] * 7 + [2] * 3
    said = next(event.text for event in events if isinstance(event, Message) and "value: 1 became 2" in event.text)
    assert "superseded" in said
    old = at_work.run.folder / "superseded" / "1"
    assert sorted(path.name for path in old.iterdir()) == ["packaging.txt", "quality.txt", "training.txt"]
    assert (old / "training.txt").read_text() == "made 1"


def test_from_does_a_stage_again_though_nothing_changed(stages, context):
    run(context())
    run(context(), redo_from="training")
    assert ran(stages) == [1] * 8 + [2, 2]


def test_a_stage_without_a_fingerprint_always_runs_and_makes_nothing_stale(stages, context):
    stages["credentials"].depends = None
    run(context())
    run(context())
    assert ran(stages) == [1, 1, 2] + [1] * 7


def test_a_stage_that_did_not_finish_goes_on_where_its_files_are(stages, context):
    stages["pairs"].failure = NetworkError("gone")
    run(context())
    stages["pairs"].failure = None
    at_work = context()
    run(at_work)
    assert ran(stages) == [1] * 6 + [2, 1, 1, 1]
    assert not (at_work.run.folder / "superseded").exists()


@pytest.mark.parametrize(
    ("failure", "code", "outcome"),
    [
        (NetworkError("the Hub is away", "no route", "try later"), ExitCode.NETWORK, "failed"),
        (DataError("nothing to learn"), ExitCode.DATA, "refused"),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.DISK, "failed"),
        (RuntimeError("basic_ios::clear: iostream error"), ExitCode.DISK, "failed"),
        (RuntimeError("CUDA out of memory. Tried"), ExitCode.MEMORY, "failed"),
        (KeyError("a bug"), ExitCode.BUG, "failed"),
    ],
)
def test_a_failure_is_told_recorded_and_the_exit_code(failure, code, outcome, stages, context):
    stages["adapter"].failure = failure
    at_work = context()
    events, got = run(at_work)
    assert got is code and stages["preflight"].ran == 0
    told = finished(events)["adapter"]
    assert told.outcome == outcome and told.what and told.exit_code == code
    assert at_work.run.manifest["error"]["stage"] == "adapter"
    assert at_work.run.manifest["error"]["exit_code"] == code
    assert events[-1] == RunFinished(int(code), told.what)


def test_a_request_to_stop_ends_before_the_next_stage(stages, context):
    at_work = context()
    generator = loop.run_pipeline(at_work)
    events = [next(generator), next(generator)]
    at_work.stop.request("SIGTERM", ExitCode.TERMINATED)
    events += list(generator)
    assert ran(stages) == [1] + [0] * 9
    assert finished(events)["toolchain"].outcome == "stopped"
    assert events[-1].exit_code == 143


def test_success_clears_the_old_error(stages, context):
    stages["adapter"].failure = NetworkError("gone")
    run(context())
    stages["adapter"].failure = None
    at_work = context()
    run(at_work)
    assert at_work.run.manifest["error"] is None
