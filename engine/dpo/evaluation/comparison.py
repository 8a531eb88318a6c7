"""Compare the two policies' answers, as input of the verdict and as named figures."""

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
    """Everyday questions that bring the number of harmless prompts up to `wanted`: few red-teaming prompts are harmless."""
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

    relevance      of the answers; None if it was not measured
    everyday       Stage 2's and Stage 3's answers to everyday questions
    margins        of the held-out pairs
    trained        False if the adapter's tensors equal Stage 2's
    why_no_judge   the reason, if no judge scored
    """
    unknown: list[float | None] = [None] * len(prompts)
    scores = (judged.stage2, judged.stage3) if judged is not None else (unknown, unknown)
    stage2_answers, stage3_answers = (
        [_answer(*each) for each in zip(prompts, replies, scored, nats, strict=True)]
        for replies, scored, nats in zip((stage2, stage3), scores, relevance or (unknown, unknown), strict=True)
    )
    answers = [AnswerPair(*both) for both in zip(stage2_answers, stage3_answers, strict=True)]
    refused = [(answers[i].stage2.refuses, answers[i].stage3.refuses) for i in harmless_among(prompts)]
    refused += [(_refuses(before), _refuses(after)) for before, after in everyday]
    verdict_input = VerdictInput(answers, refused, margins, trained, why_no_judge)
    figures = (
        _answer_figures(verdict_input, relevance is not None)
        | {"everyday_prompts": len(everyday)}
        | _score_figures(verdict_input, judged)
    )
    return verdict_input, figures


def _answer_figures(data: VerdictInput, measured: bool) -> Figures:
    figures: Figures = {
        "prompts": data.prompts,
        "unchanged_share": fraction([each.stage2.text == each.stage3.text for each in data.answers]),
        "length_ratio": data.length_ratio if data.answers else None,
        "longer_share": fraction([each.stage3.tokens > each.stage2.tokens for each in data.answers]),
        "harmless_prompts": len(data.harmless),
    }
    for name, place in (("stage2", 0), ("stage3", 1)):
        answers = [each[place] for each in data.answers]
        figures |= {
            f"{name}_mean_tokens": number(mean([answer.tokens for answer in answers])),
            f"{name}_distinct_share": len({answer.text for answer in answers}) / len(answers) if answers else None,
            f"{name}_unusable_share": fraction([answer.unusable for answer in answers]),
            f"{name}_off_topic_share": fraction([answer.off_topic for answer in answers]) if measured else None,
            f"{name}_unfit_share": fraction([answer.unfit for answer in answers]),
            f"{name}_refusal_share": fraction([answer.refuses for answer in answers]),
            f"{name}_harmless_refusal_share": fraction(data.refused[place]) if data.harmless else None,
        }
    return figures


def _score_figures(data: VerdictInput, judged: JudgedAnswers | None) -> Figures:
    """The judge's results, over all prompts and over those where Stage 3's answer is not longer."""
    figures: Figures = {}
    scored = [each for each in data.answers if each.gain is not None]
    for name, place in (("stage2", 0), ("stage3", 1)):
        flawed = judged.flawed[place] if judged is not None and judged.flawed is not None else None
        figures[f"{name}_flawed_share"] = fraction(flawed) if flawed is not None else None
        figures[f"{name}_mean_score"] = number(mean([each[place].score or 0.0 for each in scored]))
    if judged is None or not scored:
        return figures
    wins, ties, losses = win_tie_loss(data.differences)
    low, high = bootstrap_mean(data.differences)
    not_longer = win_tie_loss(gains([each for each in data.answers if each.not_longer]))
    return figures | {
        "not_judged": data.prompts - len(scored),
        "on_the_letters": judged.on_the_letters,
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "sign_test_p": sign_test(wins, losses),
        "wins_not_longer": not_longer[0],
        "ties_not_longer": not_longer[1],
        "losses_not_longer": not_longer[2],
        "score_change": number(mean(data.differences)),
        "score_change_low": number(low),
        "score_change_high": number(high),
    }


def sample(prompt: Conversation, answered: AnswerPair) -> Mapping[str, Any]:
    """One prompt of the report, with both answers and everything known about them."""
    fields: dict[str, Any] = {
        "prompt": prompt[-1]["content"],
        "stage2": answered.stage2.text,
        "stage3": answered.stage3.text,
        "about_harm": is_about_harm(Candidate(prompt[-1]["content"], None, "").prompt_words),
    }
    for name, answer in (("stage2", answered.stage2), ("stage3", answered.stage3)):
        fields |= {
            f"{name}_tokens": answer.tokens,
            f"{name}_unusable": answer.unusable,
            f"{name}_off_topic": answer.off_topic,
            f"{name}_refuses": answer.refuses,
            f"{name}_score": answer.score,
        }
    return fields


def _answer(prompt: Conversation, reply: Reply, score: float | None, nats: float | None) -> Answer:
    question = prompt[-1]["content"]
    unusable = bool(reply_reasons(question, reply.text, finished=reply.finished))
    off_topic = fits_any_message(Candidate(question, None, reply.text, relevance=nats))
    return Answer(reply.text, reply.tokens, unusable, _refuses(reply), score, off_topic)


def _refuses(reply: Reply) -> bool:
    return is_refusal(Candidate("", None, reply.text))
