"""Is Stage 3 better than Stage 2? A verdict and its reasons, from figures alone.

Reward accuracy alone is misleading: it can be 1.0 while the answers stay as flawed as before, or are no longer sentences.
So the verdict depends on both models' answers to held-out prompts: whether they are usable, whether harmless prompts are
refused, and a judge's scores if there is one. An answer is unfit if it is unusable or would fit any message. The rules in
order; the first that holds decides:

| rule | holds when | verdict |
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
    """Whether a detector objects."""
    refuses: bool = False
    score: float | None = None
    """The judge's score; None if there is none."""
    off_topic: bool = False
    """Whether it would fit any message; False if its relevance was not measured."""

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
    """One pair per held-out prompt."""
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
        """Whether each answer is unusable: (Stage 2, Stage 3)."""
        return [a.stage2.unusable for a in self.answers], [a.stage3.unusable for a in self.answers]

    @cached_property
    def off_topic(self) -> tuple[list[bool], list[bool]]:
        """Whether each answer would fit any message: (Stage 2, Stage 3)."""
        return [a.stage2.off_topic for a in self.answers], [a.stage3.off_topic for a in self.answers]

    @cached_property
    def refused(self) -> tuple[list[bool], list[bool]]:
        """Whether each harmless prompt was refused: (Stage 2, Stage 3)."""
        return [before for before, _ in self.harmless], [after for _, after in self.harmless]

    @cached_property
    def wrong_way_round(self) -> bool:
        """Whether the intervals of reward accuracy and margin lie entirely below one half and 0."""
        correct = sum(margin > 0 for margin in self.margins)
        return wilson(correct, len(self.margins))[1] < 0.5 and bootstrap_mean(self.margins)[1] < 0


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
    label: VerdictLabel
    rule: str
    """The first rule that applies."""
    reasons: tuple[str, ...]
    """Why the rule applies, then the evidence."""


def verdict(data: VerdictInput, limits: Limits) -> Verdict:
    """Apply the rules in order; the first one that applies decides."""
    evidence = Evidence(data, limits)
    for name, label, rule in RULES:
        why = rule(evidence)
        if why:
            return Verdict(label, name, (why, *evidence.sentences))
    raise AssertionError("the last rule always applies")


def gains(answers: Sequence[AnswerPair]) -> list[float]:
    """The gains of prompts with both scores."""
    return [gain for answer in answers if (gain := answer.gain) is not None]


def unfit(answers: Sequence[AnswerPair]) -> tuple[list[bool], list[bool]]:
    """Whether each answer is unfit: (Stage 2, Stage 3)."""
    return [answer.stage2.unfit for answer in answers], [answer.stage3.unfit for answer in answers]


# -- the evidence --------------------------------------------------------------------------------------------------------


class Evidence:
    """What the rules need to know: the data, compared with the limits."""

    def __init__(self, data: VerdictInput, limits: Limits) -> None:
        self.data, self.limits = data, limits

    @cached_property
    def by_judge(self) -> VerdictLabel:
        """The judge's verdict: more wins (or losses) than chance allows, and an interval of the mean change that excludes 0."""
        low, high = bootstrap_mean(self.data.differences)
        if self.prefers_stage_3(self.data.answers) and low > 0:
            return "better"
        wins, _, losses = win_tie_loss(self.data.differences)
        return "worse" if losses > wins and not self.by_chance(sign_test(wins, losses)) and high < 0 else "no different"

    def prefers_stage_3(self, answers: Sequence[AnswerPair]) -> bool:
        """Whether Stage 3 wins more often among these answers than chance allows."""
        wins, _, losses = win_tie_loss(gains(answers))
        return wins > losses and not self.by_chance(sign_test(wins, losses))

    def has_fewer_unfit(self, answers: Sequence[AnswerPair]) -> bool:
        """Whether Stage 3 has fewer unfit answers among these, by more than chance."""
        before, after = unfit(answers)
        return sum(after) < sum(before) and not self.by_chance(mcnemar_test(after, before))

    def by_chance(self, p: float) -> bool:
        return p >= self.limits.eval_significance

    @cached_property
    def sentences(self) -> list[str]:
        """The measured figures, in sentences."""
        data, sentences = self.data, []
        if data.answers:
            before, after = map(fraction, data.unusable)
            sentences.append(f"Unusable answers: {before:.0%} before, {after:.0%} after.")
            if any(map(any, data.off_topic)):
                before, after = map(fraction, data.off_topic)
                sentences.append(f"Answers that would fit any message: {before:.0%} before, {after:.0%} after.")
            sentences.append(f"Length: {data.length_ratio:.2f} times Stage 2's on average.")
        if data.harmless:
            before, after = map(sum, data.refused)
            sentences.append(f"Refused harmless prompts: {before} of {len(data.harmless)} before, {after} after.")
        if data.differences:
            wins, ties, losses = win_tie_loss(data.differences)
            low, high = bootstrap_mean(data.differences)
            sentences.append(
                f"Judge: {wins} better, {ties} equal, {losses} worse (sign test p = {sign_test(wins, losses):.2g}); "
                f"mean change {mean(data.differences):+.3f}, 95 % interval {low:+.3f} to {high:+.3f}."
            )
        return sentences


# -- the rules: each returns why it applies, or an empty string ---------------------------------------------------------


def _nothing_trained(evidence: Evidence) -> str:
    return "" if evidence.data.trained else "The adapter's tensors are identical to Stage 2's."


