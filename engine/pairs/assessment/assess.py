"""Everything that the gate counts about one pair, computed once. Assessing a pair is expensive, because every detector reads the
text; adding an assessment to the counts, or removing it, is cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.pairs import detectors
from engine.pairs.data.edits import Decision
from engine.pairs.data.hashes import hash_of
from engine.pairs.data.record import EMPTY_DRAFT, OK, Pair

REJECTED = "rejected"
"""The reason for a pair that a person rejected although the detectors passed it."""

NOT_BETTER = "not better"
"""Usable, but a trusted judge does not prefer it to the draft, and no person decided about it."""

_ASSESSED_BY_TEXT = frozenset((OK, *detectors.DETECTORS, detectors.CUT_OFF))


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """Whether one pair trains, and the reasons if it does not."""

    line: int
    id: str
    usable: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Assessment:
    """What is known about one pair on its own, without the other pairs."""

    reasons_as_made: tuple[str, ...]
    """Why the revision cannot be used, before edits; empty if it can."""
    reasons_as_edited: tuple[str, ...]
    """Why the revision cannot be used after people's edits; empty if it can."""
    byte_identical: bool
    made_by: tuple[str, ...]
    """The principles of the attempt that made the revision."""
    prompt: int
    """A hash of the conversation; 0 if the pair cannot train."""
    texts: int
    """A hash of the conversation and both texts, to find duplicates; 0 if the pair cannot train."""
    has_two_texts: bool
    longer: bool
    """Whether the preferred text is the longer one."""
    gain: float | None
    """The judge's score of the preferred text minus the other's; None without scores."""
    relevant: bool | None = None
    """Whether the revision depends on its prompt, before edits; None if not measured."""
    accepted: bool | None = None
    """A person's decision; None leaves the decision to the detectors."""
    flipped: bool = False
    edited: bool = False
    order: int = 0
    """A hash of the pair's id, by which the sample for people is drawn."""

    min_gain: float | None = None
    """`--min-gain`, if a trusted judge gave the scores."""

    @property
    def by_people(self) -> bool | None:
        """Whether a person prefers the revision, before edits, to the draft; None without a decision."""
        if self.flipped or self.edited:
            return False
        return self.accepted

    def reasons(self, *, repeats: bool) -> tuple[str, ...]:
        """Why the detectors leave the pair out. `repeats` means that it duplicates an earlier usable pair."""
        return (detectors.DUPLICATE_PROMPT,) if repeats and not self.reasons_as_edited else self.reasons_as_edited

    def usable(self, *, repeats: bool) -> bool:
        """Whether the pair may train, leaving judges aside. A person's decision wins, but a pair needs two texts."""
        wanted = not self.reasons(repeats=repeats) if self.accepted is None else self.accepted
        return wanted and self.has_two_texts

    @property
    def not_better(self) -> bool:
        """Whether the gain is too small to train on. A person's decision overrides the judge."""
        if self.min_gain is None or self.gain is None or self.by_people is not None:
            return False
        return self.gain <= self.min_gain

    def verdict(self, line: int, pair_id: str, *, repeats: bool) -> PairVerdict:
        """Whether the pair trains, and why not."""
        reasons, usable = self.reasons(repeats=repeats), self.usable(repeats=repeats)
        if usable and self.not_better:
            return PairVerdict(line, pair_id, False, (NOT_BETTER,))
        return PairVerdict(line, pair_id, usable, reasons if usable else reasons or (REJECTED,))


def assess_pair(
    pair: Pair, decision: Decision | None = None, *, made: Pair | None = None, min_gain: float | None = None
) -> Assessment:
    """Assess one pair.

    pair       the pair as it would train, with people's edits applied
    made       the pair as it was generated, if different
    min_gain   set if a trusted judge scored the pair, which then trains only if its gain is larger
    """
    made = pair if made is None else made
    reasons_as_made = reasons_of(made)
    reasons_as_edited = reasons_as_made if decision is None else training_reasons(pair, decision)
    if not reasons_as_edited and pair.chosen == "base" and (decision is None or not decision.flipped):
        reasons_as_edited = _reasons_of_the_draft(pair)
    may_train = not reasons_as_edited or (decision is not None and decision.accepted is True)
    prompt = prompt_hash(pair) if may_train else 0
    return Assessment(
        reasons_as_made=tuple(reasons_as_made),
        reasons_as_edited=tuple(reasons_as_edited),
        byte_identical=made.base_response == made.revised_response and made.status in (OK, detectors.IDENTICAL),
        made_by=made.made_by,
        prompt=prompt,
        texts=hash_of(str(prompt), pair.base_response, pair.revised_response) if may_train else 0,
        has_two_texts=bool(pair.base_response.strip() and pair.revised_response.strip()),
        longer=len(pair.preferred) > len(pair.dispreferred),
        gain=gain_of(pair, decision),
        relevant=None if made.relevance is None else detectors.OFF_TOPIC not in reasons_as_made,
        accepted=None if decision is None else decision.accepted,
        flipped=decision is not None and decision.flipped,
        edited=decision is not None and decision.edited,
        order=hash_of(pair.id),
        min_gain=min_gain,
    )


def reasons_of(pair: Pair) -> list[str]:
    """Why the revision of a generated pair cannot be used; empty if it can."""
    if pair.status not in _ASSESSED_BY_TEXT:
        return [pair.status]  # no revision was ever generated
    finished = pair.finish.get("revision") != "cut off"
    reasons = detectors.reasons(
        pair.prompt,
        pair.base_response,
        pair.revised_response,
        finished=finished,
        critique=pair.critic_notes,
        relevance=pair.relevance,
        surprise=pair.surprise,
    )
    if not reasons and pair.status == detectors.REQUEST:
        reasons = [pair.status]  # detected at generation time; the file does not name its constitution
    return reasons or ([] if pair.base_response.strip() else [EMPTY_DRAFT])


def training_reasons(pair: Pair, decision: Decision) -> list[str]:
    """Why an edited pair cannot train. In a flipped pair only the draft must be usable, because a revision that is not a reply is
    a good reason to prefer the draft.
    """
    if not decision.flipped or pair.chosen != "base" or pair.status not in _ASSESSED_BY_TEXT:
        return reasons_of(replace(pair, status=OK) if decision.edited and pair.status == detectors.REQUEST else pair)
    finished = pair.finish.get("draft") != "cut off"
    return detectors.reasons(pair.prompt, pair.revised_response, pair.base_response, finished=finished)


def gain_of(pair: Pair, decision: Decision | None = None) -> float | None:
    """The judge's score of the revision minus the draft's (negated for a flipped pair); None without scores.

    Ignores the file's `chosen`. The notebook set it from these same scores, so every pair would be an improvement.
    """
    if pair.base_score is None or pair.revised_score is None:
        return None
    gain = pair.revised_score - pair.base_score
    return -gain if decision is not None and decision.flipped else gain


def prompt_hash(pair: Pair) -> int:
    """A hash of the conversation that ignores case, whitespace and punctuation."""
    return hash_of(*(detectors.canonical(message["content"]) for message in pair.messages))


def _reasons_of_the_draft(pair: Pair) -> list[str]:
    """Why a draft that its file marks as chosen is not usable."""
    return detectors.reply_reasons(pair.prompt, pair.base_response, finished=pair.finish.get("draft") != "cut off")
