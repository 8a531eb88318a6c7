"""The gate: figures about a set of pairs, each with its threshold, and whether the set may train.

Some figures cover everything that was generated, before edits. Others cover what would train: after edits, without unusable
pairs and without those that people rejected.

A pair that duplicates an earlier usable pair (prompt and both texts) is unusable. Pairs that share only their prompt stay
usable, and are counted in `shared_prompt_share`.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from engine.core.config import Stage3Config
from engine.core.errors import DataError
from engine.pairs import detectors
from engine.pairs.assessment.assess import Assessment, PairVerdict, assess_pair
from engine.pairs.assessment.figure_names import BETTER_BY_PEOPLE, TRAINING_PAIRS, subject_of, title_of
from engine.pairs.assessment.sample import Sample
from engine.pairs.data.edits import Decision
from engine.pairs.data.hashes import hash_of
from engine.pairs.data.record import Pair

EXAMPLES_KEPT = 5
"""Examples per reason in the report."""
EXAMPLE_LENGTH = 300
"""Characters of each text of an example."""
NAMES_KEPT = 500
"""How many reasons and principles are counted by name. A foreign file may have a new one on every line."""
OTHERS = "(others)"

NOT_IMPROVED = "not improved"
"""Examples of pairs that train although they score no better than their drafts: by the file, or by a person's decision."""


@dataclass(frozen=True)
class Figure:
    """One figure of the gate. `passes` is None if the figure was not measured."""

    name: str
    value: float | None
    threshold: float
    bound: Literal["at least", "at most"]
    refuses: bool
    """Whether the gate stays shut if the figure fails; otherwise it is a warning."""
    remedy: str
    """How to make the figure pass; the report's key is `mend`."""
    note: str = ""
    """Explains the value if the name does not."""
    needed: bool = False
    """Whether the figure fails if it was not measured."""

    @property
    def passes(self) -> bool | None:
        if self.value is None:
            return False if self.needed else None
        return self.value >= self.threshold if self.bound == "at least" else self.value <= self.threshold

    @property
    def title(self) -> str:
        return title_of(self.name)

    @property
    def sentence(self) -> str:
        if self.value is None:
            return f"{self.note or 'not measured'} ({self.bound} {_number(self.threshold)})"
        value, threshold = _number(self.value), _number(self.threshold)
        if value == threshold and self.passes is False:  # they differ only after rounding
            value = f"{self.value:.4%}"
        return f"{value} ({self.bound} {threshold}){f': {self.note}' if self.note else ''}"

    def as_dict(self) -> dict[str, Any]:
        """A row of the report's `gate.figures`."""
        names = {"remedy": "mend"}
        return {names.get(name, name): value for name, value in asdict(self).items()} | {"passes": self.passes}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Figure:
        names = {"mend": "remedy"}
        return cls(**{names.get(name, name): value for name, value in row.items() if name != "passes"})


class PromptCounter(Protocol):
    """Counts the prompts of the pairs that train."""

    @property
    def sharing(self) -> int:
        """How many pairs share their prompt with another pair."""

    def count(self, prompt: int, by: int) -> None:
        """Add (`by` = 1) or remove (`by` = -1) one pair with this prompt."""


class HashedPromptCounter:
    """Counts prompts in constant memory per prompt. Cannot remove any."""

    def __init__(self) -> None:
        self._all: set[int] = set()
        self._shared: set[int] = set()
        self._repeats = 0

    @property
    def sharing(self) -> int:
        return self._repeats + len(self._shared)

    def count(self, prompt: int, by: int) -> None:
        if by != 1:
            raise ValueError("HashedPromptCounter can only add")
        if prompt in self._all:
            self._repeats += 1
            self._shared.add(prompt)
        self._all.add(prompt)


