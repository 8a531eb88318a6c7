"""Reading any pairs file: ours, the notebook's (`prompt, base_response, revised_response`), TRL's (`prompt, chosen, rejected`
as text or as messages, or `chosen` and `rejected` as whole conversations), compressed by gzip or not, or a pipe.

What is read is checked here, once: every text of a `Pair` is a text that can be encoded, every score is finite.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from io import BufferedReader
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, cast

from engine.models.chat import ChatMessage, Conversation
from engine.pairs.data.conversations import conversation_of
from engine.pairs.data.hashes import hash_of
from engine.pairs.data.record import OK, Pair, PairRecord
from engine.storage.jsonl import BadLine, dumps, read_records

GZIP_MAGIC = b"\x1f\x8b"
LONGEST_NAME = 200
"""Characters of a status or a principle's id: they are counted by name, so that a file must not make them endless."""

_ROLES = ("user", "assistant")


def read_pairs(path: Path, *, last_line_may_lack_newline: bool = True) -> Iterator[tuple[int, Pair | BadLine]]:
    """Yield (line from 0, pair or why the line is none) in constant memory. Raises OSError.

    last_line_may_lack_newline   False for a file of our own: what has no newline yet was never acknowledged
    """
    with path.open("rb") as file:
        yield from read_pairs_from(file, last_line_may_lack_newline=last_line_may_lack_newline)


def read_pairs_from(
    file: BufferedReader, *, last_line_may_lack_newline: bool = True
) -> Iterator[tuple[int, Pair | BadLine]]:
    """`read_pairs` of an open file or a pipe."""
    compressed = file.peek(2)[:2] == GZIP_MAGIC
    plain = cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb")) if compressed else file
    for number, row in read_records(plain, last_line_may_lack_newline=last_line_may_lack_newline):
        yield number, row if isinstance(row, BadLine) else pair_of(number, row)


def pair_of(number: int, row: dict[str, Any]) -> Pair | BadLine:
    """The pair of one row, or why it is none."""
    try:
        if "base_response" in row or "revised_response" in row:
            return _notebook_pair(row)
        if "chosen" in row or "rejected" in row:
            return _trl_pair(row)
    except KeyError as error:
        return BadLine(number, f"no pair: the key {error} is missing")
    except (TypeError, ValueError) as error:
        return BadLine(number, f"no pair: {error}")
    return BadLine(number, "no pair: it has neither base_response and revised_response nor chosen and rejected")


def pair_of_record(record: PairRecord) -> Pair:
    """The pair of a record that was just made. Raises ValueError where its texts cannot be a pair's."""
    pair = pair_of(0, json.loads(dumps(record.as_dict())))
    if isinstance(pair, BadLine):
        raise ValueError(pair.reason)
    return pair


# -- ours and the notebook's ------------------------------------------------------------------------------------------


def _notebook_pair(row: dict[str, Any]) -> Pair:
    prompt = _text(row, "prompt")
    base, revised = _text(row, "base_response"), _text(row, "revised_response")
    stored = row.get("messages")
    messages = _conversation(stored, "messages") if stored else [ChatMessage(role="user", content=prompt)]
    chosen = row.get("chosen") or "revised"
    if chosen not in ("revised", "base"):
        raise ValueError('chosen is neither "revised" nor "base"')
    principles = _texts(row, "principle_ids")
    return Pair(
        id=_id(row) or _id_of(messages),
        prompt=prompt,
        messages=messages,
        base_response=base,
        revised_response=revised,
        status=_name(row.get("status") or OK, "status"),
        chosen=chosen,
        critic_notes=_text(row, "critic_notes") if row.get("critic_notes") else "",
        principle_ids=principles,
        made_by=_made_by(row, principles),
        base_score=_score(row, "base_score"),
        revised_score=_score(row, "revised_score"),
        finish=_finish(row.get("finish")),
        method=_name(row.get("method") or "", "method"),
    )


def _made_by(row: dict[str, Any], principles: tuple[str, ...]) -> tuple[str, ...]:
    """Ours say which of the principles made the revision; the notebook made one attempt with all of them."""
    return _texts(row, "made_by") if "made_by" in row else principles


def _texts(row: dict[str, Any], key: str) -> tuple[str, ...]:
    values = row.get(key) or []
    if not isinstance(values, list):
        raise TypeError(f"{key} is {_kind(values)}, not a list")
    return tuple([_name(value, key) for value in values]) if values else ()


