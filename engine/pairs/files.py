"""Reading any pairs file: ours, the notebook's (`prompt, base_response, revised_response`), TRL's (`prompt, chosen, rejected`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.jsonl import BadLine
from engine.models.chat import Conversation
from engine.pairs.prompts import conversation_of, prompt_id, read_rows
from engine.pairs.record import OK, Pair


def read_pairs(path: Path) -> Iterator[tuple[int, Pair | BadLine]]:
    """Yield (line from 0, pair or why the line is none) in constant memory."""
    for number, row in read_rows(path):
        yield number, row if isinstance(row, BadLine) else pair_of(number, row)


def pair_of(number: int, row: dict[str, Any]) -> Pair | BadLine:
    try:
        return _notebook_pair(row) if "base_response" in row else _trl_pair(row)
    except (KeyError, TypeError, ValueError) as error:
        return BadLine(number, f"no pair: {_said(error)}")


def _notebook_pair(row: dict[str, Any]) -> Pair:
    prompt = _text(row, "prompt")
    messages: Conversation = row.get("messages") or [{"role": "user", "content": prompt}]
    return Pair(
        id=str(row.get("id") or prompt_id(messages, "")),
        prompt=prompt,
        messages=messages,
        base_response=_text(row, "base_response"),
        revised_response=_text(row, "revised_response"),
        status=str(row.get("status") or OK),
        chosen=str(row.get("chosen") or "revised"),
        critic_notes=str(row.get("critic_notes") or ""),
        principle_ids=tuple(str(principle) for principle in row.get("principle_ids") or ()),
        base_score=_score(row, "base_score"),
        revised_score=_score(row, "revised_score"),
        finish=dict(row.get("finish") or {}),
    )


def _trl_pair(row: dict[str, Any]) -> Pair:
    """TRL's preference format, as text or as messages; `chosen` is the revision, `rejected` the draft."""
    chosen, rejected = _last_reply(row, "chosen"), _last_reply(row, "rejected")
    messages = conversation_of(row)
    if messages is None:
        raise ValueError("there is no prompt in it")
    return Pair(
        id=str(row.get("id") or prompt_id(messages, "")),
        prompt=messages[-1]["content"],
        messages=messages,
        base_response=rejected,
        revised_response=chosen,
    )


def _last_reply(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if isinstance(value, list):
        value = value[-1]["content"]
    if not isinstance(value, str):
        raise TypeError(f"{key} is no text")
    return value.rsplit("\n\nAssistant:", 1)[-1].strip()


def _text(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is a {type(value).__name__}, not a text")
    return value


def _score(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise TypeError(f"{key} is a {type(value).__name__}, not a number")
    return None if value is None else float(value)


def _said(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
