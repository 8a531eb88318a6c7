from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from engine.events import (
    KINDS,
    Check,
    CheckpointSaved,
    GpuReading,
    Message,
    PairFailed,
    PairMade,
    Progress,
    RunStarted,
    StageFinished,
    StageStarted,
    Telemetry,
    TrainStep,
    event_from_dict,
)
from engine.journal import Entry, Journal, read_entries
from engine.state import RunState, fold


def step(number: int, loss: float = 0.5) -> TrainStep:
    return TrainStep(number, 9, loss, 0.3, -0.2, 0.5, 0.75, 1e-3, 1.25, 321.0)


def state_after(*events: object) -> RunState:
    return fold(Entry(seq, 100.0 + seq, event) for seq, event in enumerate(events))


def test_the_kinds_of_the_contract_are_all_there():
    contract = (
        "stage_started stage_finished progress pair_made pair_failed train_step eval_done checkpoint_saved telemetry "
        "message run_finished"
    )
    assert set(contract.split()) <= set(KINDS)


def test_every_kind_survives_the_journal(tmp_path: Path):
    said = [
        StageStarted("pairs"),
        PairMade("x", "why?", "draft", "better", principle_ids=("kind",)),
        step(3),
        Telemetry((GpuReading(0, "T4", 7, 15),), 1, 2, 3),
        Message("info", "line\nwith \x1b"),
    ]
    journal = Journal(tmp_path / "events.jsonl")
    for event in said:
        journal.append(event)
    assert [entry.event for entry in read_entries(tmp_path / "events.jsonl")] == said
    assert [entry.seq for entry in read_entries(tmp_path / "events.jsonl")] == [0, 1, 2, 3, 4]
    journal.close()
    assert Journal(tmp_path / "events.jsonl").append(step(4)).seq == 5


def test_a_nan_in_an_event_is_written_as_a_word(tmp_path: Path):
    journal = Journal(tmp_path / "events.jsonl")
    journal.append(step(1, loss=float("nan")))
    assert json.loads((tmp_path / "events.jsonl").read_text())["loss"] == "nan"


def test_an_event_of_a_newer_version_is_passed_over_and_its_new_fields_dropped():
    assert event_from_dict({"kind": "telepathy"}) is None
    assert event_from_dict({"kind": "message", "level": "info", "text": "x", "colour": "red"}) == Message("info", "x")


def test_a_stage_runs_finishes_and_keeps_its_checks():
    state = state_after(
        StageStarted("adapter"),
        Check("adapter", "rank", "ok", "8"),
        Check("adapter", "rank", "warning", "9"),
        StageFinished("adapter", "done", "fine"),
    )
    stage = state.stages["adapter"]
    assert (stage.status, stage.summary, stage.elapsed(999)) == ("done", "fine", 3.0)
    assert [check.detail for check in stage.checks] == ["9"]


def test_a_stage_that_an_earlier_process_finished_keeps_what_it_showed():
    state = state_after(
        StageStarted("adapter"),
        Check("adapter", "rank", "ok", "8"),
        StageFinished("adapter", "done", "fine"),
        RunStarted("/run", "1", 2, "host"),
        StageFinished("adapter", "skipped", "fine", reused=True),
    )
    assert state.stages["adapter"].status == "done"
    assert state.stages["adapter"].checks


def test_a_stage_whose_process_died_waits_again():
    state = state_after(StageStarted("pairs"), RunStarted("/run", "1", 2, "host"))
    assert state.stages["pairs"].status == "waiting"


def test_steps_that_are_done_again_after_a_resume_replace_the_old_telling():
    state = state_after(step(1, 0.9), step(2, 0.8), step(3, 0.7), CheckpointSaved(2, "a"), step(2, 0.6), step(3, 0.5))
    assert [(s.step, s.loss) for s in state.train_steps] == [(1, 0.9), (2, 0.6), (3, 0.5)]


def test_steps_are_the_progress_of_training_at_the_rate_of_this_process():
    state = state_after(
        step(1), RunStarted("/run", "1", 2, "host"), StageStarted("training"), step(3), step(4), step(5)
    )
    progress = state.stages["training"].progress
    assert (progress.done, progress.total, progress.rate, progress.seconds_left) == (5, 9, 1.0, 4.0)
    answers = Progress("training", 1, 40, "answers")
    assert state.apply(answers, 110.0).stages["training"].progress == answers


def test_failures_are_counted_by_reason():
    failed = PairFailed("x", "why?", "meta")
    state = state_after(StageStarted("pairs"), failed, PairMade("y", "p", "a", "b"), failed)
    assert (state.pairs_made, dict(state.pair_failures)) == (1, {"meta": 2})


def test_an_entry_seen_twice_changes_nothing():
    entry = Entry(7, 1.0, PairMade("y", "p", "a", "b"))
    assert RunState().apply_entry(entry).apply_entry(entry).pairs_made == 1


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_a_sentence_or_speaks_for_itself(kind: str):
    assert fields(KINDS[kind])
