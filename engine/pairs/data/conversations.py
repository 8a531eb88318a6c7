"""Dataset rows to conversations: `messages`, `prompt`, or hh-rlhf's transcripts."""

from __future__ import annotations

import re
from typing import Any

from engine.models.chat import ChatMessage, Conversation

_TURN = re.compile(r"\n\n(Human|Assistant):")


def conversation_of(row: dict[str, Any]) -> Conversation | None:
    """The conversation before the last assistant turn of a row; None where there is none.

    Reads `messages` (list of role and content), `prompt` (text or messages), or hh-rlhf's `chosen`.
    """
    if isinstance(row.get("messages"), list):
        return _before_the_answer(_messages(row["messages"]))
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        return _before_the_answer(_messages(prompt))
    if isinstance(prompt, str):
        return _before_the_answer(_turns(prompt)) if _TURN.search(prompt) else _asked(prompt)
    if isinstance(row.get("chosen"), str):
        return _before_the_answer(_turns(row["chosen"]))
    return None


def _asked(text: str) -> Conversation | None:
    return [{"role": "user", "content": text.strip()}] if text.strip() else None


def _turns(transcript: str) -> Conversation:
    r"""hh-rlhf: `\n\nHuman: … \n\nAssistant: …`, alternating. Turns of one speaker in a row are joined: chat templates
    demand that they alternate."""
    parts = _TURN.split("\n\n" + transcript.lstrip())
    turns: Conversation = []
    for speaker, text in zip(parts[1::2], parts[2::2], strict=True):
        _add(turns, "user" if speaker == "Human" else "assistant", text.strip())
    return turns


def _messages(entries: list[Any]) -> Conversation:
    turns: Conversation = []
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("content"), str):
            # Gemma's template refuses a system turn: what it says goes in front of the user's.
            role = "assistant" if entry.get("role") in ("assistant", "model") else "user"
            _add(turns, role, entry["content"].strip())
    return turns


def _add(turns: Conversation, role: str, text: str) -> None:
    if not turns and role == "assistant":
        return  # a conversation begins with the user
    if turns and turns[-1]["role"] == role:
        turns[-1] = ChatMessage(role=role, content=f"{turns[-1]['content']}\n\n{text}".strip())
    else:
        turns.append(ChatMessage(role=role, content=text))


def _before_the_answer(turns: Conversation) -> Conversation | None:
    if turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    return turns if turns and turns[-1]["content"] else None
