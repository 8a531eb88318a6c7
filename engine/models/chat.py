"""A conversation in the format of chat templates."""

from __future__ import annotations

from typing import TypedDict


class ChatMessage(TypedDict):
    role: str
    """`user` or `assistant`; Gemma's template has no `system`."""
    content: str


Conversation = list[ChatMessage]