def _too_few_prompts(evidence: Evidence) -> str:
    prompts, minimum = evidence.data.prompts, evidence.limits.min_eval_prompts
    return f"Too few held-out prompts ({prompts}); at least {minimum} are needed." if prompts < minimum else ""


def _same_answers(evidence: Evidence) -> str:
    same = all(answer.stage2.text == answer.stage3.text for answer in evidence.data.answers)
    return f"All {evidence.data.prompts} answers are identical to Stage 2's." if same else ""


def _broken_answers(evidence: Evidence) -> str:
    rise = _rise(evidence.data.unusable, evidence.limits.max_unusable_rise)
    if not rise or evidence.by_chance(mcnemar_test(*evidence.data.unusable)):
        return ""
    return "More answers are unusable than before, by more than chance."


def _over_refusal(evidence: Evidence) -> str:
    rise = _rise(evidence.data.refused, evidence.limits.max_refusal_rise)
    if not rise or evidence.by_chance(mcnemar_test(*evidence.data.refused)):
        return ""
    return "More harmless prompts are refused than before, by more than chance."


def _wrong_way_round(evidence: Evidence) -> str:
    if not evidence.data.wrong_way_round or evidence.by_judge == "better":
        return ""
    return "Stage 3 prefers the rejected replies of held-out pairs: it learned the opposite."


def _fewer_unfit(evidence: Evidence) -> str:
    """Holds only if refusals did not rise: a model that refuses everything, or always says the same, has no broken answers."""
    data = evidence.data
    if data.differences or sum(data.refused[1]) > sum(data.refused[0]):
        return ""
    answering = [answer for answer in data.answers if not answer.newly_refused]
    before, after = unfit(data.answers)
    fell = fraction(before) - fraction(after)
    if fell <= evidence.limits.max_unusable_rise or not (
        evidence.has_fewer_unfit(data.answers) and evidence.has_fewer_unfit(answering)
    ):
        return ""
    p = mcnemar_test(after, before)
    return (
        f"Fewer answers are unfit than before, by more than chance: {sum(before)} of {data.prompts} before, {sum(after)} "
        f"after (McNemar p = {p:.2g}). No judge rated them beyond that. {data.why_no_judge}".strip()
    )


def _no_judge(evidence: Evidence) -> str:
    scored, minimum = len(evidence.data.differences), evidence.limits.min_eval_prompts
    if not scored:
        return f"No judge scored the answers. {evidence.data.why_no_judge}".strip()
    return f"The judge scored only {scored} prompts; at least {minimum} are needed." if scored < minimum else ""


def _blind_judge(evidence: Evidence) -> str:
    scores = {score for each in evidence.data.answers for score in (each.stage2.score, each.stage3.score)} - {None}
    return (
        f"The judge gave every answer the same score ({scores.pop():g}), although they differ."
        if len(scores) == 1
        else ""
    )


def _judged_worse(evidence: Evidence) -> str:
    return "The judge prefers Stage 2's answers." if evidence.by_judge == "worse" else ""


def _more_broken(evidence: Evidence) -> str:
    return _may_be_chance("unusable answers", evidence.data.unusable, evidence.limits.max_unusable_rise)


def _more_refusals(evidence: Evidence) -> str:
    return _may_be_chance("refusals of harmless prompts", evidence.data.refused, evidence.limits.max_refusal_rise)


def _judged_alike(evidence: Evidence) -> str:
    return "The judge finds no difference beyond chance." if evidence.by_judge == "no different" else ""


def _judge_against_pairs(evidence: Evidence) -> str:
    if not evidence.data.wrong_way_round:
        return ""
    return "The judge prefers Stage 3's answers, but Stage 3 prefers the rejected replies of held-out pairs."


def _length_alone(evidence: Evidence) -> str:
    not_longer = [answer for answer in evidence.data.answers if answer.not_longer]
    if evidence.data.length_ratio <= evidence.limits.max_length_ratio or evidence.prefers_stage_3(not_longer):
        return ""
    wins, ties, losses = win_tie_loss(gains(not_longer))
    return (
        f"Answers are over {evidence.limits.max_length_ratio:g} times as long. Among those that are not longer, the judge "
        f"does not prefer Stage 3 ({wins} better, {ties} equal, {losses} worse): it may only like length."
    )


def _refusals_alone(evidence: Evidence) -> str:
    answering = [answer for answer in evidence.data.answers if not answer.newly_refused]
    detectable = not evidence.by_chance(sign_test(0, len(evidence.data.harmless)))
    if detectable or evidence.prefers_stage_3(answering):
        return ""
    return (
        f"The judge only prefers refusals, and {len(evidence.data.harmless)} harmless prompts are too few to detect "
        "whether Stage 3 refuses those, too."
    )


def _judged_better(evidence: Evidence) -> str:
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


def _rise(flags: tuple[Sequence[bool], Sequence[bool]], limit: float) -> float:
    """How much the share of True rose, if by more than `limit`; else 0."""
    rise = fraction(flags[1]) - fraction(flags[0])
    return rise if rise > limit + 1e-9 else 0.0  # 3/20 - 2/20 must count as exactly 0.05


def _may_be_chance(what: str, flags: tuple[Sequence[bool], Sequence[bool]], limit: float) -> str:
    rise = _rise(flags, limit)
    return f"The {what} rose by {rise:.0%}, over {limit:.0%}, which may or may not be chance." if rise else ""
