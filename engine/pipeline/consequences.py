"""What changing one option would do again, and what it would keep, given the stages that are already done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.core.stage_table import STAGE, STAGES

EVALUATION = "evaluation"


@dataclass(frozen=True)
class Consequence:
    """Stages by name, in their order."""

    again: tuple[str, ...] = ()
    """Done again; "evaluation" is the second half of stage training."""
    possibly_again: tuple[str, ...] = ()
    """Done again only if the results of those in `again` change."""
    kept: tuple[str, ...] = ()
    """Long stages that are kept."""
    seconds: float = 0.0
    """How long those in `again` took last time; the time of an evaluation alone is unknown."""


LONG = ("pairs", "quality", "training")


def consequence_of(changes: Sequence[str], done: Mapping[str, float | None]) -> Consequence:
    """What changing an option does.

    changes   the stages that the option affects
    done      the stages that are done, each with the seconds that it took
    """
    again = [name for name in STAGES if name in changes and name in done and not STAGE[name].always_runs]
    follow: list[str] = []
    for name in STAGES:
        sources = {key.partition(".")[0] for key in STAGE[name].inputs}
        if name in done and name not in again and sources & {*again, *follow}:
            follow.append(name)
    if EVALUATION in changes and "training" in done and "training" not in (*again, *follow):
        again.append(EVALUATION)
        follow += [name for name in ("packaging",) if name in done and name not in follow]
    stay = tuple(name for name in LONG if name in done and name not in (*again, *follow))
    return Consequence(tuple(again), tuple(follow), stay, sum(done.get(name) or 0.0 for name in again))
