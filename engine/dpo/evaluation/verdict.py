"""Is Stage 3 better than Stage 2? One word and its reasons, from figures alone.

Reward accuracy alone misleads: it can be 1.0 while the answers stay as flawed as they were, or stop being sentences. So
the verdict depends on both models' answers to held-out prompts: whether they are usable, whether harmless prompts are
refused, and a judge's scores if there is one.
An answer is unfit if it is unusable or would fit any message. The rules in order; the first that holds decides:

| rule | holds when | word |
|---|---|---|
| nothing trained | the adapter's tensors are Stage 2's | no different |
| too few prompts | fewer than --min-eval-prompts were answered | cannot tell |
| same answers | every answer is Stage 2's, word for word | no different |
| broken answers | unusable ones rose by over --max-unusable-rise, and by more than chance | worse |
| over-refusal | refusals of harmless prompts rose by over --max-refusal-rise, and by more than chance | worse |
| wrong way round | Stage 3 prefers the rejected replies of held-out pairs, and no judge prefers Stage 3 | worse |
| fewer unfit answers | no judge scored; unfit answers fell by over --max-unusable-rise, and by more than chance | better |
| no judge | nothing scored the answers, or too few of them | cannot tell |
| blind judge | the judge gave every single answer the same score, though they differ | cannot tell |
| judged worse | more losses than chance allows, and the scores fell | worse |
| more broken | unusable ones rose by over --max-unusable-rise; chance may explain it | cannot tell |
| more refusals | refusals of harmless prompts rose by over --max-refusal-rise; chance may explain it | cannot tell |
| judged alike | no more wins than chance allows, or the scores did not rise | no different |
| judge against pairs | the judge prefers Stage 3, which prefers the rejected replies of held-out pairs | cannot tell |
| length alone | answers grew over --max-length-ratio; no preference is left among those that are not longer | cannot tell |
| refusals alone | no preference is left without new refusals, and over-refusal could not be detected | cannot tell |
| judged better | none of these | better |

"More than chance" is an exact test at --eval-significance: the sign test for scores, McNemar's for broken or unfit answers
and refusals; the mean change of the scores must have its 95 % bootstrap interval on the same side of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal, NamedTuple

from engine.core.config import TrainingOptions
from engine.core.statistics import (
    bootstrap_mean,
    fraction,
    mcnemar_test,
    mean,
    sign_test,
    wilson,
    win_tie_loss,
)

VerdictLabel = Literal["better", "no different", "worse", "cannot tell"]


@dataclass(frozen=True)
class Answer:
    """One model's answer to a held-out prompt."""

    text: str
    tokens: int
    unusable: bool = False
    """According to the detectors."""
    refuses: bool = False
    score: float | None = None
    """A judge's score; None without one."""
    off_topic: bool = False
    """Would fit any message; False where its relevance was not measured."""

    @property
    def unfit(self) -> bool:
        return self.unusable or self.off_topic


class AnswerPair(NamedTuple):
    """Both answers to one held-out prompt."""

    stage2: Answer
    stage3: Answer

    @property
    def gain(self) -> float | None:
        """Stage 3's score minus Stage 2's."""
        if self.stage2.score is None or self.stage3.score is None:
            return None
        return self.stage3.score - self.stage2.score

    @property
    def not_longer(self) -> bool:
        """Whether Stage 3 took no more tokens than Stage 2."""
        return self.stage3.tokens <= self.stage2.tokens

    @property
    def newly_refused(self) -> bool:
        return self.stage3.refuses and not self.stage2.refuses


