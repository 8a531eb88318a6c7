"""Text of messages that a tokenizer would read as a token of the template's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.models.chat import ChatMessage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIRST_MARK = "\ue000"  # a private-use character: no tokenizer gives it a meaning
_BARS = re.compile(r"<[|｜].+[|｜]>")


def control_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every text that is one token and means something to the model, the longest first: special tokens, and added ones that
    the template writes or that are written like `<|name|>`. Gemma's added line breaks and tables are ordinary text.
    """
    template = str(tokenizer.chat_template)
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if _controls(token, template)}
    return sorted(added | set(tokenizer.all_special_tokens), key=lambda text: (-len(text), text))


def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, control_texts(tokenizer))) or r"(?!)")


def cut(text: str, control: re.Pattern[str], mark: str) -> str:
    """`text` with `mark` behind the first character of what would be read as a token."""
    return control.sub(lambda match: match[0][0] + mark + match[0][1:], text)


def mark_not_in(conversation: Sequence[ChatMessage]) -> str:
    """A text that does not occur in any message."""
    mark = _FIRST_MARK
    while any(mark in message["content"] for message in conversation):
        mark += _FIRST_MARK
    return mark


def split_special_text(conversation: Sequence[ChatMessage], control: re.Pattern[str]) -> list[ChatMessage]:
    """The conversation for whom texts alone can be sent: what looks like a token of the template is parted by a space.

    A server would read it as one, and a dataset's text could end the turn.
    """

    def apart(match: re.Match[str]) -> str:
        return f"{match[0][0]} {match[0][1:]}"

    return [{"role": message["role"], "content": control.sub(apart, message["content"])} for message in conversation]


def encode_marked(tokenizer: PreTrainedTokenizerBase, text: str, mark: str) -> list[int]:
    """The ids of `text`, in which each `mark` parts what must not be read as one token."""
    first, *rest = text.split(mark)
    ids: list[int] = tokenizer.encode(first, add_special_tokens=False, verbose=False)
    for part in rest:
        ids += encode_behind(tokenizer, part)
    return ids


def encode_behind(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of text that stands behind other text: without the space that SentencePiece puts before a beginning."""
    line_break: list[int] = tokenizer.encode("\n", add_special_tokens=False)
    ids: list[int] = tokenizer.encode("\n" + text, add_special_tokens=False, verbose=False)
    if ids[: len(line_break)] == line_break:
        return ids[len(line_break) :]
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)  # type: ignore[no-any-return]


def _controls(token: object, template: str) -> bool:
    text = str(token)
    written = text in template or _BARS.fullmatch(text) is not None
    return bool(getattr(token, "special", False)) or (written and not text.isspace())