@dataclass
class Counts:
    """What the gate counts: sums over assessments, independent of their order."""

    made: int = 0
    usable: int = 0
    byte_identical: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """The first reason of each pair that is left out."""
    any_reason: Counter[str] = field(default_factory=Counter)
    """All reasons, counted over everything that was generated."""
    principles: Counter[str] = field(default_factory=Counter)
    """Pairs per principle that made the revision."""
    with_principles: int = 0
    measured: int = 0
    """Revisions, before edits, whose relevance was measured."""
    relevant: int = 0
    training: int = 0
    training_longer: int = 0
    scored: int = 0
    """Usable pairs with scores, whether they train or not; so too `improved` and `tied`."""
    improved: int = 0
    tied: int = 0
    rejected_by_people: int = 0
    accepted_by_people: int = 0
    flipped_by_people: int = 0
    edited_by_people: int = 0
    lengths_measured: int | None = None
    """Pairs that would train and whose length in tokens is known; None if lengths were not measured."""
    too_long: int = 0
    """Pairs among `lengths_measured` that do not fit --max-length."""
    bad_lines: int = 0
    """Lines that are not pairs."""
    bad_edits: int = 0
    """Damaged lines of the edits file."""
    prompts: PromptCounter = field(default_factory=HashedPromptCounter)
    sample: Sample = field(default_factory=Sample)

    @property
    def training_sharing(self) -> int:
        return self.prompts.sharing

    def count(self, assessment: Assessment, *, repeats: bool, by: int = 1) -> None:
        """Add (`by` = 1) or remove (`by` = -1) one pair. `repeats` means that it duplicates an earlier usable pair."""
        reasons = assessment.reasons(repeats=repeats)
        self._count_generated(
            assessment, assessment.reasons_as_made or (reasons if not assessment.reasons_as_edited else ()), by
        )
        self.rejected_by_people += by * (assessment.accepted is False)
        self.accepted_by_people += by * (assessment.accepted is True and bool(reasons))
        self.flipped_by_people += by * assessment.flipped
        self.edited_by_people += by * assessment.edited
        verdict = assessment.verdict(0, "", repeats=repeats)
        if assessment.usable(repeats=repeats) and assessment.gain is not None:
            self.scored += by
            self.improved += by * (assessment.gain > 0)
            self.tied += by * (assessment.gain == 0)
        if verdict.usable:
            self._count_training(assessment, by)
        else:
            _count(self.reasons, verdict.reasons[0], by)

    def _count_generated(self, assessment: Assessment, reasons: tuple[str, ...], by: int) -> None:
        self.made += by
        self.usable += by * (not reasons)
        if not reasons:
            self.sample.count(assessment.order, assessment.by_people, by)
        self.byte_identical += by * assessment.byte_identical
        self.measured += by * (assessment.relevant is not None)
        self.relevant += by * (assessment.relevant is True)
        for reason in reasons:
            _count(self.any_reason, reason, by)
        if assessment.made_by:
            self.with_principles += by
            for principle in set(assessment.made_by):
                _count(self.principles, principle, by)

    def _count_training(self, assessment: Assessment, by: int) -> None:
        self.training += by
        self.training_longer += by * assessment.longer
        self.prompts.count(assessment.prompt, by)


@dataclass
class Tally(Counts):
    """Counts over a stream of pairs, with two hashes per pair in memory."""

    examples: Examples = field(default_factory=lambda: Examples())
    min_gain: float | None = None
    """`--min-gain`, if a trusted judge scored the pairs."""
    methods: Counter[str] = field(default_factory=Counter)
    """How the pairs were made, if their file says so."""
    _texts: set[int] = field(default_factory=set)

    def add(self, line: int, pair: Pair, decision: Decision | None = None, *, made: Pair | None = None) -> PairVerdict:
        """Assess one pair and count it. `pair` and `made` are those of `assess_pair`."""
        assessment = assess_pair(pair, decision, made=made, min_gain=self.min_gain)
        if pair.method:
            _count(self.methods, pair.method, 1)
        repeats = not assessment.reasons_as_edited and assessment.texts in self._texts
        if not assessment.reasons_as_edited:
            self._texts.add(assessment.texts)
        self.count(assessment, repeats=repeats)
        verdict = assessment.verdict(line, pair.id, repeats=repeats)
        if not verdict.usable:
            self.examples.add(verdict.reasons[0], line, pair, assessment.gain)
        elif assessment.gain is not None and assessment.gain <= 0:
            self.examples.add(NOT_IMPROVED, line, pair, assessment.gain)
        return verdict


class Example(NamedTuple):
    """Sorts the worst pair first: by gain, then by a hash, so that every run shows the same examples."""

    gain: float
    order: int
    line: int
    texts: dict[str, Any]


