"""Log-ratios of Stage 3 to Stage 2: the rewards of held-out pairs, and how far training moved the policy."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError
from engine.core.events import Event, Progress
from engine.core.statistics import bootstrap_mean, mean, wilson
from engine.dpo.evaluation.tasks import TaskQueue
from engine.dpo.planning.plan import TrainingPlan
from engine.dpo.training.dataset import EncodedPair, Row, encode_row, encode_rows, split_by_length
from engine.machine.device import resolve_device

if TYPE_CHECKING:
    from engine.dpo.training.trainer import Trained
    from engine.models.chat import Conversation
    from engine.models.generation.sampling import Reply

STAGE = "training"

Figures = dict[str, float | int | None]
"""Figures by name; None if there was nothing to measure."""


@dataclass(frozen=True)
class LogRatios:
    """For both replies of a pair, the log-probability under Stage 3 minus that under Stage 2, in nats, summed over tokens."""

    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int


@dataclass(frozen=True)
class HeldOut:
    ratios: Sequence[LogRatios]
    too_long: int
    """Number of pairs longer than --max-length."""
    beta: float

    @property
    def margins(self) -> list[float]:
        """Reward of the chosen reply minus that of the rejected one, in nats.

        A reward is beta times the log-ratio of policy to reference (Rafailov et al. 2023, eq. 5).
        """
        return [self.beta * (ratio.chosen - ratio.rejected) for ratio in self.ratios]

    @property
    def losses(self) -> list[float]:
        """DPO's loss of each pair, as training reports it: -log sigmoid of the margin (Rafailov et al. 2023, eq. 7)."""
        return [max(-margin, 0.0) + math.log1p(math.exp(-abs(margin))) for margin in self.margins]

    @property
    def figures(self) -> Figures:
        margins, losses = self.margins, self.losses
        correct = sum(margin > 0 for margin in margins)
        low, high = wilson(correct, len(margins))
        margin_low, margin_high = bootstrap_mean(margins)
        loss_low, loss_high = bootstrap_mean(losses)
        chosen, rejected = [r.chosen for r in self.ratios], [r.rejected for r in self.ratios]
        return {
            "pairs": len(margins),
            "pairs_too_long": self.too_long,
            "reward_accuracy": correct / len(margins) if margins else None,
            "reward_accuracy_low": low,
            "reward_accuracy_high": high,
            "margin": number(mean(margins)),
            "margin_low": number(margin_low),
            "margin_high": number(margin_high),
            "loss": number(mean(losses)),
            "loss_low": number(loss_low),
            "loss_high": number(loss_high),
            "chosen_log_ratio": number(mean(chosen)),
            "chosen_log_ratio_per_token": per_token(chosen, [r.chosen_tokens for r in self.ratios]),
            "rejected_log_ratio": number(mean(rejected)),
            "rejected_log_ratio_per_token": per_token(rejected, [r.rejected_tokens for r in self.ratios]),
        }


def held_out_rewards(
    queue: TaskQueue, config: Stage3Config, trained: Trained, rows: Sequence[Row]
) -> Generator[Event, None, HeldOut]:
    """Submit both replies of each held-out pair to both policies; collect the rewards with `yield from`."""
    pairs, too_long = split_by_length(encode_rows(rows, trained.tokenizer), config.max_length)
    collected = log_ratios(queue, pairs, pairs_at_once(config, trained.plan), "held-out pairs")

    def rewards() -> Generator[Event, None, HeldOut]:
        ratios = yield from collected
        return HeldOut(ratios, len(too_long), config.beta)

    return rewards()


def distance_on_own_answers(
    queue: TaskQueue,
    config: Stage3Config,
    trained: Trained,
    prompts: Sequence[Conversation],
    stage2: Sequence[Reply],
    stage3: Sequence[Reply],
) -> Generator[Event, None, Figures]:
    """Submit Stage 3's greedy answers; collect with `yield from` how much more likely they are under Stage 3 than under
    Stage 2, in nats.

    This is like KL(Stage 3 ‖ Stage 2), but over greedy instead of sampled answers. It covers answers that ended and fit
    --max-length.
    """
    encoded: list[EncodedPair] = []
    for prompt, before, after in zip(prompts, stage2, stage3, strict=True):
        if not after.finished:
            continue
        chosen, rejected = ([{"role": "assistant", "content": reply.text}] for reply in (after, before))
        row: Row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}  # type: ignore[typeddict-item]
        try:
            encoded.append(encode_row(row, trained.tokenizer))  # both replies are the same if training changed nothing
        except PreconditionError:
            continue  # the template rejects a broken model's answer; the number of measured answers shows it
    fitting, _ = split_by_length(encoded, config.max_length)
    collected = log_ratios(queue, fitting, pairs_at_once(config, trained.plan), "answers measured")

    def distance() -> Generator[Event, None, Figures]:
        ratios = yield from collected
        own = [ratio.chosen for ratio in ratios]
        return {
            "own_answers_measured": len(own),
            "own_answer_log_ratio": number(mean(own)),
            "own_answer_log_ratio_per_token": per_token(own, [ratio.chosen_tokens for ratio in ratios]),
        }

    return distance()


def pairs_at_once(config: Stage3Config, plan: TrainingPlan) -> int:
    """Pairs that a policy reads at a time. On a CPU, several are not faster, and the last bits would depend on the plan."""
    return 1 if resolve_device(config).type == "cpu" else plan.micro_batch


def log_ratios(
    queue: TaskQueue, pairs: Sequence[EncodedPair], batch_size: int, unit: str
) -> Generator[Event, None, list[LogRatios]]:
    """Submit the pairs; collect one LogRatios per pair, in order, with `yield from`."""
    encoded = [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]
    starts = range(0, len(pairs), batch_size)
    queue.submit([{"read": encoded[start : start + batch_size]} for start in starts])

    def collected() -> Generator[Event, None, list[LogRatios]]:
        ratios: list[LogRatios] = []
        for _ in starts:
            for chosen, rejected in (yield from queue.next_result()):
                pair = pairs[len(ratios)]
                ratios.append(LogRatios(chosen, rejected, len(pair.chosen_ids), len(pair.rejected_ids)))
            yield Progress(len(ratios), len(pairs), unit)
        return ratios

    return collected()


def per_token(totals: Sequence[float], tokens: Sequence[int]) -> float | None:
    """Nats per token over all replies."""
    return sum(totals) / sum(tokens) if tokens else None


def number(value: float) -> float | None:
    """The value, or None for NaN, which JSON does not have."""
    return value if value == value else None
