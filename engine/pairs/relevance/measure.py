"""Relevance: how much more likely its own prompt makes a reply than unrelated messages do.

    relevance = log p(reply | its prompt) − mean over other messages of log p(reply | that message)        in nats

It estimates the pointwise mutual information of prompt and reply (Li et al. 2016, "A Diversity-Promoting Objective Function
for Neural Conversation Models", section 3) over the reply's first tokens. A text that could follow any message has none,
however well it reads. The sum over tokens works better than the mean: forty generic words must not outvote the three that
name the subject.

The other messages are fixed, so a reply's relevance depends only on the reply, its prompt and the model, and is measured once.
Messages of the set instead would work no better (`bench/RESULTS.md`).
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
"""The unrelated messages: a question and a statement."""
TOKENS_READ = 24
"""How many tokens of a reply are read. Its subject shows early, and reading long replies in full would be slow."""
MAX_PROMPT_TOKENS = 112
"""Only the end of a longer conversation is read."""


@dataclass(frozen=True)
class Answer:
    """A reply and its conversation."""

    conversation: Conversation
    reply: str


class ReplyMeasures(NamedTuple):
    """What a model measures of a reply, in nats."""

    relevance: float
    surprise: float
    """Per token: how much less likely the reply is than what the model would have sampled. About 0 for a model's own text,
    whatever the model; high for words that do not go together (Meister et al. 2023, "Locally Typical Sampling")."""


class RelevanceMeter:
    """Measures replies with a language model, in forward passes without decoding."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._others = [self._prompt_ids([{"role": "user", "content": message}]) for message in OTHER_MESSAGES]
        self.tokens_read = 0

    def measure(self, answers: Sequence[Answer]) -> list[ReplyMeasures | None]:
        """The measures in the order of `answers`; None for an empty reply."""
        rows: list[Row] = []
        row_indices: list[list[int]] = []
        """Per answer, the indices of its rows; the row with the answer's own prompt comes first."""
        for answer in answers:
            reply = self._tokenizer.encode(answer.reply, add_special_tokens=False)[:TOKENS_READ]
            own = self._prompt_ids(answer.conversation)
            prompts = [own, *(other for other in self._others if other != own)] if reply else []
            row_indices.append(list(range(len(rows), len(rows) + len(prompts))))
            rows += [(prompt, reply) for prompt in prompts]
        likelihoods = reply_likelihoods(self._model, rows, self._tokenizer.pad_token_id or 0)
        self.tokens_read += sum(len(prompt) + len(reply) for prompt, reply in rows)
        return [
            _measures([likelihoods[index] for index in indices], len(rows[indices[0]][1])) if indices else None
            for indices in row_indices
        ]

    def _prompt_ids(self, conversation: Conversation) -> list[int]:
        return conversation_ids(self._tokenizer, conversation, add_generation_prompt=True)[-MAX_PROMPT_TOKENS:]


def _measures(likelihoods: Sequence[Likelihood], tokens: int) -> ReplyMeasures:
    """The measures of a reply with this many tokens.

    likelihoods   the reply's likelihood after its own prompt, then after each of the other messages
    """
    own, *others = likelihoods
    relevance = own.logp - sum(other.logp for other in others) / len(others)
    return ReplyMeasures(relevance, -(own.logp + own.entropy) / tokens)
