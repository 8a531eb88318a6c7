"""--judge reward-model: a sequence classifier with one output scores a reply to a conversation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.core.config import Stage3Config
from engine.core.errors import NumbersError, PreconditionError
from engine.hub.references import is_local, local_path
from engine.machine.device import resolve_device
from engine.machine.error_mapping import as_stage3_error
from engine.models.chat import Conversation
from engine.models.chat_template import conversation_ids
from engine.models.oversized import refuse_oversized_model
from engine.models.templates.rendering import own_template
from engine.models.templates.termination import require_termination
from engine.models.tokenizer_probe import probe_tokenizer
from engine.pairs.judges.base import Comparison, ScorePair, judge_name, too_long
from engine.pairs.judges.question import dialogue
from engine.run.stop import StopToken

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REMEDY = "Set another model with --reward-model-id, or use --judge self, server or none."
NO_LIMIT = 1 << 62
"""Above any real limit; tokenizers without one report 10^30."""


def load_reward_model(config: Stage3Config, token: str | None, stop: StopToken) -> RewardModelJudge:
    """Load `--reward-model-id`: safetensors only, no remote code, in its stored number format.

    Raises PreconditionError if the model cannot be loaded, lacks weights (they would be random) or has several outputs.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    name = str(local_path(config.reward_model_id)) if is_local(config.reward_model_id) else config.reward_model_id
    arguments: dict[str, Any] = {"trust_remote_code": False}
    if not is_local(config.reward_model_id):
        arguments["token"] = token
    probe_tokenizer(name, None, token, "--reward-model-id", stop)
    try:
        refuse_oversized_model(name, "--reward-model-id", **arguments)
        tokenizer = AutoTokenizer.from_pretrained(name, **arguments)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name, use_safetensors=True, dtype="auto", output_loading_info=True, **arguments
        )
    except Exception as error:  # the loader may raise anything for a foreign file; it is always reported
        known = as_stage3_error(error)
        if known is not None:
            raise known from error
        raise PreconditionError(
            f"Cannot load the reward model {config.reward_model_id}.",
            f"{type(error).__name__}: {error}",
            REMEDY,
        ) from error
    if tokenizer.chat_template is not None:
        require_termination(own_template(tokenizer), name)
    missing = sorted(loading["missing_keys"])
    if missing:
        raise PreconditionError(
            f"The reward model {config.reward_model_id} lacks {len(missing)} of its weights ({missing[0]}).",
            "They would be random, and so would every score. It is not a trained classifier.",
            REMEDY,
        )
    return RewardModelJudge(judge_name(config) or "", model.to(resolve_device(config)).eval(), tokenizer)


class RewardModelJudge:
    """Formats its input as in the model's training: with the tokenizer's chat template if there is one, else as the pair
    (question, answer) of OpenAssistant's models, with several turns written as in hh-rlhf.
    """

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if model.config.num_labels != 1:
            raise PreconditionError(
                f"The {name} has {model.config.num_labels} outputs, not one.",
                'Nothing tells which of them means "good".',
                REMEDY,
            )
        self.name = name
        self.about = "a reward model; one score per reply, without a unit"
        self._model = model
        self._tokenizer = tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:  # decoders take the score at the last token that is not padding
            model.config.pad_token_id = tokenizer.pad_token_id
        limits = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
        self._max_tokens = min((int(limit) for limit in limits if limit is not None and limit > 0), default=NO_LIMIT)

    def score(self, comparisons: Sequence[Comparison]) -> list[ScorePair]:
        encoded = [
            (self._encoded(c.conversation, c.first), self._encoded(c.conversation, c.second)) for c in comparisons
        ]
        longest = [max(len(row["input_ids"]) for row in both) for both in encoded]
        fitting = [number for number, tokens in enumerate(longest) if tokens <= self._max_tokens]
        rewards = self._rewards([row for number in fitting for row in encoded[number]])
        scores = {number: (rewards[2 * i], rewards[2 * i + 1]) for i, number in enumerate(fitting)}
        for number, both in scores.items():
            if not all(map(math.isfinite, both)):
                raise NumbersError(
                    f"The {self.name} gives the replies of the pair {comparisons[number].id} the scores {both}.",
                    "A score that is not a finite number decides nothing, and hides that the model is broken.",
                    REMEDY,
                )
        return [
            ScorePair(*scores[number]) if number in scores else too_long(tokens, self._max_tokens)
            for number, tokens in enumerate(longest)
        ]

    def _encoded(self, conversation: Conversation, reply: str) -> dict[str, list[int]]:
        """Input ids that are never truncated. Input that is too long for the model is counted and gets no score."""
        if self._tokenizer.chat_template is not None:
            with_reply: Conversation = [*conversation, {"role": "assistant", "content": reply}]
            return {"input_ids": conversation_ids(self._tokenizer, with_reply, add_generation_prompt=False)}
        question = conversation[0]["content"] if len(conversation) == 1 else dialogue(conversation)
        return dict(self._tokenizer(question, reply, truncation=False, verbose=False))

    def _rewards(self, rows: list[dict[str, list[int]]]) -> list[float]:
        import torch

        if not rows:
            return []
        batch = self._tokenizer.pad(rows, padding=True, padding_side="right", return_tensors="pt").to(
            self._model.device
        )
        with torch.inference_mode():
            logits = self._model(**batch).logits  # (B, 1)
        return [float(reward) for reward in logits[:, 0].float().tolist()]
