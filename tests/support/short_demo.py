"""A small demo run in this process: few prompts, only the stages that compute something, and their events."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.config import load_config
from engine.core.errors import ExitCode, RestartNeeded
from engine.core.events import Event, PairFailed, PairMade, Progress, StageFinished, TrainStep
from engine.demo.preset import demo_defaults
from engine.pipeline.loop import run_stages
from engine.run.context import Context
from engine.run.folder import Run

MAKING = ("adapter", "preflight", "pairs", "quality", "training")
"""The stages that compute something. The others check this machine, or pack."""
SHORT = {
    "num_examples": 28,
    "split": "train[:40]",
    "min_pairs": 8,
    "min_eval_pairs": 4,
    "num_train_epochs": 1.0,
    "eval_prompts": 3,
    "eval_harmless_prompts": 2,
    "save_steps": 1,
    "max_length": 128,  # preflight rehearses with pairs of this length; the demo's longest has 93 tokens
}


def short_demo(folder: Path, **options: Any) -> Context:
    config = load_config({**SHORT, "output_dir": folder, **options}, preset=demo_defaults(), environment={})
    return Context(config, Run(folder))


@dataclass(frozen=True)
class Ran:
    """The events of one start of the pipeline."""

    code: ExitCode
    events: list[Event]

    @property
    def reused(self) -> set[str]:
        return {e.stage for e in self.events if isinstance(e, StageFinished) and e.reused}

    @property
    def ran(self) -> set[str]:
        return {e.stage for e in self.events if isinstance(e, StageFinished) and not e.reused}

    @property
    def records(self) -> list[str]:
        """Ids of acknowledged records: generated, or reused from an earlier set."""
        return [e.id for e in self.events if isinstance(e, (PairMade, PairFailed))]

    @property
    def steps(self) -> list[int]:
        return [e.step for e in self.events if isinstance(e, TrainStep)]

    @property
    def failure(self) -> StageFinished:
        return next(e for e in self.events if isinstance(e, StageFinished) and e.outcome in ("failed", "refused"))

    def most_done(self, unit: str, stage: str) -> int:
        """The highest progress of a stage in this unit; 0 if there was none."""
        found = (e.done for e in self.events if isinstance(e, Progress) and (e.unit, e.stage) == (unit, stage))
        return max(found, default=0)


def run(context: Context, stages: tuple[str, ...] = MAKING) -> Ran:
    """Run these stages. If a stage asks for a fresh process, continue in this one."""
    events: list[Event] = []
    while True:
        at_work = run_stages(Context(context.config, Run(context.run.folder), context.stop), stages)
        try:
            while True:
                events.append(next(at_work))
        except StopIteration as end:
            return Ran(end.value[0], events)
        except RestartNeeded:
            continue