class Examples:
    """A few example pairs per reason."""

    def __init__(self) -> None:
        self._of_reason: dict[str, list[Example]] = {}

    def add(self, reason: str, line: int, pair: Pair, gain: float | None) -> None:
        kept = self._of_reason.get(reason)
        if kept is None:
            if len(self._of_reason) >= NAMES_KEPT:
                return
            kept = self._of_reason[reason] = []
        order = hash_of(pair.id, str(line))
        key = (0.0 if gain is None else gain, order, line)
        if len(kept) == EXAMPLES_KEPT and key >= kept[-1][:3]:
            return
        texts = {
            "id": pair.id,
            "line": line,
            "prompt": _clipped(pair.prompt),
            "base_response": _clipped(pair.base_response),
            "revised_response": _clipped(pair.revised_response),
            "gain": gain,
        }
        insort(kept, Example(*key, texts))
        del kept[EXAMPLES_KEPT:]

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        return {reason: [example.texts for example in kept] for reason, kept in self._of_reason.items()}


def _clipped(text: str) -> str:
    return text if len(text) <= EXAMPLE_LENGTH else f"{text[: EXAMPLE_LENGTH - 1]}…"


def _count(counter: Counter[str], name: str, by: int) -> None:
    name = name if name in counter or len(counter) < NAMES_KEPT else OTHERS
    counter[name] += by
    if counter[name] <= 0:
        del counter[name]


# -- the set ----------------------------------------------------------------------------------------------------------


def figures(tally: Counts, config: Stage3Config, *, judged: bool = True) -> list[Figure]:
    """Every figure of the gate; those that can shut it come first.

    judged   True if a trusted judge scored the pairs, or no judge is needed. False makes the figures that need no judge
             stricter, and requires people's decisions about a sample
    """
    return [
        *_figures_of_generation(tally, config),
        *_figures_of_training_set(tally, config),
        *([] if judged else [_better_by_people(tally, config)]),
        *too_long_figures(tally, config),
        *_figures_of_revision(tally, config, judged=judged),
    ]


def _figures_of_generation(tally: Counts, config: Stage3Config) -> list[Figure]:
    return [
        Figure(
            "usable_share",
            _share(tally.usable, tally.made),
            config.min_usable_share,
            "at least",
            True,
            "A process that fails more often than it works cannot be trusted. Use another --method, model or constitution.",
        ),
        Figure(
            TRAINING_PAIRS,
            tally.training,
            config.min_pairs,
            "at least",
            True,
            "Too few pairs are left to train on. Raise --num-examples, or widen --split.",
        ),
        Figure(
            "relevant_share",
            _share(tally.relevant, tally.measured) if tally.measured else None,
            config.min_relevant_share,
            "at least",
            True,
            "Too many revisions would fit any message. Use a better model, another --method, or a critic.",
        ),
    ]


def _figures_of_training_set(tally: Counts, config: Stage3Config) -> list[Figure]:
    return [
        Figure(
            "longer_share",
            _share(tally.training_longer, tally.training),
            config.max_longer_share,
            "at most",
            True,
            "DPO would learn to write more. Use revision requests that do not ask for more, or reject padded revisions.",
        ),
        Figure(
            "shared_prompt_share",
            _share(tally.training_sharing, tally.training),
            config.max_shared_prompt_share,
            "at most",
            True,
            "Many pairs share a prompt. Remove duplicate prompts from the dataset, or reject all but one pair of each.",
        ),
        Figure(
            "improved_share",
            _share(tally.improved, tally.scored) if tally.scored else None,
            config.min_improved_share,
            "at least",
            True,
            "By the scores of the judge, or of the file, too few revisions are better than their drafts. Look at the pairs (are "
            "the columns swapped?), then at the constitution.",
        ),
    ]


def _figures_of_revision(tally: Counts, config: Stage3Config, *, judged: bool) -> list[Figure]:
    """Signs of bad revisions. They are warnings; without a judge, copies and talk about the answer keep the gate shut."""
    return [
        Figure(
            "identical_share",
            _share(tally.any_reason[detectors.IDENTICAL], tally.made),
            config.warn_identical_share,
            "at most",
            not judged,
            "The model changes nothing when asked to revise.",
        ),
        Figure(
            "meta_share",
            _share(tally.any_reason[detectors.META], tally.made),
            config.warn_meta_share,
            "at most",
            not judged,
            "The model talks about its answer instead of giving one.",
        ),
        Figure(
            "principle_share",
            _share(max(tally.principles.values(), default=0), tally.with_principles),
            config.warn_principle_share,
            "at most",
            False,
            "One principle made most of the pairs. Give the others more weight.",
        ),
    ]


