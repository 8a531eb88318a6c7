from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from engine.core.events import (
    KINDS,
    Check,
    CheckpointSaved,
    EvalDone,
    Forecast,
    GpuReading,
    Message,
    PairFailed,
    PairMade,
    Progress,
    RunStarted,
    StageFinished,
    StageStale,
    StageStarted,
    Telemetry,
    TrainStep,
    event_from_dict,
)
from engine.run.journal import Entry, Journal, read_entries
from engine.run.state import RunState, fold


def step(number: int, loss: float = 0.5) -> TrainStep:
    return TrainStep(number, 9, loss, 0.3, -0.2, 0.5, 0.75, 1e-3, 1.25, 321.0)


def state_after(*events: object) -> RunState:
    return fold(Entry(seq, 100.0 + seq, event) for seq, event in enumerate(events))


def test_all_kinds_of_the_contract_exist():
    contract = (
        "stage_started stage_finished progress pair_made pair_failed train_step eval_done checkpoint_saved telemetry "
        "message run_finished"
    )
    assert set(contract.split()) <= set(KINDS)


def test_every_kind_survives_the_journal(tmp_path: Path):
    events = [
        StageStarted("pairs"),
        PairMade("x", "why?", "draft", "better", principle_ids=("kind",)),
        step(3),
        Telemetry((GpuReading(0, "T4", 7, 15),), 1, 2, 3),
        Message("info", "line\nwith \x1b"),
    ]
    journal = Journal(tmp_path / "events.jsonl")
    for event in events:
        journal.append(event)
    assert [entry.event for entry in read_entries(tmp_path / "events.jsonl")] == events
    assert [entry.seq for entry in read_entries(tmp_path / "events.jsonl")] == [0, 1, 2, 3, 4]
    journal.close()
    assert Journal(tmp_path / "events.jsonl").append(step(4)).seq == 5


def test_a_nan_in_an_event_is_written_as_a_word(tmp_path: Path):
    journal = Journal(tmp_path / "events.jsonl")
    journal.append(step(1, loss=float("nan")))
    assert json.loads((tmp_path / "events.jsonl").read_text())["loss"] == "nan"


@pytest.mark.fault("A15")
def test_unknown_kinds_and_fields_of_a_newer_version_are_dropped():
    assert event_from_dict({"kind": "telepathy"}) is None
    assert event_from_dict({"kind": "message", "level": "info", "text": "x", "colour": "red"}) == Message("info", "x")


def test_a_stage_runs_finishes_and_keeps_its_checks():
    state = state_after(
        StageStarted("adapter"),
        Check("rank", "ok", "8", stage="adapter"),
        Check("rank", "warning", "9", stage="adapter"),
        StageFinished("adapter", "done", "fine"),
    )
    stage = state.stages["adapter"]
    assert (stage.status, stage.summary, stage.elapsed(999)) == ("done", "fine", 3.0)
    assert [check.detail for check in stage.checks] == ["9"]


def test_a_stage_that_an_earlier_process_finished_keeps_its_checks():
    state = state_after(
        StageStarted("adapter"),
        Check("rank", "ok", "8", stage="adapter"),
        StageFinished("adapter", "done", "fine"),
        RunStarted("/run", "1", 2, "host"),
        StageFinished("adapter", "skipped", "fine", reused=True),
    )
    assert state.stages["adapter"].status == "done"
    assert state.stages["adapter"].checks


def test_a_stage_whose_process_died_waits_again():
    state = state_after(StageStarted("pairs"), RunStarted("/run", "1", 2, "host"))
    assert state.stages["pairs"].status == "waiting"


def test_steps_repeated_after_a_resume_replace_the_earlier_ones():
    state = state_after(step(1, 0.9), step(2, 0.8), step(3, 0.7), CheckpointSaved(2, "a"), step(2, 0.6), step(3, 0.5))
    assert [(s.step, s.loss) for s in state.train_steps] == [(1, 0.9), (2, 0.6), (3, 0.5)]


