"""The gate: figures about a set of pairs, each beside its threshold, and whether the set may train.

About the making: what was made, all of it. About what would train: after unusable pairs and people's rejections are out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from engine.config import Stage3Config
from engine.pairs import detectors
from engine.pairs.edits import Decision
from engine.pairs.record import OK, Pair

EXAMPLES_KEPT = 5
"""Of each reason, for the report."""


@dataclass(frozen=True)
class Verdict:
    """One pair, judged."""

    line: int
    id: str
    usable: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """One figure of the gate. `passes` is None where nothing was measured."""

    name: str
    value: float | None
    threshold: float
    bound: Literal["at least", "at most"]
    refuses: bool
    """Whether the gate stays shut when it fails; else it is a warning."""
    mend: str
    """What would make it pass."""

    @property
    def passes(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.threshold if self.bound == "at least" else self.value <= self.threshold

    @property
    def sentence(self) -> str:
        value = "nothing scored" if self.value is None else _number(self.value)
        return f"{value} ({self.bound} {_number(self.threshold)})"


@dataclass
class Tally:
    """Counts over pairs as they go by, in memory that does not grow with their texts."""

    made: int = 0
    usable: int = 0
    byte_identical: int = 0
    bad_lines: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Of the pairs that are out: the first reason of each."""
    any_reason: Counter[str] = field(default_factory=Counter)
    principles: Counter[str] = field(default_factory=Counter)
    training: int = 0
    training_longer: int = 0
    training_scored: int = 0
    training_improved: int = 0
    training_prompts: Counter[int] = field(default_factory=Counter)
    rejected_by_people: int = 0
    accepted_by_people: int = 0
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def add(self, line: int, pair: Pair, decision: Decision | None = None) -> Verdict:
        """Judge one pair and count it."""
        self.made += 1
        self.byte_identical += pair.base_response == pair.revised_response and pair.status in (OK, detectors.IDENTICAL)
        found = reasons_of(pair)
        self.any_reason.update(found)
        self.principles.update(set(pair.principle_ids[-1:]))
        by_people = decision.accepted if decision is not None else None
        usable = not found if by_people is None else by_people
        self.rejected_by_people += by_people is False
        self.accepted_by_people += by_people is True and bool(found)
        if usable:
            self._add_to_training(pair)
        else:
            reason = found[0] if found else "rejected"
            self.reasons[reason] += 1
            kept = self.examples.setdefault(reason, [])
            if len(kept) < EXAMPLES_KEPT:
                kept.append(
                    {"id": pair.id, "prompt": pair.prompt[:300], "revised_response": pair.revised_response[:300]}
                )
        self.usable += not found
        return Verdict(line, pair.id, usable, tuple(found))

    def _add_to_training(self, pair: Pair) -> None:
        self.training += 1
        self.training_longer += len(pair.revised_response) > len(pair.base_response)
        self.training_prompts[hash(detectors.canonical("\n".join(m["content"] for m in pair.messages)))] += 1
        if pair.base_score is not None and pair.revised_score is not None:
            self.training_scored += 1
            self.training_improved += pair.revised_score > pair.base_score


def reasons_of(pair: Pair) -> list[str]:
    """Why a pair cannot train; empty where it can."""
    if pair.status not in (OK, *detectors.DETECTORS, detectors.CUT_OFF):
        return [pair.status]  # it never got a revision: nothing to look at
    finished = pair.finish.get("revision") != "cut off"
    return detectors.reasons(pair.prompt, pair.base_response, pair.revised_response, finished=finished)


def figures(tally: Tally, config: Stage3Config) -> list[Figure]:
    """Every figure of the gate, refusing ones first."""
    shared = sum(count for count in tally.training_prompts.values() if count > 1)
    improved = _share(tally.training_improved, tally.training_scored) if tally.training_scored else None
    most_used = max(tally.principles.values(), default=0)
    return [
        Figure(
            "usable_share",
            _share(tally.usable, tally.made),
            config.min_usable_share,
            "at least",
            True,
            "A process that fails more often than not is not trusted with the rest: use a better model or constitution.",
        ),
        Figure(
            "training_pairs",
            tally.training,
            config.min_pairs,
            "at least",
            True,
            "Make more pairs: raise --num-examples, or widen --split.",
        ),
        Figure(
            "longer_share",
            _share(tally.training_longer, tally.training),
            config.max_longer_share,
            "at most",
            True,
            "DPO would learn to write more: use revision requests that don't ask for more, or reject the padded ones.",
        ),
        Figure(
            "shared_prompt_share",
            _share(shared, tally.training),
            config.max_shared_prompt_share,
            "at most",
            True,
            "Remove prompts that stand twice in the dataset.",
        ),
        Figure(
            "improved_share",
            improved,
            config.min_improved_share,
            "at least",
            True,
            "The judge finds too few revisions better than their drafts: look at the pairs, then at the constitution.",
        ),
        Figure(
            "identical_share",
            _share(tally.any_reason[detectors.IDENTICAL], tally.made),
            config.warn_identical_share,
            "at most",
            False,
            "The model changes nothing when asked to revise.",
        ),
        Figure(
            "meta_share",
            _share(tally.any_reason[detectors.META], tally.made),
            config.warn_meta_share,
            "at most",
            False,
            "The model talks about its answer in place of giving one.",
        ),
        Figure(
            "principle_share",
            _share(most_used, sum(tally.principles.values())),
            config.warn_principle_share,
            "at most",
            False,
            "One principle stands behind most pairs: give the others more weight.",
        ),
    ]


def failed(all_figures: list[Figure]) -> list[Figure]:
    """The figures that keep the gate shut."""
    return [figure for figure in all_figures if figure.refuses and figure.passes is False]


def report(tally: Tally, config: Stage3Config) -> dict[str, Any]:
    """The quality report as plain data: counts, figures with thresholds, the gate, and examples of what is out."""
    all_figures = figures(tally, config)
    shut = failed(all_figures)
    return {
        "pairs": tally.made,
        "figures": {
            "byte_identical": tally.byte_identical,
            "usable": tally.usable,
            "training_pairs": tally.training,
            **{figure.name: figure.value for figure in all_figures if figure.name != "training_pairs"},
        },
        "gate": {
            "open": not shut,
            "failed": [figure.name for figure in shut],
            "figures": [{**asdict(figure), "passes": figure.passes} for figure in all_figures],
            "accepted_for": config.accept_quality,
        },
        "left_out": dict(tally.reasons.most_common()),
        "reasons": dict(tally.any_reason.most_common()),
        "principles": dict(tally.principles.most_common()),
        "people": {"rejected": tally.rejected_by_people, "accepted": tally.accepted_by_people},
        "scored": tally.training_scored,
        "examples": tally.examples,
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def _number(value: float) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value)