@dataclass(frozen=True)
class VerdictInput:
    """The input of the verdict."""

    answers: Sequence[AnswerPair]
    """One per held-out prompt."""
    harmless: Sequence[tuple[bool, bool]] = ()
    """Whether Stage 2 and Stage 3 refuse, one pair per harmless prompt."""
    margins: Sequence[float] = ()
    """Reward of the chosen reply minus that of the rejected one, in nats, one per held-out pair."""
    trained: bool = True
    """False if the adapter's tensors are identical to Stage 2's."""
    why_no_judge: str = ""
    """Why no judge scored the answers: none is set, or it failed its exam."""

    @property
    def prompts(self) -> int:
        return len(self.answers)

    @cached_property
    def differences(self) -> list[float]:
        """Stage 3's score minus Stage 2's, for prompts with both scores."""
        return gains(self.answers)

    @cached_property
    def length_ratio(self) -> float:
        """Mean tokens of Stage 3's answers over Stage 2's."""
        return mean([a.stage3.tokens for a in self.answers]) / max(mean([a.stage2.tokens for a in self.answers]), 1.0)

    @cached_property
    def unusable(self) -> tuple[list[bool], list[bool]]:
        """(Stage 2, Stage 3)."""
        return [a.stage2.unusable for a in self.answers], [a.stage3.unusable for a in self.answers]

    @cached_property
    def off_topic(self) -> tuple[list[bool], list[bool]]:
        """The same of answers that would fit any message."""
        return [a.stage2.off_topic for a in self.answers], [a.stage3.off_topic for a in self.answers]

    @cached_property
    def refused(self) -> tuple[list[bool], list[bool]]:
        """Refusals of harmless prompts: (Stage 2, Stage 3)."""
        return [before for before, _ in self.harmless], [after for _, after in self.harmless]

    @cached_property
    def wrong_way_round(self) -> bool:
        """Whether reward accuracy is below one half and the margin below 0, with their whole intervals."""
        right = sum(margin > 0 for margin in self.margins)
        return wilson(right, len(self.margins))[1] < 0.5 and bootstrap_mean(self.margins)[1] < 0


@dataclass(frozen=True)
class Limits:
    """The thresholds, as `TrainingOptions` describes them."""

    min_eval_prompts: int
    eval_significance: float
    max_unusable_rise: float
    max_refusal_rise: float
    max_length_ratio: float

    @classmethod
    def of(cls, options: TrainingOptions) -> Limits:
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Verdict:
    word: VerdictLabel
    rule: str
    """The first one that applies."""
    reasons: tuple[str, ...]
    """Why it applies, then the evidence."""


def verdict(comparison: VerdictInput, limits: Limits) -> Verdict:
    """The verdict, its reason and its evidence."""
    case = Evidence(comparison, limits)
    for name, word, reason in RULES:
        why = reason(case)
        if why:
            return Verdict(word, name, (why, *case.evidence))
    raise AssertionError("the last rule always applies")


def gains(answers: Sequence[AnswerPair]) -> list[float]:
    """The gains of prompts with both scores."""
    return [gain for answer in answers if (gain := answer.gain) is not None]


def unfit(answers: Sequence[AnswerPair]) -> tuple[list[bool], list[bool]]:
    """Whether Stage 2's and Stage 3's answers are unfit."""
    return [answer.stage2.unfit for answer in answers], [answer.stage3.unfit for answer in answers]


# -- what the rules ask ------------------------------------------------------------------------------------------------


