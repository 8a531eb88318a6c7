"""Stage 2 and Stage 3 side by side on held-out data: the rewards of the pairs, and answers to their prompts."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from engine import names
from engine.dpo.dataset import Row, encode_rows, split_by_length
from engine.dpo.reference import REFERENCE_ADAPTER, adapter_active, collated, pair_logps
from engine.dpo.verdict import Comparison, bootstrap_mean, mean, outcomes, share, sign_test, verdict, wilson
from engine.events import EvalDone, Event, Progress
from engine.files import write_json
from engine.models.batch_size import chosen_batch_size
from engine.models.chat import Conversation
from engine.models.loading import POLICY_ADAPTER, resolve_dtype
from engine.pairs.judge import Judge, load_judge

if TYPE_CHECKING:
    from engine.context import Context
    from engine.dpo.trainer import Trained
    from engine.models.sampling import Reply

STAGE = "training"
SHOWN_SAMPLES = 5


def evaluate(context: Context, trained: Trained, rows: Sequence[Row]) -> Generator[Event, None, dict[str, Any]]:
    """Compare, decide, write `evaluation/report.json`, and return what it says. Raises Stopped."""
    figures = yield from held_out_rewards(context, trained, rows)
    prompts = distinct_prompts(rows, context.config.eval_prompts)
    stage2 = yield from answers(context, trained, prompts, REFERENCE_ADAPTER)
    stage3 = yield from answers(context, trained, prompts, POLICY_ADAPTER)
    judge = load_judge(context.config)
    comparison, about_answers = compare(prompts, stage2, stage3, judge)
    found = verdict(comparison)
    samples = [
        {"prompt": prompt[-1]["content"], "stage2": before.text, "stage3": after.text}
        for prompt, before, after in zip(prompts, stage2, stage3, strict=True)
    ]
    shown = {**figures, **about_answers}
    report = {
        "verdict": found.word,
        "reasons": list(found.reasons),
        "judge": None if judge is None else judge.name,
        "figures": shown,
        "decoding": {"temperature": 0.0, "max_new_tokens": context.config.max_new_tokens},
        "samples": samples,
    }
    write_json(context.run / names.EVALUATION_REPORT, report)
    yield EvalDone(found.word, found.reasons, shown, tuple(samples[:SHOWN_SAMPLES]))
    return report


def held_out_rewards(
    context: Context, trained: Trained, rows: Sequence[Row]
) -> Generator[Event, None, dict[str, float | int | None]]:
    """Share of pairs whose chosen reply has the higher reward, and the mean margin in nats, each with an interval.

    A reward is beta times the log-ratio of policy to reference (Rafailov et al. 2023, eq. 5).
    """
    config = context.config
    pairs, too_long = split_by_length(encode_rows(rows, trained.tokenizer), config.max_length)
    plain = [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]
    dtype, margins = resolve_dtype(config), []
    device = trained.model.device
    for batch in collated(plain, trained.collator, config.per_device_train_batch_size, device):  # type: ignore[arg-type]
        chosen, rejected = pair_logps(trained.model, batch, POLICY_ADAPTER, dtype)
        reference_chosen, reference_rejected = pair_logps(trained.model, batch, REFERENCE_ADAPTER, dtype)
        margins += (config.beta * ((chosen - reference_chosen) - (rejected - reference_rejected))).tolist()
        yield Progress(STAGE, len(margins), len(plain), "held-out pairs")
        context.stop.raise_if_requested()
    right = sum(margin > 0 for margin in margins)
    low, high = wilson(right, len(margins))
    margin_low, margin_high = bootstrap_mean(margins)
    return {
        "pairs": len(margins),
        "pairs_too_long": len(too_long),
        "reward_accuracy": right / len(margins) if margins else None,
        "reward_accuracy_low": low,
        "reward_accuracy_high": high,
        "margin": _number(mean(margins)),
        "margin_low": _number(margin_low),
        "margin_high": _number(margin_high),
    }


def distinct_prompts(rows: Sequence[Row], most: int) -> list[Conversation]:
    """The first `most` different prompts, in the file's order."""
    found: list[Conversation] = []
    for row in rows:
        if row["prompt"] not in found and len(found) < most:
            found.append(row["prompt"])
    return found