def _finish(value: Any) -> dict[str, str]:
    if not value:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TypeError("finish is no object of texts")
    return value


# -- TRL's ------------------------------------------------------------------------------------------------------------


def _trl_pair(row: dict[str, Any]) -> Pair:
    """`chosen` is the revision, `rejected` the draft."""
    own_prompt = row.get("prompt") is not None or row.get("messages") is not None
    asked_chosen, chosen = _reply(row, "chosen", own_prompt)
    asked_rejected, rejected = _reply(row, "rejected", own_prompt)
    if asked_chosen != asked_rejected:
        raise ValueError("chosen and rejected answer different conversations")
    messages = _trl_prompt(row) if own_prompt else asked_chosen
    if not messages:
        raise ValueError("there is no prompt that waits for an answer")
    return Pair(
        id=_id(row) or _id_of(messages),
        prompt=messages[-1]["content"],
        messages=messages,
        base_response=rejected,
        revised_response=chosen,
    )


def _trl_prompt(row: dict[str, Any]) -> Conversation | None:
    key = "messages" if row.get("messages") is not None else "prompt"
    if isinstance(row[key], str):
        _text(row, key)
        return conversation_of({key: row[key]})
    _check_messages(row[key], key)
    return conversation_of({key: row[key]})


def _reply(row: dict[str, Any], key: str, own_prompt: bool) -> tuple[Conversation | None, str]:
    """(the conversation in front of the reply, where there is one; the reply)."""
    value = row[key]
    if isinstance(value, list):
        _check_messages(value, key)
        if not value or value[-1].get("role") not in ("assistant", "model"):
            raise ValueError(f"{key} does not end with the assistant's reply")
        before = conversation_of({"messages": value[:-1]}) if len(value) > 1 else None
        return before, value[-1]["content"]
    text = _text(row, key)
    if own_prompt:
        # Whole, so that the detectors see it where it simulates further turns.
        return None, text.strip()
    _, *replies = text.rpartition("\n\nHuman:")[2].split("\n\nAssistant:")
    if not replies:
        raise ValueError(f"there is no prompt, and {key} is no transcript with the assistant's turn at its end")
    # Turns of one speaker in a row are one turn, as they are in the conversation.
    return conversation_of({"chosen": text}), "\n\n".join(part.strip() for part in replies).strip()


# -- values -----------------------------------------------------------------------------------------------------------


def _conversation(value: Any, key: str) -> Conversation:
    """Messages as they stand, where a chat template takes them so; else put in order as prompts are."""
    _check_messages(value, key)
    roles = [message.get("role") for message in value]
    expected = [_ROLES[turn % 2] for turn in range(len(roles))]
    if roles == expected and roles[-1:] == ["user"]:
        return [ChatMessage(role=message["role"], content=message["content"]) for message in value]
    messages = conversation_of({"messages": value})
    if messages is None:
        raise ValueError(f"{key} has no user's turn that waits for an answer")
    return messages


def _check_messages(value: Any, key: str) -> None:
    if not isinstance(value, list):
        raise TypeError(f"{key} is {_kind(value)}, not a text and no list of messages")
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise TypeError(f"{key}[{number}] is {_kind(message)}, not a message")
        if not isinstance(message.get("role"), str):
            raise TypeError(f"{key}[{number}] has no role")
        if not isinstance(message.get("content"), str):
            raise TypeError(f"{key}[{number}] has no content, or it is no text")
        _check_text(message["content"], f"{key}[{number}]")


def _text(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {_kind(value)}, not a text")
    _check_text(value, key)
    return value


def _check_text(text: str, key: str) -> None:
    """Half a surrogate pair is valid JSON, but nothing that a tokenizer or a file could take."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{key} has half a character (\\u{ord(text[error.start]):04x}) in it") from None


def _id(row: dict[str, Any]) -> str:
    value = row.get("id")
    if value is None or isinstance(value, int):
        return "" if value is None else str(value)
    return _name(value, "id")


def _id_of(messages: Conversation) -> str:
    """For a row of a file that knows no ids."""
    return f"{hash_of(*[message['content'] for message in messages]):016x}"


def _name(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{key} is {_kind(value)}, not a text")
    if len(value) > LONGEST_NAME:
        raise ValueError(f"{key} is longer than {LONGEST_NAME} characters")
    _check_text(value, key)
    return value


def _score(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{key} is {_kind(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not isfinite(number):
        raise ValueError(f"{key} is not a finite number")
    return number


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