def test_training_progress_is_counted_in_steps_at_the_rate_of_this_process():
    state = state_after(
        step(1), RunStarted("/run", "1", 2, "host"), StageStarted("training"), step(3), step(4), step(5)
    )
    progress = state.stages["training"].progress
    assert (progress.done, progress.total, progress.rate, progress.seconds_left) == (5, 9, 1.0, 4.0)
    answers = Progress(1, 40, "answers", stage="training")
    assert state.apply(answers, 110.0).stages["training"].progress == answers


def test_a_stage_that_continues_keeps_the_pairs_that_an_earlier_process_reported():
    state = state_after(
        StageStarted("pairs"),
        PairMade("x", "p", "a", "b"),
        RunStarted("/run", "1", 2, "host"),
        StageStarted("pairs"),
        PairMade("y", "p", "a", "b"),
    )
    assert state.pairs_made == 2 and len(state.newest_pairs) == 2


def test_a_stale_stage_shows_nothing_that_it_made():
    """Regression test: a curve, verdict or count of an earlier run stayed on the screen until new ones arrived."""
    state = state_after(
        StageFinished("preflight", "done"),
        Forecast({"pairs": 60.0}, {}),
        PairMade("x", "p", "a", "b"),
        PairFailed("y", "p", "meta"),
        step(1),
        CheckpointSaved(1, "c"),
        EvalDone("better"),
        StageFinished("training", "done", "fine"),
        *(
            StageStale(name, "seed changed from 1 to 2")
            for name in ("preflight", "pairs", "quality", "training", "packaging")
        ),
    )
    assert (state.pairs_made, dict(state.pair_failures), state.newest_pairs) == (0, {}, ())
    assert (state.train_steps, state.checkpoints, state.evaluation, state.forecast) == ((), (), None, None)
    assert {state.stages[name].status for name in ("preflight", "training")} == {"waiting"}


def test_the_expected_duration_comes_from_the_forecast_and_later_from_the_stages_progress():
    state = state_after(Forecast({"pairs": 600.0}, {"training": 7e9}, on_gpu=True, gpu=1))
    assert state.expected_seconds("pairs", 101.0) == 600.0
    assert state.expected_seconds("quality", 101.0) is None
    state = state.apply(StageStarted("pairs"), 110.0).apply(Progress(5, 20, "pairs", 0.5, 30.0, stage="pairs"), 120.0)
    assert state.expected_seconds("pairs", 125.0) == 45.0


def test_a_reused_stage_keeps_its_facts():
    left = {"rank": 8, "target_modules": ("q_proj",)}
    state = state_after(StageFinished("adapter", "done", "fine", facts=left))
    assert state.stages["adapter"].facts == left
    state = state.apply(StageFinished("adapter", "skipped", "fine", reused=True), 9.0)
    assert state.stages["adapter"].facts == left


def test_a_skipped_stage_stays_skipped_when_it_is_reused():
    state = state_after(StageFinished("credentials", "skipped", "No token is needed."))
    state = state.apply(StageFinished("credentials", "skipped", "No token is needed.", reused=True), 9.0)
    assert (state.stages["credentials"].status, state.stages["credentials"].reused) == ("skipped", True)


def test_the_latest_stage_is_the_one_that_started_or_ended_last():
    state = state_after(StageStarted("adapter"), StageFinished("adapter", "failed", "no"))
    assert (state.latest, state.current) == ("adapter", None)
    assert state.apply(StageFinished("pairs", "skipped", "fine", reused=True), 9.0).latest == "adapter"


def test_failures_are_counted_by_reason():
    failed = PairFailed("x", "why?", "meta")
    state = state_after(StageStarted("pairs"), failed, PairMade("y", "p", "a", "b"), failed)
    assert (state.pairs_made, dict(state.pair_failures)) == (1, {"meta": 2})


def test_an_entry_seen_twice_changes_nothing():
    entry = Entry(7, 1.0, PairMade("y", "p", "a", "b"))
    assert RunState().apply_entry(entry).apply_entry(entry).pairs_made == 1


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_fields(kind: str):
    assert fields(KINDS[kind])
