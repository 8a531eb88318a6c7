"""One pair judged: all that the gate counts of it, found once. Judging is the dear part (every detector reads the text);
counting a finding, and taking it back, costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.pairs import detectors
from engine.pairs.data.edits import Decision
from engine.pairs.data.hashes import hash_of
from engine.pairs.data.record import EMPTY_DRAFT, OK, Pair

REJECTED = "rejected"
"""By a person; the reason of a pair that the detectors would have let pass."""

NOT_BETTER = "not better"
"""Usable, but a judge that is believed finds it worse than the draft, or equal; no person decided about it."""

_JUDGED_BY_TEXT = frozenset((OK, *detectors.DETECTORS, detectors.CUT_OFF))


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """One pair, judged."""

    line: int
    id: str
    usable: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Assessment:
    """What is known of one pair, other pairs aside."""

    as_made: tuple[str, ...]
    """Why the revision, as it was made, cannot be used; empty if it can."""
    as_left: tuple[str, ...]
    """The same of the pair as people left it."""
    byte_identical: bool
    made_by: tuple[str, ...]
    """The principles of the attempt that made the revision."""
    prompt: int
    """Hash of the conversation; 0 if the pair is out, whatever other pairs say."""
    texts: int
    """Hash of the conversation and both texts: the same in a pair that says the same again; 0 as above."""
    has_two_texts: bool
    longer: bool
    """The preferred text is the longer one."""
    gain: float | None
    """How much better a judge finds what people left as the better one; None if nothing scored."""
    relevant: bool | None = None
    """Whether the revision, as it was made, depends on its prompt; None if it was not measured."""
    accepted: bool | None = None
    """By a person; None if the detectors decide."""
    flipped: bool = False
    edited: bool = False
    order: int = 0
    """Hash of its id: by it the sample is drawn that people decide about."""

    min_gain: float | None = None
    """`--min-gain`, if the gain is that of a judge that is believed."""

    @property
    def by_people(self) -> bool | None:
        """What a person says of the revision as it was made: better, or not; None if none decided."""
        if self.flipped or self.edited:
            return False
        return self.accepted

    def reasons(self, *, repeats: bool) -> tuple[str, ...]:
        """Why the pair is out, as the detectors see it. `repeats`: an earlier usable pair says the same."""
        return (detectors.DUPLICATE_PROMPT,) if repeats and not self.as_left else self.as_left

    def usable(self, *, repeats: bool) -> bool:
        """Whether the pair may train, whatever a judge says. A person decides if one did, but nobody makes a preference of
        one text."""
        wanted = not self.reasons(repeats=repeats) if self.accepted is None else self.accepted
        return wanted and self.has_two_texts

    @property
    def not_better(self) -> bool:
        """Whether the gain is too small to train on; if a person decided, that holds."""
        if self.min_gain is None or self.gain is None or self.by_people is not None:
            return False
        return self.gain <= self.min_gain

    def verdict(self, line: int, pair_id: str, *, repeats: bool) -> PairVerdict:
        """Whether the pair trains, and why not."""
        found, usable = self.reasons(repeats=repeats), self.usable(repeats=repeats)
        if usable and self.not_better:
            return PairVerdict(line, pair_id, False, (NOT_BETTER,))
        return PairVerdict(line, pair_id, usable, found if usable else found or (REJECTED,))


def assess_pair(
    pair: Pair, decision: Decision | None = None, *, made: Pair | None = None, min_gain: float | None = None
) -> Assessment:
    """Judge one pair.

    pair   as it would train: with people's decision applied
    made   as it was made, if that is another
    min_gain   if its scores are those of a judge that is believed: it trains only if the gain is larger
    """
    made = pair if made is None else made
    as_made = reasons_of(made)
    as_left = as_made if decision is None else training_reasons(pair, decision)
    if not as_left and pair.chosen == "base" and (decision is None or not decision.flipped):
        as_left = _reasons_of_the_draft(pair)
    may_train = not as_left or (decision is not None and decision.accepted is True)
    prompt = prompt_hash(pair) if may_train else 0
    return Assessment(
        as_made=tuple(as_made),
        as_left=tuple(as_left),
        byte_identical=made.base_response == made.revised_response and made.status in (OK, detectors.IDENTICAL),
        made_by=made.made_by,
        prompt=prompt,
        texts=hash_of(str(prompt), pair.base_response, pair.revised_response) if may_train else 0,
        has_two_texts=bool(pair.base_response.strip() and pair.revised_response.strip()),
        longer=len(pair.preferred) > len(pair.dispreferred),
        gain=gain_of(pair, decision),
        relevant=None if made.relevance is None else detectors.OFF_TOPIC not in as_made,
        accepted=None if decision is None else decision.accepted,
        flipped=decision is not None and decision.flipped,
        edited=decision is not None and decision.edited,
        order=hash_of(pair.id),
        min_gain=min_gain,
    )


def reasons_of(pair: Pair) -> list[str]:
    """Why the revision of a pair, as it was made, cannot be used; empty if it can."""
    if pair.status not in _JUDGED_BY_TEXT:
        return [pair.status]  # it never got a revision: nothing to look at
    finished = pair.finish.get("revision") != "cut off"
    found = detectors.reasons(
        pair.prompt,
        pair.base_response,
        pair.revised_response,
        finished=finished,
        critique=pair.critic_notes,
        relevance=pair.relevance,
    )
    if not found and pair.status == detectors.REQUEST:
        found = [pair.status]  # of a constitution that the file does not name: found when it was made
    return found or ([] if pair.base_response.strip() else [EMPTY_DRAFT])


def training_reasons(pair: Pair, decision: Decision) -> list[str]:
    """Why a pair as people left it cannot train. Of a flipped pair the draft is what is judged: that the revision is no
    reply is a good reason to prefer the draft.
    """
    if not decision.flipped or pair.chosen != "base" or pair.status not in _JUDGED_BY_TEXT:
        return reasons_of(replace(pair, status=OK) if decision.edited and pair.status == detectors.REQUEST else pair)
    finished = pair.finish.get("draft") != "cut off"
    return detectors.reasons(pair.prompt, pair.revised_response, pair.base_response, finished=finished)


def gain_of(pair: Pair, decision: Decision | None = None) -> float | None:
    """How much better the judge finds the revision than the draft (of a flipped pair, the draft than the revision);
    None if nothing scored.

    `chosen` of the file does not count: the notebook set it by these very scores, so that all its pairs would be improved.
    """
    if pair.base_score is None or pair.revised_score is None:
        return None
    gain = pair.revised_score - pair.base_score
    return -gain if decision is not None and decision.flipped else gain


def prompt_hash(pair: Pair) -> int:
    """Of the conversation, case, space and punctuation aside."""
    return hash_of(*(detectors.canonical(message["content"]) for message in pair.messages))


def _reasons_of_the_draft(pair: Pair) -> list[str]:
    """Why a draft cannot be used that its file prefers to the revision."""
    return detectors.reply_reasons(pair.prompt, pair.base_response, finished=pair.finish.get("draft") != "cut off")
