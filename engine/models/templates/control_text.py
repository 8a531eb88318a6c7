"""Message text that a tokenizer would read as a control token of the template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.models.chat import ChatMessage
from engine.models.templates.rendering import own_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIRST_MARK = "\ue000"  # a private-use character: no tokenizer gives it a meaning
_BARS = re.compile(r"<[|｜].+[|｜]>")


def control_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of all control tokens, longest first: special tokens, and added tokens that the template writes or that look like
    `<|name|>`. Gemma's added line breaks and tables are ordinary text.
    """
    template = own_template(tokenizer)
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if _controls(token, template)}
    return sorted(added | set(tokenizer.all_special_tokens), key=lambda text: (-len(text), text))


def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, control_texts(tokenizer))) or r"(?!)")


def break_control_text(text: str, control: re.Pattern[str], mark: str) -> str:
    """Insert `mark` after the first character of everything that would be read as a control token."""
    return control.sub(lambda match: match[0][0] + mark + match[0][1:], text)


def unused_mark(conversation: Sequence[ChatMessage]) -> str:
    """A mark that occurs in none of the messages."""
    mark = _FIRST_MARK
    while any(mark in message["content"] for message in conversation):
        mark += _FIRST_MARK
    return mark


def split_special_text(conversation: Sequence[ChatMessage], control: re.Pattern[str]) -> list[ChatMessage]:
    """The conversation for a server that accepts only text, with a space inside everything that looks like a control token.

    Otherwise the server would read it as one, and text from a dataset could end the turn.
    """

    def split_match(match: re.Match[str]) -> str:
        return f"{match[0][0]} {match[0][1:]}"

    return [
        {"role": message["role"], "content": control.sub(split_match, message["content"])} for message in conversation
    ]


def encode_marked(tokenizer: PreTrainedTokenizerBase, text: str, mark: str) -> list[int]:
    """The ids of `text`. Each `mark` is removed, and no token spans the place where it was."""
    first, *rest = text.split(mark)
    ids: list[int] = tokenizer.encode(first, add_special_tokens=False, verbose=False)
    for part in rest:
        ids += encode_continuation(tokenizer, part)
    return ids


def encode_continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of `text` as a continuation, without the space that SentencePiece adds at the start."""
    line_break: list[int] = tokenizer.encode("\n", add_special_tokens=False)
    ids: list[int] = tokenizer.encode("\n" + text, add_special_tokens=False, verbose=False)
    if ids[: len(line_break)] == line_break:
        return ids[len(line_break) :]
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)  # type: ignore[no-any-return]


def _controls(token: object, template: str) -> bool:
    text = str(token)
    written = text in template or _BARS.fullmatch(text) is not None
    return bool(getattr(token, "special", False)) or (written and not text.isspace())