class Evidence:
    """A comparison with its limits."""

    def __init__(self, comparison: VerdictInput, limits: Limits) -> None:
        self.known, self.limits = comparison, limits

    @cached_property
    def by_judge(self) -> VerdictLabel:
        """By the scores: more wins (or losses) than chance allows, and an interval of the mean change that excludes 0."""
        low, high = bootstrap_mean(self.known.differences)
        if self.prefers_stage_3(self.known.answers) and low > 0:
            return "better"
        wins, _, losses = win_tie_loss(self.known.differences)
        return "worse" if losses > wins and not self.by_chance(sign_test(wins, losses)) and high < 0 else "no different"

    def prefers_stage_3(self, answers: Sequence[AnswerPair]) -> bool:
        """Whether Stage 3 wins more often among these answers than chance allows."""
        wins, _, losses = win_tie_loss(gains(answers))
        return wins > losses and not self.by_chance(sign_test(wins, losses))

    def mends(self, answers: Sequence[AnswerPair]) -> bool:
        """Whether among these Stage 3 has fewer unfit answers, by more than chance."""
        before, after = unfit(answers)
        return sum(after) < sum(before) and not self.by_chance(mcnemar_test(after, before))

    def by_chance(self, p: float) -> bool:
        return p >= self.limits.eval_significance

    @cached_property
    def evidence(self) -> list[str]:
        """The measured figures, in sentences."""
        known, told = self.known, []
        if known.answers:
            before, after = map(fraction, known.unusable)
            told.append(f"Unusable answers: {before:.0%} before, {after:.0%} after.")
            if any(map(any, known.off_topic)):
                before, after = map(fraction, known.off_topic)
                told.append(f"Answers that would fit any message: {before:.0%} before, {after:.0%} after.")
            told.append(f"Length: {known.length_ratio:.2f} times Stage 2's on average.")
        if known.harmless:
            before, after = map(sum, known.refused)
            told.append(f"Refused harmless prompts: {before} of {len(known.harmless)} before, {after} after.")
        if known.differences:
            wins, ties, losses = win_tie_loss(known.differences)
            low, high = bootstrap_mean(known.differences)
            told.append(
                f"Judge: {wins} better, {ties} equal, {losses} worse (sign test p = {sign_test(wins, losses):.2g}); "
                f"mean change {mean(known.differences):+.3f}, 95 % interval {low:+.3f} to {high:+.3f}."
            )
        return told


# -- the rules: each says why it holds, or nothing ----------------------------------------------------------------------


def _nothing_trained(case: Evidence) -> str:
    return "" if case.known.trained else "The adapter's tensors are identical to Stage 2's."


def _too_few_prompts(case: Evidence) -> str:
    prompts, least = case.known.prompts, case.limits.min_eval_prompts
    return f"{prompts} held-out prompts are too few; at least {least} are needed." if prompts < least else ""


def _same_answers(case: Evidence) -> str:
    same = all(answer.stage2.text == answer.stage3.text for answer in case.known.answers)
    return f"All {case.known.prompts} answers are identical to Stage 2's." if same else ""


def _broken_answers(case: Evidence) -> str:
    found = _rise(case.known.unusable, case.limits.max_unusable_rise)
    if not found or case.by_chance(mcnemar_test(*case.known.unusable)):
        return ""
    return "More answers are unusable than before, by more than chance."


def _over_refusal(case: Evidence) -> str:
    found = _rise(case.known.refused, case.limits.max_refusal_rise)
    if not found or case.by_chance(mcnemar_test(*case.known.refused)):
        return ""
    return "More harmless prompts are refused than before, by more than chance."


def _wrong_way_round(case: Evidence) -> str:
    if not case.known.wrong_way_round or case.by_judge == "better":
        return ""
    return "Stage 3 prefers the rejected replies of held-out pairs: it learned the opposite."


def _fewer_unfit(case: Evidence) -> str:
    """A model that refuses everything, or says the same to everyone, makes no broken sentences either."""
    known = case.known
    if known.differences or sum(known.refused[1]) > sum(known.refused[0]):
        return ""
    answering = [answer for answer in known.answers if not answer.newly_refused]
    before, after = unfit(known.answers)
    fell = fraction(before) - fraction(after)
    if fell <= case.limits.max_unusable_rise or not (case.mends(known.answers) and case.mends(answering)):
        return ""
    p = mcnemar_test(after, before)
    return (
        f"Fewer answers are unfit than before, by more than chance: {sum(before)} of {known.prompts} before, {sum(after)} after "
        f"(McNemar p = {p:.2g}). No judge says what they are worth beyond that. {known.why_no_judge}".strip()
    )


def _no_judge(case: Evidence) -> str:
    scored, least = len(case.known.differences), case.limits.min_eval_prompts
    if not scored:
        return f"No judge scored the answers. {case.known.why_no_judge}".strip()
    return f"The judge scored only {scored} prompts; at least {least} are needed." if scored < least else ""


