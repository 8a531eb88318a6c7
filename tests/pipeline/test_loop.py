"""The pipeline over ten small stages that write real files into a real run folder."""

from __future__ import annotations

import errno
import json

import pytest

from engine.core.errors import DataError, ExitCode, NetworkError
from engine.core.events import Message, RunFinished, StageStarted
from engine.core.layout import SUPERSEDED_NOTE
from engine.core.stage_table import STAGES
from engine.pipeline import loop
from tests.support.small_stages import SmallStage, finished_stages, run_all, small_stages


@pytest.fixture
def stages(monkeypatch) -> dict[str, SmallStage]:
    return small_stages(monkeypatch)


def ran(stages: dict[str, SmallStage]) -> list[int]:
    return [stage.ran for stage in stages.values()]


def test_all_ten_run_in_order_and_are_recorded(stages, context):
    at_work = context()
    events, code = run_all(at_work)
    assert code is ExitCode.DONE and ran(stages) == [1] * 10
    assert [event.stage for event in events if isinstance(event, StageStarted)] == list(STAGES)
    assert events[-1] == RunFinished(0, "packaging fine")
    assert at_work.run.result("pairs") == {"n": 1}


def test_finished_and_valid_stages_are_reused(stages, context):
    run_all(context(), until="pairs")
    events, code = run_all(context())
    assert code is ExitCode.DONE and ran(stages) == [1] * 10
    assert finished_stages(events)["pairs"].reused and not finished_stages(events)["quality"].reused


def test_a_stage_is_done_again_after_its_own_change_and_later_ones_are_reused(stages, context):
    run_all(context())
    stages["quality"].depends = 2
    at_work = context()
    events, _ = run_all(at_work)
    assert ran(stages) == [1] * 7 + [2, 1, 1]
    text = next(
        event.text for event in events if isinstance(event, Message) and "value changed from 1 to 2" in event.text
    )
    assert "superseded" in text
    old = at_work.run.folder / "superseded" / "1"
    assert sorted(path.name for path in old.iterdir()) == [SUPERSEDED_NOTE, "quality.txt"]
    assert (old / "quality.txt").read_text() == "made 1"
    assert json.loads((old / SUPERSEDED_NOTE).read_text())["reusable"] is True


def test_a_changed_result_repeats_only_the_stage_that_uses_it(stages, context):
    run_all(context())
    stages["quality"].depends, stages["quality"].result = 2, 7
    events, _ = run_all(context())
    assert ran(stages) == [1] * 7 + [2, 2, 1]
    assert any(isinstance(e, Message) and "quality.n changed from 1 to 7" in e.text for e in events)


def test_from_does_a_stage_and_all_after_it_again_though_nothing_changed(stages, context):
    run_all(context())
    at_work = context()
    run_all(at_work, redo_from="training")
    assert ran(stages) == [1] * 8 + [2, 2]
    note = json.loads((at_work.run.folder / "superseded/1" / SUPERSEDED_NOTE).read_text())
    assert note == {"why": "--from training", "reusable": False, "files": ["training.txt", "packaging.txt"]}


def test_a_stage_that_is_never_reused_always_runs_and_repeats_nothing_else(stages, context):
    stages["credentials"].depends = None
    run_all(context())
    run_all(context())
    assert ran(stages) == [1, 1, 2] + [1] * 7


def test_a_stage_that_did_not_finish_continues_where_its_files_are(stages, context):
    stages["pairs"].failure = NetworkError("gone")
    run_all(context())
    stages["pairs"].failure = None
    at_work = context()
    run_all(at_work)
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
def test_a_failure_is_reported_recorded_and_the_exit_code(failure, code, outcome, stages, context):
    stages["adapter"].failure = failure
    at_work = context()
    events, got = run_all(at_work)
    assert got is code and stages["preflight"].ran == 0
    finished = finished_stages(events)["adapter"]
    assert finished.outcome == outcome and finished.what and finished.exit_code == code
    assert at_work.run.manifest["error"]["stage"] == "adapter"
    assert at_work.run.manifest["error"]["exit_code"] == code
    assert events[-1] == RunFinished(int(code), finished.what)


def test_a_request_to_stop_ends_before_the_next_stage(stages, context):
    at_work = context()
    generator = loop.run_pipeline(at_work)
    events = [next(generator), next(generator)]
    at_work.stop.request("SIGTERM", ExitCode.TERMINATED)
    events += list(generator)
    assert ran(stages) == [1] + [0] * 9
    assert finished_stages(events)["toolchain"].outcome == "stopped"
    assert events[-1].exit_code == 143


def test_success_clears_the_old_error(stages, context):
    stages["adapter"].failure = NetworkError("gone")
    run_all(context())
    stages["adapter"].failure = None
    at_work = context()
    run_all(at_work)
    assert at_work.run.manifest["error"] is None
