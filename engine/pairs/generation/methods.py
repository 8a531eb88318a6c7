"""The seam between the ways of making a pair: each makes the records of a batch of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError
from engine.models.backend import Backend
from engine.pairs.data.record import PairRecord
from engine.pairs.generation import best_of_n, contrast, critique_revision
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.recipe import GenerationSettings
from engine.pairs.judges.base import Judge
from engine.run.stop import StopToken

MakeRecords = Callable[[Sequence[Prompt]], list[PairRecord]]
"""The records of one batch, in the order of its prompts. Whatever is drawn has a seed of its own, made from the run's seed,
the prompt's id, the step and the attempt: a run that was killed and started again makes the same records."""


def needs_judge(config: Stage3Config) -> bool:
    """Whether the pairs themselves are made with a judge's help."""
    return config.method == "best-of-n" and config.pairs is None


def refuse_what_cannot_work(config: Stage3Config) -> None:
    """Raises ConfigError for a method that lacks what it needs, before anything is loaded."""
    if not needs_judge(config):
        return
    if config.judge == "none":
        raise ConfigError(
            "--method best-of-n needs a judge, and --judge is none.",
            "Nobody would say which of the drafts is the best one.",
            "Give --judge (self, reward-model, server), or --method contrast, which needs no judge.",
        )
    if config.temperature == 0:
        raise ConfigError(
            "--method best-of-n cannot order drafts that are all the same.",
            "With --temperature 0 a policy says the same each time.",
            "Give --temperature 0.7 or more, or another --method.",
        )


def record_maker(backend: Backend, recipe: GenerationSettings, judge: Judge | None, stop: StopToken) -> MakeRecords:
    """The way that `recipe.method` names. `judge` may be None for a method that needs none."""
    match recipe.method:
        case "contrast":
            return lambda prompts: contrast.make_records(prompts, backend, recipe)
        case "best-of-n":
            if judge is None:
                raise ValueError("best-of-n is made with a judge")
            return lambda prompts: best_of_n.make_records(prompts, backend, recipe, judge, stop)
        case _:
            return lambda prompts: critique_revision.make_records(prompts, backend, recipe)
