"""Checks the values of a row: strings can be encoded, numbers are finite, messages have a known role."""

from __future__ import annotations

import re
from math import isfinite
from typing import Any

from engine.models.chat import ChatMessage, Conversation
from engine.pairs.data.hashes import hash_of

Row = dict[str, Any]

MAX_NAME_CHARACTERS = 200
"""Limit for a status or a principle's id. They are counted by name, so a file must not make them long."""

ROLES = {
    "user": "user", "human": "user", "prompter": "user", "customer": "user",
    "assistant": "assistant", "model": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "ai": "assistant", "chatbot": "assistant", "bing": "assistant", "bard": "assistant", "claude": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
NAMES_OF_ROLES = frozenset(("role", "from", "sender"))
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from", "sender"), ("content", "value", "text")


def text_in(row: Row, key: str) -> str:
    """Raises KeyError, TypeError, ValueError."""
    value = row[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {type_name(value)}, not a string")
    check_text(value, key)
    return value


def check_text(text: str, key: str) -> None:
    """Raises ValueError for a lone surrogate: valid in JSON, but no tokenizer or file accepts it."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{key} contains a lone surrogate (\\u{ord(text[error.start]):04x})") from None


def refuse_pictures(row: Row) -> None:
    """Raises ValueError for a row with images, audio or video: its texts are about something the model does not get."""
    found = next((name for name in ("images", "image", "videos", "video", "audios", "audio") if row.get(name)), None)
    if found is not None:
        raise ValueError(f"it belongs to an image, audio or video, in its column {found}")


def messages_in(value: Any, key: str) -> Conversation:
    """Messages with roles user, assistant and system: OpenAI's `role` and `content` (a string or text parts), or ShareGPT's
    `from` and `value`. Raises TypeError, ValueError.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise TypeError(f"{key} is {type_name(value)}, not a string or a list of messages")
    return [_message(message, f"{key}[{number}]") for number, message in enumerate(_in_turns(value))]


def _in_turns(messages: list[Any]) -> list[Any]:
    """Capybara's objects with `input` and `output` hold two turns each."""
    if not all(isinstance(each, dict) and {"input", "output"} <= each.keys() for each in messages):
        return messages
    turns = (("user", "input"), ("assistant", "output"))
    return [{"role": role, "content": each[key]} for each in messages for role, key in turns]


def _message(message: Any, where: str) -> ChatMessage:
    if not isinstance(message, dict):
        raise TypeError(f"{where} is {type_name(message)}, not a message")
    role = next((message[key] for key in _ROLE_KEYS if isinstance(message.get(key), str)), None)
    if role is None:
        raise TypeError(f"{where} has no role")
    if role.casefold() not in ROLES:
        raise ValueError(f"{where} has the unknown role {role[:40]!a}")
    content = next((message[key] for key in _CONTENT_KEYS if message.get(key) is not None), None)
    text = _joined(content, where) if isinstance(content, list) else content
    if not isinstance(text, str):
        raise TypeError(f"{where} has no text content")
    check_text(text, where)
    return ChatMessage(role=ROLES[role.casefold()], content=text)


def _joined(parts: list[Any], where: str) -> str:
    """Join OpenAI's text parts. Raises TypeError for any other part."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind_of_part = part.get("type") if isinstance(part, dict) else type_name(part)
            raise TypeError(f"{where} has a part that is not text ({str(kind_of_part)[:40]!a})")
        texts.append(text)
    return "\n".join(texts)


def name_in(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{key} is {type_name(value)}, not a string")
    if len(value) > MAX_NAME_CHARACTERS:
        raise ValueError(f"{key} is longer than {MAX_NAME_CHARACTERS} characters")
    check_text(value, key)
    return value


def score_in(row: Row, key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{key} is {type_name(value)}, not a number")
    return finite(value, key)


_DECIMAL_COMMA = re.compile(r"^(\s*[-+]?\d+),(\d{1,2}\s*)$")
"""Three digits after a comma may be thousands."""


def number_in(value: Any, key: str) -> float:
    """A number, or a string that holds one; with a decimal comma, too (`8,5`)."""
    if isinstance(value, str):
        try:
            value = float(_DECIMAL_COMMA.sub(r"\1.\2", value))
        except ValueError:
            raise TypeError(f"{key} is a string, not a number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{key} is {type_name(value)}, not a number")
    return finite(value, key)


def finite(value: float, key: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not isfinite(number):
        raise ValueError(f"{key} is not a finite number")
    return number


def id_of(messages: Conversation, *replies: str) -> str:
    """An id made from the content, for files without ids of ours: equal ids mean equal rows."""
    return f"{hash_of(*[message['content'] for message in messages], *replies):016x}"


def type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null", bytes: "bytes"}
    return names.get(type(value), "a number")