def answers(
    context: Context, trained: Trained, prompts: Sequence[Conversation], adapter: str
) -> Generator[Event, None, list[Reply]]:
    """Greedy answers under one adapter, in batches that are halved where memory runs out. Raises Stopped."""
    from engine.models.local import free_memory
    from engine.models.memory import in_halves
    from engine.models.sampling import SamplingSettings, generate

    settings = SamplingSettings(context.config.max_new_tokens)
    which = "Stage 2" if adapter == REFERENCE_ADAPTER else "Stage 3"
    found: list[Reply] = []

    def answer(indices: Sequence[int]) -> list[Reply]:
        with adapter_active(trained.model, adapter):
            return generate(
                trained.model,  # type: ignore[arg-type]
                trained.tokenizer,
                [prompts[index] for index in indices],
                settings,
                should_stop=lambda: context.stop.requested,
            )

    for start in range(0, len(prompts), chosen_batch_size(context.config)):
        batch = range(start, min(start + chosen_batch_size(context.config), len(prompts)))
        found += in_halves(answer, batch, free_memory)
        context.stop.raise_if_requested()
        yield Progress(STAGE, len(found), len(prompts), "answers", note=which)
    return found


def compare(
    prompts: Sequence[Conversation], stage2: Sequence[Reply], stage3: Sequence[Reply], judge: Judge | None
) -> tuple[Comparison, dict[str, float | int | None]]:
    """The two sets of answers as the verdict reads them, and the figures of the report."""
    unusable = [_unusable(prompts, replies) for replies in (stage2, stage3)]
    scores, flawed = _judged(prompts, (stage2, stage3), judge)
    comparison = Comparison(*unusable, *(scores or (None, None)))
    wins, ties, losses = outcomes(comparison.differences)
    low, high = bootstrap_mean(comparison.differences)
    figures: dict[str, float | int | None] = {"prompts": len(prompts)}
    for number, (name, replies) in enumerate((("stage2", stage2), ("stage3", stage3))):
        figures[f"{name}_mean_tokens"] = _number(mean([reply.tokens for reply in replies]))
        figures[f"{name}_unusable_share"] = share(unusable[number])
        figures[f"{name}_flawed_share"] = share(flawed[number]) if flawed else None
        figures[f"{name}_mean_score"] = _number(mean(scores[number])) if scores else None
    figures |= {"unchanged_share": share([a.text == b.text for a, b in zip(stage2, stage3, strict=True)])}
    if scores:
        figures |= {"wins": wins, "ties": ties, "losses": losses, "sign_test_p": sign_test(wins, losses)}
        figures |= {
            "score_change": _number(mean(comparison.differences)),
            "score_change_low": _number(low),
            "score_change_high": _number(high),
        }
    return comparison, figures


def _unusable(prompts: Sequence[Conversation], replies: Sequence[Reply]) -> list[bool]:
    from engine.pairs.detectors import reply_reasons

    return [
        bool(reply_reasons(prompt[-1]["content"], reply.text, finished=reply.finished))
        for prompt, reply in zip(prompts, replies, strict=True)
    ]


def _judged(
    prompts: Sequence[Conversation], both: tuple[Sequence[Reply], Sequence[Reply]], judge: Judge | None
) -> tuple[tuple[list[float], list[float]] | None, tuple[list[bool], list[bool]] | None]:
    """Scores and flaws of Stage 2 and of Stage 3, prompt by prompt; None without a judge."""
    if judge is None:
        return None, None
    texts = list(zip(prompts, (r.text for r in both[0]), (r.text for r in both[1]), strict=True))
    scores = [judge.score(prompt, [before, after]) for prompt, before, after in texts]
    flawed = [(judge.flawed(prompt, before), judge.flawed(prompt, after)) for prompt, before, after in texts]
    return ([s[0] for s in scores], [s[1] for s in scores]), ([f[0] for f in flawed], [f[1] for f in flawed])


def _number(value: float) -> float | None:
    """JSON has no NaN: what was not measured is null."""
    return value if value == value else None
