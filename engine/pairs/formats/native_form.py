"""The form of our own `pairs.jsonl` and the notebook's: `prompt`, `base_response`, `revised_response` and more."""

from __future__ import annotations

import json
from typing import Any

from engine.models.chat import ChatMessage, Conversation
from engine.pairs.data.conversations import add_turn, before_the_answer
from engine.pairs.data.record import OK, Pair, PairRecord
from engine.pairs.formats.values import Row, id_of, messages_in, name_in, score_in, text_in, type_name
from engine.storage.jsonl import dumps

_ROLES = ("user", "assistant")


def native_pair(row: Row) -> Pair:
    """Raises KeyError, TypeError, ValueError."""
    prompt = text_in(row, "prompt")
    base, revised = text_in(row, "base_response"), text_in(row, "revised_response")
    stored = row.get("messages")
    messages = _conversation(stored, "messages") if stored else [ChatMessage(role="user", content=prompt)]
    chosen = row.get("chosen") or "revised"
    if chosen not in ("revised", "base"):
        raise ValueError('chosen must be "revised" or "base"')
    principles = _names(row, "principle_ids")
    return Pair(
        id=_id(row) or id_of(messages),
        prompt=prompt,
        messages=messages,
        base_response=base,
        revised_response=revised,
        status=name_in(row.get("status") or OK, "status"),
        chosen=chosen,
        critic_notes=text_in(row, "critic_notes") if row.get("critic_notes") else "",
        principle_ids=principles,
        made_by=_made_by(row, principles),
        base_score=score_in(row, "base_score"),
        revised_score=score_in(row, "revised_score"),
        finish=_finish(row.get("finish")),
        method=name_in(row.get("method") or "", "method"),
    )


def pair_of_record(record: PairRecord) -> Pair:
    """The pair of a newly generated record."""
    return native_pair(json.loads(dumps(record.as_dict())))


def _made_by(row: Row, principles: tuple[str, ...]) -> tuple[str, ...]:
    """Our records name the principles that made the revision; the notebook made one attempt with all of them."""
    return _names(row, "made_by") if "made_by" in row else principles


def _names(row: Row, key: str) -> tuple[str, ...]:
    values = row.get(key) or []
    if not isinstance(values, list):
        raise TypeError(f"{key} is {type_name(values)}, not a list")
    return tuple([name_in(value, key) for value in values]) if values else ()


def _finish(value: Any) -> dict[str, str]:
    if not value:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TypeError("finish is not an object of strings")
    return value


def _id(row: Row) -> str:
    value = row.get("id")
    if value is None or isinstance(value, int):
        return "" if value is None else str(value)
    return name_in(value, "id")


def _conversation(value: Any, key: str) -> Conversation:
    """The messages unchanged if a chat template accepts them, else normalised like those of prompts."""
    if not isinstance(value, list):
        raise TypeError(f"{key} is {type_name(value)}, not a string or a list of messages")
    messages = messages_in(value, key)
    roles = [message["role"] for message in messages]
    if roles == [_ROLES[turn % 2] for turn in range(len(roles))] and roles[-1:] == ["user"]:
        return messages
    turns: Conversation = []
    for message in messages:
        add_turn(turns, "assistant" if message["role"] == "assistant" else "user", message["content"].strip())
    try:
        return before_the_answer(turns)
    except ValueError:
        raise ValueError(f"{key} has no user turn waiting for an answer") from None
