"""How well the detectors recognise unusable replies, on pairs that were read and labelled one by one.

    python bench/detectors.py ../shared/data/gemma-2b-it-pairs.jsonl \\
        --labels ../shared/data/gemma-2b-it-pairs.labels.jsonl [--labels MORE]

Only labelled pairs that are not identical count; every kind but `answer` is positive. The weights of the meta detector
are learned: "as shipped" has seen the published labels and those in `more_labels.jsonl`; "cross-validated" fits new
weights for each tenth of the labelled lines on the other nine, and judges a line with weights that never saw it.

The notebook's checks are reimplemented from github.com/Jai-Dhiman/ml-learning: cell 8 of
Stage3_Constitutional_Training.ipynb, the phrases of scripts/analyze_pairs.py, and those of the parser in
src/training/critique_revision.py at c9a5e3e. That parser also cut lines off and took answers out of quotes; what it
would have made of these pairs is unknown.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # `bench` is not part of the installed package

import torch

from bench.fit_detectors import Labelled, cross_validated, examples_of_replies, more_labels, read_labelled, read_replies
from engine.pairs import detectors
from engine.pairs.detectors import meta

REPLIES = "hh-rlhf-harmless-base-test.jsonl.gz"
RESAMPLES = 2000


class Counts(NamedTuple):
    hits: int
    misses: int
    false_alarms: int

    @property
    def precision(self) -> float:
        return self.hits / max(self.hits + self.false_alarms, 1)

    @property
    def recall(self) -> float:
        return self.hits / max(self.hits + self.misses, 1)

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(2 * self.hits + self.misses + self.false_alarms, 1)


def counts_of(predicted: Sequence[bool], true: Sequence[bool]) -> Counts:
    pairs = Counter(zip(predicted, true, strict=True))
    return Counts(pairs[True, True], pairs[False, True], pairs[True, False])


def interval(predicted: Sequence[bool], true: Sequence[bool]) -> tuple[float, float]:
    """The 95 % bootstrap interval of F1 over lines."""
    random, lines = Random(0), range(len(true))
    found = []
    for _ in range(RESAMPLES):
        drawn = random.choices(lines, k=len(true))
        found.append(counts_of([predicted[i] for i in drawn], [true[i] for i in drawn]).f1)
    found.sort()
    return found[RESAMPLES // 40], found[-RESAMPLES // 40 - 1]


def ours(one: Labelled) -> list[str]:
    return detectors.reasons(one.prompt, one.draft, one.revision)


def cell_8(one: Labelled) -> bool:
    start = one.revision.lower()[:100]
    return len(one.revision) < 30 or "accurate, but" in start or "could be improved" in start


def analyze_pairs(one: Labelled) -> bool:
    phrases = ("I could", "I would", "The response", "Instead of", "A better")
    return any(phrase in one.revision[:150] for phrase in phrases)


def parser_v2(one: Labelled) -> bool:
    opening = re.match(
        r"I (could|would|should|might)|The (response|answer) (should|could|would|is)|This (response|answer)|Instead of|Rather than"
        r"|A better (response|answer) would be|One way to improve|To make this better",
        one.revision,
        re.IGNORECASE,
    )
    phrases = (
        "could be improved|should include|the answer is|the response|this answer|it would be better|more helpful if"
    )
    start = one.revision.lower()[:150]
    return (
        len(one.revision.strip()) < 10 or opening is not None or any(phrase in start for phrase in phrases.split("|"))
    )


def held_out_verdicts(labelled: Sequence[Labelled], replies: Path) -> dict[int, list[str]]:
    """All reasons for each line, with weights for meta that never saw it."""
    found = {}
    own = examples_of_replies(read_replies(replies))
    for weights, fold in cross_validated(labelled, own):
        shipped = meta.shipped_weights
        meta.shipped_weights = lambda weights=weights: weights  # type: ignore[assignment, misc]
        try:
            found.update({one.line: ours(one) for one in fold})
        finally:
            meta.shipped_weights = shipped
    return found


def microseconds_per_pair(pairs: Path) -> float:
    """Time of the detectors alone, best of three."""
    rows = [json.loads(line) for line in pairs.open(encoding="utf-8")]
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for row in rows:
            detectors.reasons(row["prompt"], row["base_response"], row["revised_response"])
        best = min(best, time.perf_counter() - started)
    return best / len(rows) * 1e6


def objections(replies: Path) -> tuple[int, Counter[str]]:
    """(number of replies, objections by first reason) for the replies that people preferred in hh-rlhf."""
    pairs = list(read_replies(replies))
    found = [detectors.reply_reasons(prompt, reply) for prompt, reply in pairs]
    return len(pairs), Counter(one[0] for one in found if one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--labels", type=Path, action="append", required=True)
    parser.add_argument("--replies", type=Path, help=f"default: {REPLIES} beside the pairs")
    options = parser.parse_args()
    replies: Path = options.replies or options.pairs.with_name(REPLIES)
    torch.set_num_threads(1)

    every = read_labelled(options.pairs, options.labels)
    labelled = [one for one in every if one.kind != "identical"]
    true = [one.unusable for one in labelled]
    print(f"{len(every)} labelled pairs, {len(labelled)} not identical, {sum(true)} of those unusable\n")
    print(f"{'':44}{'precision':>10}{'recall':>8}{'F1':>7}   95 % of F1")
    shipped = [ours(one) for one in labelled]
    row("ours, as shipped", [bool(found) for found in shipped], true)
    if replies.exists():
        teaching = read_labelled(options.pairs, [*more_labels(options.pairs), *options.labels])
        held_out = held_out_verdicts(teaching, replies)
        row("ours, meta cross-validated (10 folds)", [bool(held_out[one.line]) for one in labelled], true)
        sure = [one for one in labelled if not one.borderline]
        verdicts = [bool(held_out[one.line]) for one in sure]
        row(f"  the same, {len(sure)} that are not borderline", verdicts, [one.unusable for one in sure])
    checks: dict[str, Callable[[Labelled], bool]] = {
        "notebook, cell 8": cell_8,
        "notebook, analyze_pairs.py": analyze_pairs,
        "notebook, version 2 parser": parser_v2,
    }
    for name, check in checks.items():
        row(name, [check(one) for one in labelled], true)

    print("\nas shipped, label by first reason")
    for kind in sorted({one.kind for one in every}):
        firsts = Counter((ours(one) or ["usable"])[0] for one in every if one.kind == kind)
        print(f"  {kind:10} {', '.join(f'{reason} {count}' for reason, count in firsts.most_common())}")
    print(
        "missed:          ", *(o.line for o, found in zip(labelled, shipped, strict=True) if o.unusable and not found)
    )
    print(
        "false alarms:    ", *(o.line for o, found in zip(labelled, shipped, strict=True) if found and not o.unusable)
    )
    if replies.exists():
        number, reasons = objections(replies)
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        share = reasons.total() / number
        print(f"\n{number} preferred replies of hh-rlhf, {reasons.total()} objected to ({share:.1%}): {listed}")
    each = microseconds_per_pair(options.pairs)
    print(f"{each:.0f} microseconds per pair, {1e6 / each:,.0f} pairs per second, on one core")


def row(name: str, predicted: Sequence[bool], true: Sequence[bool]) -> None:
    counts = counts_of(predicted, true)
    low, high = interval(predicted, true)
    print(f"{name:44}{counts.precision:10.3f}{counts.recall:8.3f}{counts.f1:7.3f}   {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
