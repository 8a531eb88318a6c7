"""--judge self: ask the Stage 2 policy itself which of two replies is better by a principle (Bai et al. 2022, 4.1).

Averages the log-odds of the two letters at the start of the answer over both orders. As with generation, the rest of the batch
affects the last bits of a score, and more than the last bits with 16-bit weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.core.errors import NumbersError, PreconditionError
from engine.models.chat_template import conversation_ids, reply_ids
from engine.pairs.judges.base import Comparison, LoadedPolicy, ScorePair, too_long
from engine.pairs.judges.question import LETTERS, PrincipleSelector, both_orders, log_odds_of_second, probabilities
from engine.pairs.principles.constitution import load_constitution

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_self_judge(config: Stage3Config, policy: LoadedPolicy) -> SelfJudge:
    return SelfJudge(policy, PrincipleSelector(load_constitution(config.constitution), config.seed))


@dataclass(frozen=True)
class LetterTokens:
    """The first tokens of the answers "A" and "B" in the model's turn."""

    before: list[int]
    """Common tokens before the letters (such as a separate space); usually none."""
    a: int
    b: int


class SelfJudge:
    name = "self"
    about = "the Stage 2 policy, asked with a principle in both orders; scores are probabilities, 0 to 1"

    def __init__(self, policy: LoadedPolicy, principles: PrincipleSelector) -> None:
        self._policy = policy
        self._principles = principles
        self._letters = letter_tokens(policy.tokenizer)
        limit = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
        self._max_tokens: int = limit if isinstance(limit, int) else 1 << 62
        policy.model.eval()

    def score(self, comparisons: Sequence[Comparison]) -> list[ScorePair]:
        principles = [self._principles.select(comparison) for comparison in comparisons]
        questions = [
            [self._ids(question) for question in both_orders(comparison, principle)]
            for comparison, principle in zip(comparisons, principles, strict=True)
        ]
        longest = [max(map(len, both)) for both in questions]
        fitting = [number for number, tokens in enumerate(longest) if tokens <= self._max_tokens]
        logps = self._letter_logps([row for number in fitting for row in questions[number]])
        orders = {number: (logps[2 * i], logps[2 * i + 1]) for i, number in enumerate(fitting)}
        return [
            self._scores(comparisons[number], principles[number].id, orders[number])
            if number in orders
            else too_long(tokens, self._max_tokens)
            for number, tokens in enumerate(longest)
        ]

    def _ids(self, question: Sequence[object]) -> list[int]:
        return conversation_ids(self._policy.tokenizer, question, add_generation_prompt=True) + self._letters.before  # type: ignore[arg-type]

    def _letter_logps(self, rows: list[list[int]]) -> list[tuple[float, float]]:
        """For each row of ids, the log-probabilities of A and B as next token, in nats, over the whole vocabulary."""
        import torch

        if not rows:
            return []
        policy = self._policy
        padded = policy.tokenizer.pad({"input_ids": rows}, padding=True, padding_side="left", return_tensors="pt")
        ids, mask = padded["input_ids"].to(policy.model.device), padded["attention_mask"].to(policy.model.device)
        with torch.inference_mode(), policy.active():
            logits = policy.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=-1) - 1).clamp_min(0),  # left padding takes no positions
                use_cache=False,
                logits_to_keep=1,  # all of them would be (B, T, V)
            ).logits[:, -1]  # (B, V)
            logps = torch.log_softmax(logits.float(), dim=-1)[:, [self._letters.a, self._letters.b]]
        return [(float(a), float(b)) for a, b in logps.tolist()]

    def _scores(
        self, comparison: Comparison, principle_id: str, orders: tuple[tuple[float, float], tuple[float, float]]
    ) -> ScorePair:
        log_odds = log_odds_of_second(*orders)
        if not math.isfinite(log_odds):
            raise NumbersError(
                f"The Stage 2 policy's log-probabilities of A and B for the pair {comparison.id} are {orders}.",
                "A score that is not a finite number decides nothing, and hides that the model is broken.",
                "Use --dtype bfloat16 if the GPU has it, else --dtype float32; or another --judge.",
            )
        return ScorePair(
            *probabilities(log_odds),
            {
                "principle": principle_id,
                "log_probabilities": [[round(value, 6) for value in order] for order in orders],
                "on_the_letters": round(sum(math.exp(value) for order in orders for value in order) / 2, 6),
            },
        )


def letter_tokens(tokenizer: PreTrainedTokenizerBase) -> LetterTokens:
    """Render both answers and find the first token that differs. It may be "A", " A" or "▁A", depending on the tokenizer.

    Raises PreconditionError if no single token at the start of the answer distinguishes the letters.
    """
    question: list[dict[str, str]] = [{"role": "user", "content": "A or B?"}]
    try:
        a, b = (reply_ids(tokenizer, question, [{"role": "assistant", "content": letter}]) for letter in LETTERS)  # type: ignore[arg-type]
    except PreconditionError as error:
        raise _no_letter_tokens(tokenizer, error.what) from error
    difference = next((i for i, (id_a, id_b) in enumerate(zip(a, b, strict=False)) if id_a != id_b), 0)
    letters = tuple(tokenizer.decode([ids[difference]]).strip() for ids in (a, b))
    if letters != LETTERS:
        raise _no_letter_tokens(
            tokenizer, f"The first tokens that differ are {letters[0]!r} and {letters[1]!r}, not A and B."
        )
    return LetterTokens(a[:difference], a[difference], b[difference])


def _no_letter_tokens(tokenizer: PreTrainedTokenizerBase, why: str) -> PreconditionError:
    return PreconditionError(
        f"--judge self: {tokenizer.name_or_path} has no single tokens for the answers A and B.",
        why,
        "Use --judge reward-model or --judge server, or continue without a judge (--judge none).",
    )
