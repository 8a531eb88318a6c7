"""The training set: assessed pairs with people's edits, in TRL's conversational preference format, split by prompt."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from engine.pairs.assessment.assess import PairVerdict
from engine.pairs.assessment.gate import Tally
from engine.pairs.data.edits import Decision, apply_decision
from engine.pairs.data.record import Pair
from engine.pairs.detectors import canonical
from engine.storage.lazy import take


@dataclass(frozen=True, slots=True)
class AssessedPair:
    """A pair with people's edits, and whether it trains."""

    pair: Pair
    verdict: PairVerdict


def assessed_pairs(
    pairs: Iterable[tuple[int, Pair]],
    decisions: Mapping[str, Decision],
    tally: Tally,
    scored: Callable[[Pair], Pair] = lambda pair: pair,
) -> Iterator[AssessedPair]:
    """Assess and count pairs in order; of two duplicates, the first one trains.

    pairs    (line, pair before edits)
    scored   adds a judge's scores to an edited pair
    """
    for line, made in pairs:
        decision = decisions.get(made.id)
        pair = scored(apply_decision(made, decision))
        yield AssessedPair(pair, tally.add(line, pair, decision, made=made))


def training_pairs(pairs: Iterable[Pair], decisions: Mapping[str, Decision]) -> Iterator[Pair]:
    """The pairs that train; a pure function of pairs and decisions."""
    assessed = assessed_pairs(enumerate(pairs), decisions, Tally())
    return (each.pair for each in assessed if each.verdict.usable)


def preference_row(pair: Pair) -> dict[str, Any]:
    """`{"prompt": [messages], "chosen": [message], "rejected": [message]}`, which plain TRL loads."""
    return {
        "prompt": [dict(message) for message in pair.messages],
        "chosen": [{"role": "assistant", "content": pair.preferred}],
        "rejected": [{"role": "assistant", "content": pair.dispreferred}],
    }


def hold_out(pairs: Sequence[Pair], fraction: float, at_least: int) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """Split into (train, held out). Held out are `fraction` of the prompts, at least `at_least` and at most half, by a hash.

    Pairs that share a prompt go to the same side, so no held-out prompt is trained on. Both sides are sorted by hash, so the
    same pairs give the same files, whatever order they were generated in.
    """
    ordered = sorted((_key(pair), pair.id, number) for number, pair in enumerate(pairs))
    keys = sum(1 for _ in groupby(ordered, key=itemgetter(0)))
    wanted = prompts_held_out(keys, fraction, at_least)
    held, train = array("Q"), array("Q")
    for place, (_, group) in enumerate(groupby(ordered, key=itemgetter(0))):
        (held if place < wanted else train).extend(number for _, _, number in group)
    return take(pairs, train), take(pairs, held)


def prompts_held_out(prompts: int, fraction: float, at_least: int) -> int:
    """How many of the prompts `hold_out` holds out."""
    return min(max(round(fraction * prompts), at_least), prompts // 2)


def _key(pair: Pair) -> bytes:
    return hashlib.sha256(canonical("\n".join(m["content"] for m in pair.messages)).encode()).digest()
