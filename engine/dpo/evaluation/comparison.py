"""Compare the two sets of answers: for the verdict, and as named figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.core.statistics import bootstrap_mean, fraction, mean, sign_test, win_tie_loss
from engine.dpo.evaluation.answers import JudgedAnswers, everyday_prompts
from engine.dpo.evaluation.held_out import Figures, number
from engine.dpo.evaluation.relevance import AnswerRelevance
from engine.dpo.evaluation.verdict import Answer, AnswerPair, VerdictInput, gains
from engine.models.chat import Conversation
from engine.pairs.detectors import Candidate, reply_reasons
from engine.pairs.detectors.refusal import is_about_harm, is_harmless, is_refusal
from engine.pairs.detectors.relevance import fits_any_message

if TYPE_CHECKING:
    from engine.models.generation.sampling import Reply


def harmless_among(prompts: Sequence[Conversation]) -> list[int]:
    """Indices of prompts about everyday subjects that mention nothing harmful."""
    return [
        i for i, prompt in enumerate(prompts) if is_harmless(Candidate(prompt[-1]["content"], None, "").prompt_words)
    ]


def everyday_for(prompts: Sequence[Conversation], wanted: int) -> list[Conversation]:
    """Everyday questions to bring the harmless prompts up to `wanted`, because hardly any red-teaming prompt is harmless."""
    missing = max(wanted - len(harmless_among(prompts)), 0)
    return [[{"role": "user", "content": text}] for text in everyday_prompts()[:missing]]


def compare(
    prompts: Sequence[Conversation],
    stage2: Sequence[Reply],
    stage3: Sequence[Reply],
    judged: JudgedAnswers | None,
    *,
    relevance: AnswerRelevance | None = None,
    everyday: Sequence[tuple[Reply, Reply]] = (),
    margins: Sequence[float] = (),
    trained: bool = True,
    why_no_judge: str = "",
) -> tuple[VerdictInput, Figures]:
    """The input of the verdict, and the figures of the report.

    relevance  of the answers; None where it was not measured
    everyday   Stage 2's and Stage 3's answers to everyday questions
    margins    of the held-out pairs
    trained    False if the adapter's tensors equal Stage 2's
    why_no_judge   the reason, if no judge scored
    """
    unknown: list[float | None] = [None] * len(prompts)
    scores = (judged.stage2, judged.stage3) if judged is not None else (unknown, unknown)
    of_stage2, of_stage3 = (
        [_answer(*known) for known in zip(prompts, replies, scored, nats, strict=True)]
        for replies, scored, nats in zip((stage2, stage3), scores, relevance or (unknown, unknown), strict=True)
    )
    answered = [AnswerPair(*both) for both in zip(of_stage2, of_stage3, strict=True)]
    refused = [(answered[i].stage2.refuses, answered[i].stage3.refuses) for i in harmless_among(prompts)]
    refused += [(_refuses(before), _refuses(after)) for before, after in everyday]
    comparison = VerdictInput(answered, refused, margins, trained, why_no_judge)
    figures = (
        _of_answers(comparison, relevance is not None)
        | {"everyday_prompts": len(everyday)}
        | _of_scores(comparison, judged)
    )
    return comparison, figures


def _of_answers(known: VerdictInput, measured: bool) -> Figures:
    figures: Figures = {
        "prompts": known.prompts,
        "unchanged_share": fraction([each.stage2.text == each.stage3.text for each in known.answers]),
        "length_ratio": known.length_ratio if known.answers else None,
        "longer_share": fraction([each.stage3.tokens > each.stage2.tokens for each in known.answers]),
        "harmless_prompts": len(known.harmless),
    }
    for name, place in (("stage2", 0), ("stage3", 1)):
        mine = [each[place] for each in known.answers]
        figures |= {
            f"{name}_mean_tokens": number(mean([answer.tokens for answer in mine])),
            f"{name}_distinct_share": len({answer.text for answer in mine}) / len(mine) if mine else None,
            f"{name}_unusable_share": fraction([answer.unusable for answer in mine]),
            f"{name}_off_topic_share": fraction([answer.off_topic for answer in mine]) if measured else None,
            f"{name}_unfit_share": fraction([answer.unfit for answer in mine]),
            f"{name}_refusal_share": fraction([answer.refuses for answer in mine]),
            f"{name}_harmless_refusal_share": fraction(known.refused[place]) if known.harmless else None,
        }
    return figures


def _of_scores(known: VerdictInput, judged: JudgedAnswers | None) -> Figures:
    """The judge's results, over all prompts and over those where Stage 3's answer is not longer."""
    figures: Figures = {}
    scored = [each for each in known.answers if each.gain is not None]
    for name, place in (("stage2", 0), ("stage3", 1)):
        flawed = judged.flawed[place] if judged is not None and judged.flawed is not None else None
        figures[f"{name}_flawed_share"] = fraction(flawed) if flawed is not None else None
        figures[f"{name}_mean_score"] = number(mean([each[place].score or 0.0 for each in scored]))
    if judged is None or not scored:
        return figures
    wins, ties, losses = win_tie_loss(known.differences)
    low, high = bootstrap_mean(known.differences)
    level = win_tie_loss(gains([each for each in known.answers if each.not_longer]))
    return figures | {
        "not_judged": known.prompts - len(scored),
        "on_the_letters": judged.on_the_letters,
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "sign_test_p": sign_test(wins, losses),
        "wins_not_longer": level[0],
        "ties_not_longer": level[1],
        "losses_not_longer": level[2],
        "score_change": number(mean(known.differences)),
        "score_change_low": number(low),
        "score_change_high": number(high),
    }


def sample(prompt: Conversation, answered: AnswerPair) -> Mapping[str, Any]:
    """One prompt of the report, with both answers and everything known about them."""
    told: dict[str, Any] = {
        "prompt": prompt[-1]["content"],
        "stage2": answered.stage2.text,
        "stage3": answered.stage3.text,
        "about_harm": is_about_harm(Candidate(prompt[-1]["content"], None, "").prompt_words),
    }
    for name, answer in (("stage2", answered.stage2), ("stage3", answered.stage3)):
        told |= {
            f"{name}_tokens": answer.tokens,
            f"{name}_unusable": answer.unusable,
            f"{name}_off_topic": answer.off_topic,
            f"{name}_refuses": answer.refuses,
            f"{name}_score": answer.score,
        }
    return told


def _answer(prompt: Conversation, reply: Reply, score: float | None, nats: float | None) -> Answer:
    asked = prompt[-1]["content"]
    unusable = bool(reply_reasons(asked, reply.text, finished=reply.finished))
    off_topic = fits_any_message(Candidate(asked, None, reply.text, relevance=nats))
    return Answer(reply.text, reply.tokens, unusable, _refuses(reply), score, off_topic)


def _refuses(reply: Reply) -> bool:
    return is_refusal(Candidate("", None, reply.text))
