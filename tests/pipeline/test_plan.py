"""`plan` predicts what the pipeline does: one run, and change after change, each planned first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.core.errors import ExitCode
from engine.pipeline.plan import PlannedStage, planned_stages
from tests.support.short_demo import MAKING, run, short_demo

CHANGES: dict[str, tuple[dict[str, Any], int]] = {
    # what a person changes                                                     records that are made
    "nothing yet": ({}, 28),
    "nothing": ({}, 0),
    "a setting of training": ({"beta": 0.3}, 0),
    "how often a checkpoint is written": ({"save_steps": 2}, 0),
    "the longest pair": ({"max_length": 200}, 0),
    "more examples": ({"num_examples": 34}, 6),
    "fewer examples": ({"num_examples": 30}, 0),
    "how many are answered side by side": ({"eval_prompts": 2}, 0),
    "the judge": ({"judge": "none", "accept_quality": "nobody judges these"}, 0),
    "a threshold of the gate": ({"min_usable_share": 0.2}, 0),
    "how texts are drawn": ({"temperature": 0.1}, 30),
    "and back": ({"temperature": 0.7}, 0),
}


QUICK = ("nothing yet", "a setting of training", "more examples")


@pytest.mark.fault("A14")
def test_the_plan_matches_what_is_done_change_after_change(tmp_path: Path):
    plan_and_run(tmp_path / "run", QUICK)


@pytest.mark.slow
def test_the_plan_matches_what_is_done_through_many_changes(tmp_path: Path):
    plan_and_run(tmp_path / "run", tuple(CHANGES))


def plan_and_run(folder: Path, changes: tuple[str, ...]) -> None:
    options: dict[str, Any] = {}
    for change in changes:
        more, made = CHANGES[change]
        options |= more
        planned = plan(folder, options)
        ran = run(short_demo(folder, **options))
        assert ran.code is ExitCode.DONE, change
        for name, stage in planned.items():
            assert _agrees(stage, reused=name in ran.reused), (change, stage, ran.reused)
        assert ran.most_done("pairs", "pairs") == (options.get("num_examples", 28) if made else 0), change
        if planned["adapter"].action == "reused":  # records are counted if it is known what makes them
            assert (f"{made} to make" in planned["pairs"].why) == (made > 0), (change, planned["pairs"])
        assert {stage.action for stage in plan(folder, options).values()} == {"reused"}, change


def plan(folder: Path, options: dict[str, Any]) -> dict[str, PlannedStage]:
    return {stage.name: stage for stage in planned_stages(short_demo(folder, **options)) if stage.name in MAKING}


def _agrees(stage: PlannedStage, *, reused: bool) -> bool:
    """`open` and `unknown` depend on the results of earlier stages."""
    return stage.action in ("open", "unknown") or (stage.action == "reused") == reused
