"""A conversation as the template's text: asked with its own switches, in the form of content that it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from engine.models.chat import ChatMessage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Asking:
    """How a template is asked to render."""

    switches: Mapping[str, Any] = field(default_factory=dict)
    """What it is given beside the messages: `enable_thinking=False`."""
    as_parts: bool = False
    """Whether a message's content is a list of parts (idefics3), not a text."""
    folds_system: bool = False
    """Whether a system message stands in the first user turn: the template refuses or ignores one of its own."""


_ASKS_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_DATES: WeakKeyDictionary[PreTrainedTokenizerBase, date] = WeakKeyDictionary()


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    return "strftime_now" in str(tokenizer.chat_template)


def fix_date(tokenizer: PreTrainedTokenizerBase, day: date) -> None:
    """Render with `day` as today from now on. Six published templates write the date: a run that goes on past midnight would
    have another prompt in front of each reply.
    """
    _DATES[tokenizer] = day


class TemplateRefusal(Exception):
    """The template raised an error of its own."""


def render(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[ChatMessage], asking: Asking, *, reply_wanted: bool
) -> str:
    """The text of `conversation`; with `reply_wanted`, the model's turn is opened at its end. Raises TemplateRefusal."""
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                as_asked(conversation, asking),
                tokenize=False,
                add_generation_prompt=reply_wanted,
                **asking.switches,
                **_with_the_date(tokenizer),
            )
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:  # what a template can raise
        raise TemplateRefusal(str(error) or type(error).__name__) from error


def _with_the_date(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The template with the date written in; as an argument transformers takes texts and numbers only, and no function."""
    day = _DATES.get(tokenizer)
    if day is None:
        return {}
    return {"chat_template": _ASKS_DATE.sub(lambda asked: repr(day.strftime(asked[2])), tokenizer.get_chat_template())}


def as_asked(conversation: Sequence[ChatMessage], asking: Asking) -> list[dict[str, Any]]:
    """The messages in the form that the template reads."""
    messages = with_system_folded(conversation, keep_first=not asking.folds_system)
    if not asking.as_parts:
        return [dict(message) for message in messages]
    return [
        {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]} for message in messages
    ]


def with_system_folded(conversation: Sequence[ChatMessage], *, keep_first: bool) -> list[ChatMessage]:
    """System messages in front of the text of the user turn behind them; `keep_first`: but one that begins the conversation.

    One with no user turn behind it stays, for the template to refuse.
    """
    messages: list[ChatMessage] = []
    waiting: list[ChatMessage] = []
    for place, message in enumerate(conversation):
        if message["role"] == "system" and not (keep_first and place == 0):
            waiting.append(message)
        elif message["role"] == "user" and waiting:
            text = "\n\n".join(said["content"] for said in [*waiting, message])
            messages.append({"role": "user", "content": text})
            waiting = []
        else:
            messages.append(message)
    return [*waiting, *messages]
