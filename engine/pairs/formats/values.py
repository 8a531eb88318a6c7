"""Values of a row, checked once: every text can be encoded, every number is finite, every message has a known role."""

from __future__ import annotations

from math import isfinite
from typing import Any

from engine.models.chat import ChatMessage, Conversation
from engine.pairs.data.hashes import hash_of

Row = dict[str, Any]

LONGEST_NAME = 200
"""Characters of a status or a principle's id: they are counted by name, so that a file must not make them endless."""

ROLES = {
    "user": "user", "human": "user", "prompter": "user", "customer": "user",
    "assistant": "assistant", "model": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "ai": "assistant", "chatbot": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")


def text_in(row: Row, key: str) -> str:
    """Raises KeyError, TypeError, ValueError."""
    value = row[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {kind(value)}, not a text")
    check_text(value, key)
    return value


def check_text(text: str, key: str) -> None:
    """Half a surrogate pair is valid JSON, but nothing that a tokenizer or a file could take."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{key} has half a character (\\u{ord(text[error.start]):04x}) in it") from None


def messages_in(value: Any, key: str) -> Conversation:
    """Messages as they stand, with roles user, assistant and system: `role` and `content` as OpenAI has them (a text or parts
    of text), or `from` and `value` as ShareGPT has them. Raises TypeError, ValueError.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise TypeError(f"{key} is {kind(value)}, not a text and no list of messages")
    return [_message(message, f"{key}[{number}]") for number, message in enumerate(value)]


def _message(message: Any, where: str) -> ChatMessage:
    if not isinstance(message, dict):
        raise TypeError(f"{where} is {kind(message)}, not a message")
    role = next((message[key] for key in _ROLE_KEYS if isinstance(message.get(key), str)), None)
    if role is None:
        raise TypeError(f"{where} has no role")
    if role.casefold() not in ROLES:
        raise ValueError(f"{where} is said by {role[:40]!a}, who is neither user nor assistant nor system")
    content = next((message[key] for key in _CONTENT_KEYS if message.get(key) is not None), None)
    text = _joined(content, where) if isinstance(content, list) else content
    if not isinstance(text, str):
        raise TypeError(f"{where} has no content, or it is no text")
    check_text(text, where)
    return ChatMessage(role=ROLES[role.casefold()], content=text)


def _joined(parts: list[Any], where: str) -> str:
    """OpenAI's content parts: those of text are one text; anything else is not."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind_of_part = part.get("type") if isinstance(part, dict) else kind(part)
            raise TypeError(f"{where} has a part that is no text ({str(kind_of_part)[:40]!a})")
        texts.append(text)
    return "\n".join(texts)


def name_in(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{key} is {kind(value)}, not a text")
    if len(value) > LONGEST_NAME:
        raise ValueError(f"{key} is longer than {LONGEST_NAME} characters")
    check_text(value, key)
    return value


def score_in(row: Row, key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{key} is {kind(value)}, not a number")
    return finite(value, key)


def number_in(value: Any, key: str) -> float:
    """A number, or a text that is one."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise TypeError(f"{key} is a text, not a number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{key} is {kind(value)}, not a number")
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
    """For a row of a file whose ids, if it has any, are not ours: rows with the same id say the same."""
    return f"{hash_of(*[message['content'] for message in messages], *replies):016x}"


def kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
