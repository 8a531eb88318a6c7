"""A conversation as token ids, by the model's own chat template: the one rendering for generation and for training.

What looks like a special token inside a message (`<eos>` in a dataset's text) stays text: it is cut after its first
character, the two halves are tokenised apart, and no half is a special token. A conversation without such text is
tokenised exactly as `apply_chat_template` does it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engine.core.errors import PreconditionError
from engine.models.chat import ChatMessage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIRST_MARK = "\ue000"  # a private-use character: no tokenizer gives it a meaning


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[ChatMessage], *, reply_wanted: bool
) -> list[int]:
    """Token ids of `conversation`; with `reply_wanted`, the model's turn is opened at its end.

    Raises PreconditionError where the template refuses the conversation (a role that it does not know).
    """
    mark = _mark_not_in(conversation)
    inert = [{**message, "content": _cut_special(tokenizer, message["content"], mark)} for message in conversation]
    text = _rendered(tokenizer, inert, reply_wanted)
    return [token for part in text.split(mark) for token in tokenizer.encode(part, add_special_tokens=False)]


def special_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every text that the tokenizer reads as one special token, the longest first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(tokenizer.all_special_tokens), key=lambda text: (-len(text), text))


def contains_special_text(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    return special_pattern(tokenizer).search(text) is not None


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(text) for text in special_texts(tokenizer)) or r"(?!)")


def split_special_text(conversation: Sequence[ChatMessage], special: re.Pattern[str]) -> list[ChatMessage]:
    """The conversation for whom texts alone can be sent: what looks like a special token is parted by a space.

    A server would read it as one, and a dataset's text could end the turn.
    """

    def apart(match: re.Match[str]) -> str:
        return f"{match[0][0]} {match[0][1:]}"

    return [{"role": message["role"], "content": special.sub(apart, message["content"])} for message in conversation]


def _cut_special(tokenizer: PreTrainedTokenizerBase, text: str, mark: str) -> str:
    return special_pattern(tokenizer).sub(lambda match: match[0][0] + mark + match[0][1:], text)


def _mark_not_in(conversation: Sequence[ChatMessage]) -> str:
    mark = _FIRST_MARK
    while any(mark in message["content"] for message in conversation):
        mark += _FIRST_MARK
    return mark


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, object]], reply_wanted: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply_wanted))
    except TemplateError as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise PreconditionError(
            f"The chat template of {tokenizer.name_or_path} refuses a conversation of {roles}.",
            f"It says: {error}",
            "Mend the dataset's conversations: they begin with the user, and the two speakers take turns.",
        ) from error
