"""The training set: pairs and people's edits, judged; in TRL's conversational preference format, a part held out by prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.pairs.assessment.assess import PairVerdict
from engine.pairs.assessment.gate import Tally
from engine.pairs.data.edits import Decision, apply_decision
from engine.pairs.data.record import Pair
from engine.pairs.detectors import canonical


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair as people left it, and whether it trains."""

    pair: Pair
    verdict: PairVerdict


def judged_pairs(
    pairs: Iterable[tuple[int, Pair]],
    decisions: Mapping[str, Decision],
    tally: Tally,
    scored: Callable[[Pair], Pair] = lambda pair: pair,
) -> Iterator[Judged]:
    """Judge and count (line, pair as it was made), in their order: of two that repeat each other the first one trains.

    scored   gives a pair, as people left it, a judge's scores
    """
    for line, made in pairs:
        decision = decisions.get(made.id)
        pair = scored(apply_decision(made, decision))
        yield Judged(pair, tally.add(line, pair, decision, made=made))


def training_pairs(pairs: Iterable[Pair], decisions: Mapping[str, Decision]) -> Iterator[Pair]:
    """Pairs and edits to what trains: a function of its arguments and nothing else."""
    judged = judged_pairs(enumerate(pairs), decisions, Tally())
    return (each.pair for each in judged if each.verdict.usable)


def preference_row(pair: Pair) -> dict[str, Any]:
    """`{"prompt": [messages], "chosen": [message], "rejected": [message]}`, which plain TRL loads."""
    return {
        "prompt": [dict(message) for message in pair.messages],
        "chosen": [{"role": "assistant", "content": pair.preferred}],
        "rejected": [{"role": "assistant", "content": pair.dispreferred}],
    }


def hold_out(pairs: Sequence[Pair], fraction: float, at_least: int) -> tuple[list[Pair], list[Pair]]:
    """(train, held out): `fraction` of the prompts but `at_least` so many and at most half, chosen by a hash of the prompt.

    By prompt: pairs that share one are on the same side, so that nothing held out was trained on. Both sides are in an
    order of their own: the same pairs give the same files, in whichever order they were made.
    """
    ordered = sorted((_key(pair), pair.id, number) for number, pair in enumerate(pairs))
    keys = list(dict.fromkeys(key for key, *_ in ordered))
    wanted = min(max(round(fraction * len(keys)), at_least), len(keys) // 2)
    held = set(keys[:wanted])
    train = [pairs[number] for key, _, number in ordered if key not in held]
    return train, [pairs[number] for key, _, number in ordered if key in held]


def _key(pair: Pair) -> str:
    return hashlib.sha256(canonical("\n".join(m["content"] for m in pair.messages)).encode()).hexdigest()
