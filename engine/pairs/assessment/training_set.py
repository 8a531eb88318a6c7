"""The training set: assessed pairs with people's edits, in TRL's conversational preference format, split by prompt."""

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
class AssessedPair:
    """An edited pair, and whether it trains."""

    pair: Pair
    verdict: PairVerdict


def assessed_pairs(
    pairs: Iterable[tuple[int, Pair]],
    decisions: Mapping[str, Decision],
    tally: Tally,
    scored: Callable[[Pair], Pair] = lambda pair: pair,
) -> Iterator[AssessedPair]:
    """Assess and count (line, pair before edits), in order: of two duplicates, the first one trains.

    scored   adds a judge's scores to an edited pair
    """
    for line, made in pairs:
        decision = decisions.get(made.id)
        pair = scored(apply_decision(made, decision))
        yield AssessedPair(pair, tally.add(line, pair, decision, made=made))


def training_pairs(pairs: Iterable[Pair], decisions: Mapping[str, Decision]) -> Iterator[Pair]:
    """The pairs that train; a pure function of pairs and decisions."""
    judged = assessed_pairs(enumerate(pairs), decisions, Tally())
    return (each.pair for each in judged if each.verdict.usable)


def preference_row(pair: Pair) -> dict[str, Any]:
    """`{"prompt": [messages], "chosen": [message], "rejected": [message]}`, which plain TRL loads."""
    return {
        "prompt": [dict(message) for message in pair.messages],
        "chosen": [{"role": "assistant", "content": pair.preferred}],
        "rejected": [{"role": "assistant", "content": pair.dispreferred}],
    }


def hold_out(pairs: Sequence[Pair], fraction: float, at_least: int) -> tuple[list[Pair], list[Pair]]:
    """Split into (train, held out): `fraction` of the prompts, at least `at_least` and at most half, chosen by a hash.

    Pairs that share a prompt land on the same side, so no held-out prompt is trained on. Both sides are sorted by hash: the
    same pairs give the same files, whatever order they were made in.
    """
    ordered = sorted((_key(pair), pair.id, number) for number, pair in enumerate(pairs))
    keys = list(dict.fromkeys(key for key, *_ in ordered))
    wanted = min(max(round(fraction * len(keys)), at_least), len(keys) // 2)
    held = set(keys[:wanted])
    train = [pairs[number] for key, _, number in ordered if key not in held]
    return train, [pairs[number] for key, _, number in ordered if key in held]


def _key(pair: Pair) -> str:
    return hashlib.sha256(canonical("\n".join(m["content"] for m in pair.messages)).encode()).hexdigest()