def _better_by_people(tally: Counts, config: Stage3Config) -> Figure:
    return Figure(
        BETTER_BY_PEOPLE,
        tally.sample.better_low,
        config.min_sample_share,
        "at least",
        True,
        "No judge passed its exam, so whether the revisions are better is unknown. Decide about the sample in the wizard "
        "(stage Quality, Pairs, key S: accept a revision that is better than its draft, reject or swap one that is not), or "
        "set a judge that passes its exam (--judge).",
        note=tally.sample.sentence,
        needed=True,
    )


def too_long_figures(tally: Counts, config: Stage3Config) -> list[Figure]:
    """The share of pairs that are too long, if lengths were measured with the model's tokenizer. Training leaves them out, and
    refuses to start if there are too many.
    """
    if tally.lengths_measured is None:
        return []
    return [
        Figure(
            "too_long_share",
            _share(tally.too_long, tally.lengths_measured),
            config.max_too_long_share,
            "at most",
            True,
            "Training would leave out too many pairs. Raise --max-length if memory allows, or lower --max-prompt-tokens.",
        )
    ]


FIGURES_WITHOUT_JUDGE = ("usable_share", "training_pairs", "too_long_share")
"""Figures that do not depend on scores."""


def failed(all_figures: list[Figure]) -> list[Figure]:
    """The figures that keep the gate shut."""
    return [figure for figure in all_figures if figure.refuses and figure.passes is False]


def damage(tally: Counts, config: Stage3Config) -> list[str]:
    """What keeps the gate shut whatever a person accepts: bad lines beyond --max-bad-rows, and damaged edits."""
    allowed = (config.max_bad_rows or 0.0) * (tally.made + tally.bad_lines)
    return [
        name for name, shut in (("bad_lines", tally.bad_lines > allowed), ("bad_edits", tally.bad_edits > 0)) if shut
    ]


def gate_error(shut: list[Figure]) -> DataError:
    """The error for a shut gate: every figure that failed, and how to fix each."""
    sentences = "; ".join(f"{subject_of(figure.name)} is {figure.sentence}" for figure in shut)
    remedies = " ".join(f"{figure.title.capitalize()}: {figure.remedy}" for figure in shut)
    return DataError(
        f"The gate is shut: {sentences}.",
        "Training on these pairs would spend GPU hours on what cannot teach.",
        f'{remedies} To train anyway: --accept-quality "your reason".',
    )


def report(tally: Tally, config: Stage3Config, *, judged: bool = True) -> dict[str, Any]:
    """The quality report as plain data: counts, figures with thresholds, the gate, and examples of what is left out.

    The gate is open if no figure keeps it shut, or if a person accepts the quality (`accepted_for` is the reason). Damaged lines
    and an empty training set cannot be accepted.
    """
    all_figures = figures(tally, config, judged=judged)
    shut = [figure.name for figure in failed(all_figures)]
    damaged = damage(tally, config)
    accepted = config.accept_quality is not None and tally.training > 0
    return {
        "pairs": tally.made,
        "methods": dict(tally.methods.most_common()),
        "figures": {
            "byte_identical": tally.byte_identical,
            "usable": tally.usable,
            "training_pairs": tally.training,
            **{figure.name: figure.value for figure in all_figures if figure.name != "training_pairs"},
            "bad_lines": tally.bad_lines,
        },
        "gate": {
            "open": not damaged and (not shut or accepted),
            "failed": shut + damaged,
            "figures": [figure.as_dict() for figure in all_figures],
            "accepted_for": config.accept_quality if shut else None,
        },
        "left_out": dict(tally.reasons.most_common()),
        "reasons": dict(tally.any_reason.most_common()),
        "principles": dict(tally.principles.most_common()),
        "people": {
            "rejected": tally.rejected_by_people,
            "accepted": tally.accepted_by_people,
            "flipped": tally.flipped_by_people,
            "edited": tally.edited_by_people,
            "damaged_edits": tally.bad_edits,
        },
        "relevance": {"measured": tally.measured, "relevant": tally.relevant},
        "scored": tally.scored,
        "tied": tally.tied,
        "examples": tally.examples.as_dict(),
    }


def _share(part: int, total: int) -> float:
    return part / total if total else 0.0


def _number(value: float) -> str:
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
