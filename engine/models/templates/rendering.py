"""Render a conversation to text, with the template's own arguments and content format."""

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
class RenderOptions:
    """How to call a template."""

    switches: Mapping[str, Any] = field(default_factory=dict)
    """Extra arguments, such as `enable_thinking=False`."""
    as_parts: bool = False
    """Whether the content of a message is a list of parts (idefics3) rather than a string."""
    folds_system: bool = False
    """Whether system messages go into the first user turn, because the template refuses or ignores them."""


_DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_DATES: WeakKeyDictionary[PreTrainedTokenizerBase, date] = WeakKeyDictionary()


def own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template in use: `default` if there are several by name (Command R has another one for tools)."""
    given: Any = tokenizer.chat_template
    return str(given.get("default", given) if isinstance(given, dict) else given)


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    return "strftime_now" in own_template(tokenizer)


def fix_date(tokenizer: PreTrainedTokenizerBase, day: date) -> None:
    """Render with `day` as today's date from now on. Six published templates write the date, so without this the prompts of a run
    would change at midnight.
    """
    _DATES[tokenizer] = day


class TemplateRefusal(Exception):
    """Raised if the template raises any error."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[ChatMessage],
    options: RenderOptions,
    *,
    add_generation_prompt: bool,
) -> str:
    """The text of `conversation`. `add_generation_prompt` opens the model's turn at the end. Raises TemplateRefusal."""
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                template_messages(conversation, options),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **options.switches,
                **_with_the_date(tokenizer),
            )
        )
    except (
        TemplateError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        MemoryError,
    ) as error:  # everything a template can raise
        raise TemplateRefusal(str(error) or type(error).__name__) from error


def _with_the_date(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The template with the date filled in, as an argument. transformers does not accept functions as template arguments."""
    day = _DATES.get(tokenizer)
    if day is None:
        return {}
    return {"chat_template": _DATE_CALL.sub(lambda call: repr(day.strftime(call[2])), tokenizer.get_chat_template())}


def template_messages(conversation: Sequence[ChatMessage], options: RenderOptions) -> list[dict[str, Any]]:
    """The messages in the template's content format."""
    messages = with_system_folded(conversation, keep_first=not options.folds_system)
    if not options.as_parts:
        return [dict(message) for message in messages]
    return [
        {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]} for message in messages
    ]


def with_system_folded(conversation: Sequence[ChatMessage], *, keep_first: bool) -> list[ChatMessage]:
    """Move system messages into the user turn that follows; with `keep_first`, one at the start of the conversation stays.

    A system message without a following user turn is kept, so that the template refuses it.
    """
    messages: list[ChatMessage] = []
    pending: list[ChatMessage] = []
    for index, message in enumerate(conversation):
        if message["role"] == "system" and not (keep_first and index == 0):
            pending.append(message)
        elif message["role"] == "user" and pending:
            text = "\n\n".join(part["content"] for part in [*pending, message])
            messages.append({"role": "user", "content": text})
            pending = []
        else:
            messages.append(message)
    return [*pending, *messages]
