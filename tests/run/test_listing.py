"""Listing runs: which folders are runs, how far each got, and which trials belong to it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from engine.core.stage_table import STAGES
from engine.run.folder import Run
from engine.run.listing import find_runs, summarize_run


def made_run(folder: Path, until: str = STAGES[-1], status: str = "done", **results: dict[str, Any]) -> Run:
    """All stages before `until` are done; that one has `status`."""
    folder.mkdir(parents=True)
    run = Run(folder)
    run.manifest["config"] = {"base_model_id": "google/gemma-2b-it"}
    for number, name in enumerate(STAGES[: STAGES.index(until) + 1]):
        how = status if name == until else "done"
        run.record_stage(name, status=how, started=1000.0 + number, seconds=0.5, result=results.get(name, {}))
    return run


def test_runs_below_a_folder_are_found_newest_first_without_other_folders(tmp_path: Path):
    made_run(tmp_path / "early", "pairs")
    made_run(tmp_path / "deep" / "er" / "late")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"scripts": {}}')
    (tmp_path / ".hidden").mkdir()
    made_run(tmp_path / ".hidden" / "run")
    (tmp_path / "link").symlink_to(tmp_path / "early")
    assert [run.folder.name for run in find_runs(tmp_path)] == ["late", "early"]


def test_a_run_is_reported_with_its_model_pairs_verdict_size_and_archive(tmp_path: Path):
    run = made_run(
        tmp_path / "run",
        pairs={"pairs_sha256": "a", "records": 160, "ok": 151},
        training={"tensors_sha256": "b", "verdict": "better"},
    )
    (run / "pairs").mkdir()
    (run / layout.PAIRS_JSONL).write_bytes(b"x" * 700)
    run.archive.write_bytes(b"y" * 50)
    found = summarize_run(run.folder)
    assert (found.model, found.pairs, found.verdict, found.state) == ("gemma-2b-it", 151, "better", "done")
    assert found.bytes == 750 + (run / layout.RUN_JSON).stat().st_size
    assert found.when == 1009.5


@pytest.mark.parametrize(
    ("status", "state"),
    [("running", "interrupted"), ("failed", "failed"), ("refused", "refused"), ("stopped", "stopped")],
)
def test_the_stage_and_state_in_which_a_run_ended_are_reported(status: str, state: str, tmp_path: Path):
    found = summarize_run(made_run(tmp_path / "run", "quality", status).folder)
    assert (found.state, found.stage) == (state, "quality")


def test_a_run_with_a_live_owner_is_running(tmp_path: Path):
    run = made_run(tmp_path / "run", "pairs", "running")
    run.acquire()
    try:
        assert (summarize_run(run.folder).state, summarize_run(run.folder).stage) == ("running", "pairs")
    finally:
        run.release()
    assert summarize_run(run.folder).state == "interrupted"


def test_a_run_of_some_stages_reports_which_one_is_next(tmp_path: Path):
    found = summarize_run(made_run(tmp_path / "run", "pairs").folder)
    assert (found.state, found.stage) == ("unfinished", "quality")


def test_trials_are_listed_under_their_sweep_and_end_with_training(tmp_path: Path):
    made_run(tmp_path / "sweep", "quality")
    for name in ("b", "a"):
        made_run(tmp_path / "sweep" / "trials" / name, "training")
    (tmp_path / "sweep" / layout.SWEEP_REPORT).write_text("{}")
    (sweep,) = find_runs(tmp_path)
    assert [(trial.folder.name, trial.state) for trial in sweep.trials] == [("a", "done"), ("b", "done")]


def test_a_damaged_run_is_listed_as_damaged(tmp_path: Path):
    run = made_run(tmp_path / "run")
    (run / "logs").mkdir()
    (run / layout.EVENTS_JSONL).write_text("")
    (run / layout.RUN_JSON).write_text('{"schema": 1, "sta')
    assert [found.state for found in find_runs(tmp_path)] == ["damaged"]
    (run / layout.RUN_JSON).write_text(json.dumps({"schema": 7, "stages": {}}))
    assert [found.state for found in find_runs(tmp_path)] == ["damaged"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_is_skipped(tmp_path: Path):
    made_run(tmp_path / "run")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        assert len(find_runs(tmp_path)) == 1
    finally:
        closed.chmod(0o700)
