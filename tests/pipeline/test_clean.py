"""`clean` removes what neither the archive nor the next start needs, and nothing while a process holds the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.core import layout
from engine.core.errors import RunLocked
from engine.dpo.training.checkpoints import write_checkpoint
from engine.packaging.contents import LISTED
from engine.pairs.generation.superseded import CARRIED
from engine.pipeline.clean import KINDS, Cleanup, find_removable
from engine.run.folder import Run
from tests.run.test_listing import made_run
from tui.commands.clean import clean


def paths(found: Cleanup) -> tuple[list[str], list[str]]:
    return [item.path for item in found.removable], [item.path for item in found.kept]


def checkpoint(run: Run, step: int) -> Path:
    return write_checkpoint(
        run / layout.CHECKPOINTS_DIR,
        step,
        lambda folder: (folder / "optimizer.pt").write_bytes(b"0" * step) and None,
        "f",
    )


def set_aside(run: Run, name: str, text: str = "{}\n", **note: object) -> Path:
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text(text)
    folder = run.set_aside(name, why="seed changed from 1 to 2", **note)  # type: ignore[arg-type]
    assert folder is not None
    return folder


def caches(run: Run) -> None:
    (run / layout.CACHE_DIR).mkdir()
    for name in (layout.ANSWERS, layout.REFERENCE_LOGPS):
        (run / layout.CACHE_DIR / name).write_text("{}\n")


def test_a_finished_runs_old_checkpoints_caches_and_superseded_files_are_removed(tmp_path: Path):
    run = made_run(tmp_path / "run")
    for step in (2, 4, 6):
        checkpoint(run, step)
    set_aside(run, layout.PAIRS_JSONL)
    caches(run)
    removable, kept = paths(find_removable(run))
    assert removable == [
        "superseded/1", "checkpoints/checkpoint-2", "checkpoints/checkpoint-4", "cache/answers.jsonl",
        "cache/reference_logps.jsonl",
    ]  # fmt: skip
    assert kept == ["checkpoints/checkpoint-6"]
    removed = clean(run, KINDS)
    assert paths(removed)[0] == removable and not any((run / path).exists() for path in removable)
    assert (run / "checkpoints/checkpoint-6/optimizer.pt").is_file()
    assert paths(find_removable(run)) == ([], kept)


def test_the_newest_valid_checkpoint_stays(tmp_path: Path):
    run = made_run(tmp_path / "run")
    checkpoint(run, 2)
    (checkpoint(run, 4) / "optimizer.pt").write_bytes(b"torn")
    assert paths(find_removable(run)) == (["checkpoints/checkpoint-4"], ["checkpoints/checkpoint-2"])
    (run / "checkpoints/checkpoint-2/manifest.json").unlink()
    assert paths(find_removable(run))[0] == []


@pytest.mark.parametrize("status", ["running", "failed", "stopped"])
def test_during_training_checkpoints_and_caches_stay_and_broken_ones_go(status: str, tmp_path: Path):
    run = made_run(tmp_path / "run", "training", status)
    for step in (2, 4):
        checkpoint(run, step)
    (run / "checkpoints/broken-checkpoint-3").mkdir()
    (run / "checkpoints/.checkpoint-5.part").mkdir()
    set_aside(run, f"{layout.CHECKPOINTS_DIR}-old")
    checkpoint_of_before = run.folder / "superseded/1" / layout.CHECKPOINTS_DIR
    checkpoint_of_before.mkdir()
    caches(run)
    removable, kept = paths(find_removable(run))
    assert removable == ["checkpoints/.checkpoint-5.part", "checkpoints/broken-checkpoint-3"]
    assert "superseded/1" in kept and "cache/answers.jsonl" in kept and "checkpoints/checkpoint-2" in kept


def test_pairs_that_were_set_aside_stay_until_stage_pairs_has_reused_them(tmp_path: Path):
    run = made_run(tmp_path / "run", "pairs", "stopped")
    set_aside(run, layout.PAIRS_JSONL)
    set_aside(run, layout.PAIRS_JSONL, reusable=False)
    assert paths(find_removable(run)) == (["superseded/2"], ["superseded/1"])
    run.record_stage("pairs", status="done")
    assert paths(find_removable(run)) == (["superseded/1", "superseded/2"], [])


def test_decisions_that_follow_no_pair_stay(tmp_path: Path):
    run = made_run(tmp_path / "run")
    folder = set_aside(run, layout.EDITS_JSONL)
    assert paths(find_removable(run)) == ([], ["superseded/1"])
    (folder / CARRIED).write_text(json.dumps({"carried": 2, "not_carried": ["x"]}))
    assert paths(find_removable(run)) == ([], ["superseded/1"])
    (folder / CARRIED).write_text(json.dumps({"carried": 3, "not_carried": []}))
    assert paths(find_removable(run)) == (["superseded/1"], [])


def test_trials_are_cleaned_too_and_the_cache_stays_until_the_last_training_ends(tmp_path: Path):
    run = made_run(tmp_path / "run", "quality")
    caches(run)
    for name in ("a", "b"):
        trial = made_run(run / "trials" / name, "training")
        for step in (2, 4):
            checkpoint(trial, step)
    removable, kept = paths(find_removable(run))
    assert removable == ["trials/a/checkpoints/checkpoint-2", "trials/b/checkpoints/checkpoint-2"]
    assert "cache/answers.jsonl" in kept
    run.record_stage("training", status="done")
    assert "cache/answers.jsonl" in paths(find_removable(run))[0]


@pytest.mark.parametrize("held", ["", "trials/a"])
def test_nothing_is_removed_while_a_process_has_the_run_or_a_trial(held: str, tmp_path: Path):
    run = made_run(tmp_path / "run")
    made_run(run / "trials" / "a", "training")
    checkpoint(run, 2)
    checkpoint(run, 4)
    other = Run(run / held)
    other.acquire()
    try:
        with pytest.raises(RunLocked):
            clean(Run(run.folder), KINDS)
    finally:
        other.release()
    assert (run / "checkpoints/checkpoint-2").is_dir()


def test_nothing_that_the_archive_contains_is_removable(tmp_path: Path):
    run = made_run(tmp_path / "run")
    for name in LISTED:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        if not (run / name).exists():
            (run / name).write_text("{}\n")
    checkpoint(run, 2)
    caches(run)
    clean(run, KINDS)
    assert all((run / name).is_file() for name in LISTED)


def test_only_selects_one_kind(tmp_path: Path):
    run = made_run(tmp_path / "run")
    checkpoint(run, 2)
    checkpoint(run, 4)
    caches(run)
    clean(run, ("caches",))
    assert (run / "checkpoints/checkpoint-2").is_dir() and not (run / "cache/answers.jsonl").exists()
