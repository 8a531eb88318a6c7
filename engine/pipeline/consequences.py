"""What a change of one option would do again, and what stays: from the stages that it names and what is done already."""

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
    """Done again if the result of those is another one."""
    kept: tuple[str, ...] = ()
    """Long stages that are kept."""
    seconds: float = 0.0
    """That those in `again` took the last time; of an evaluation alone nobody knows."""


LONG = ("pairs", "quality", "training")


def consequence_of(changes: Sequence[str], done: Mapping[str, float | None]) -> Consequence:
    """Of an option that says `changes`, where the stages in `done` are done; each with the seconds that it took."""
    again = [name for name in STAGES if name in changes and name in done and not STAGE[name].every_time]
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
