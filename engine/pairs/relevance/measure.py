"""Relevance: how much more likely its own prompt makes a reply than unrelated messages do.

    relevance = log p(reply | its prompt) − mean over other messages of log p(reply | that message)        in nats

An estimate of the pointwise mutual information of prompt and reply (Li et al. 2016, "A Diversity-Promoting Objective Function
for Neural Conversation Models", section 3), over the reply's first tokens. A text that could follow any message has none,
however well it reads. The sum over tokens works better than the mean: forty generic words must not outvote the three that
name the subject.

The other messages are fixed, so a reply's relevance depends only on the reply, its prompt and the model, and is measured once.
Using messages of the set instead works no better (`bench/RESULTS.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from engine.models.chat import Conversation
from engine.models.chat_template import conversation_ids
from engine.models.likelihood import Likelihood, Row, reply_likelihoods

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OTHER_MESSAGES = ("How do I keep basil alive indoors?", "My brother never listens to me.")
"""A question and a statement, about nothing in particular."""
TOKENS_READ = 24
"""Tokens of a reply that are read. Its subject shows early, and reading long replies whole would be slow."""
MAX_PROMPT_TOKENS = 112
"""Of longer conversations only the end is read."""


@dataclass(frozen=True)
class Answer:
    """A reply and its conversation."""

    conversation: Conversation
    reply: str


class ReplyMeasures(NamedTuple):
    """What a model finds of a reply, in nats."""

    relevance: float
    surprise: float
    """Per token: how much less likely it is than what the model would have drawn itself. About 0 for a text of the model's
    own, whatever the model; high for words that do not go together (Meister et al. 2023, "Locally Typical Sampling")."""


class RelevanceMeter:
    """Measures replies with a language model, in forward passes without decoding."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._others = [self._prompt_ids([{"role": "user", "content": message}]) for message in OTHER_MESSAGES]
        self.tokens_read = 0

    def measure(self, answers: Sequence[Answer]) -> list[ReplyMeasures | None]:
        """In the order of `answers`; None for an empty reply."""
        rows: list[Row] = []
        places: list[list[int]] = []
        """Per answer, the indices of its rows; the row with its own prompt comes first."""
        for answer in answers:
            reply = self._tokenizer.encode(answer.reply, add_special_tokens=False)[:TOKENS_READ]
            own = self._prompt_ids(answer.conversation)
            prompts = [own, *(other for other in self._others if other != own)] if reply else []
            places.append(list(range(len(rows), len(rows) + len(prompts))))
            rows += [(prompt, reply) for prompt in prompts]
        likelihoods = reply_likelihoods(self._model, rows, self._tokenizer.pad_token_id or 0)
        self.tokens_read += sum(len(prompt) + len(reply) for prompt, reply in rows)
        return [
            _measures([likelihoods[row] for row in of_one], len(rows[of_one[0]][1])) if of_one else None
            for of_one in places
        ]

    def _prompt_ids(self, conversation: Conversation) -> list[int]:
        return conversation_ids(self._tokenizer, conversation, add_generation_prompt=True)[-MAX_PROMPT_TOKENS:]


def _measures(likelihoods: Sequence[Likelihood], tokens: int) -> ReplyMeasures:
    """Of a reply of so many tokens, after its own prompt and then after the other messages."""
    own, *others = likelihoods
    relevance = own.logp - sum(other.logp for other in others) / len(others)
    return ReplyMeasures(relevance, -(own.logp + own.entropy) / tokens)