def _blind_judge(case: Evidence) -> str:
    given = {score for each in case.known.answers for score in (each.stage2.score, each.stage3.score)} - {None}
    return (
        f"The judge gave every answer the same score ({given.pop():g}), although they differ."
        if len(given) == 1
        else ""
    )


def _judged_worse(case: Evidence) -> str:
    return "The judge prefers Stage 2's answers." if case.by_judge == "worse" else ""


def _more_broken(case: Evidence) -> str:
    return _may_be_chance("unusable answers", case.known.unusable, case.limits.max_unusable_rise)


def _more_refusals(case: Evidence) -> str:
    return _may_be_chance("refusals of harmless prompts", case.known.refused, case.limits.max_refusal_rise)


def _judged_alike(case: Evidence) -> str:
    return "The judge finds no difference beyond chance." if case.by_judge == "no different" else ""


def _judge_against_pairs(case: Evidence) -> str:
    if not case.known.wrong_way_round:
        return ""
    return "The judge prefers Stage 3's answers, but Stage 3 prefers the rejected replies of held-out pairs."


def _length_alone(case: Evidence) -> str:
    level = [answer for answer in case.known.answers if answer.not_longer]
    if case.known.length_ratio <= case.limits.max_length_ratio or case.prefers_stage_3(level):
        return ""
    wins, ties, losses = win_tie_loss(gains(level))
    return (
        f"Answers are over {case.limits.max_length_ratio:g} times as long. Among those that are not longer, the judge does not "
        f"prefer Stage 3 ({wins} better, {ties} equal, {losses} worse): it may only like length."
    )


def _refusals_alone(case: Evidence) -> str:
    answering = [answer for answer in case.known.answers if not answer.newly_refused]
    could_be_seen = not case.by_chance(sign_test(0, len(case.known.harmless)))
    if could_be_seen or case.prefers_stage_3(answering):
        return ""
    return (
        f"The judge only prefers refusals, and {len(case.known.harmless)} harmless prompts are too few to see whether Stage 3 "
        "refuses those, too."
    )


def _judged_better(case: Evidence) -> str:
    return "The judge prefers Stage 3's answers; broken answers, refusals and length do not explain it."


Rule = tuple[str, VerdictLabel, Callable[[Evidence], str]]

RULES: tuple[Rule, ...] = (
    ("nothing trained", "no different", _nothing_trained),
    ("too few prompts", "cannot tell", _too_few_prompts),
    ("same answers", "no different", _same_answers),
    ("broken answers", "worse", _broken_answers),
    ("over-refusal", "worse", _over_refusal),
    ("wrong way round", "worse", _wrong_way_round),
    ("fewer unfit answers", "better", _fewer_unfit),
    ("no judge", "cannot tell", _no_judge),
    ("blind judge", "cannot tell", _blind_judge),
    ("judged worse", "worse", _judged_worse),
    ("more broken", "cannot tell", _more_broken),
    ("more refusals", "cannot tell", _more_refusals),
    ("judged alike", "no different", _judged_alike),
    ("judge against pairs", "cannot tell", _judge_against_pairs),
    ("length alone", "cannot tell", _length_alone),
    ("refusals alone", "cannot tell", _refusals_alone),
    ("judged better", "better", _judged_better),
)


def _rise(flags: tuple[Sequence[bool], Sequence[bool]], most: float) -> float:
    """How much the share of True rose, if by more than `most`; else 0."""
    rise = fraction(flags[1]) - fraction(flags[0])
    return rise if rise > most + 1e-9 else 0.0  # 3/20 - 2/20 must count as exactly 0.05


def _may_be_chance(what: str, flags: tuple[Sequence[bool], Sequence[bool]], most: float) -> str:
    rise = _rise(flags, most)
    return f"The {what} rose by {rise:.0%}, over {most:.0%}, which may or may not be chance." if rise else ""
