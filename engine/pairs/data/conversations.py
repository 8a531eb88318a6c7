"""Builds conversations that a chat template accepts: user and assistant alternate, the user first."""

from __future__ import annotations

import re

from engine.models.chat import ChatMessage, Conversation

TURN = re.compile(r"\n\n(Human|Assistant):")
_OTHER_TURN = re.compile(r"\s*###\s*(Human|User|Instruction|Assistant|Response):")
_ASSISTANT = ("Assistant", "Response")


def transcript_turns(text: str) -> Conversation:
    r"""The turns of an hh-rlhf transcript (`\n\nHuman: … \n\nAssistant: …`) or `### Human: … ### Assistant: …`.

    Consecutive turns of one speaker are joined, because chat templates require that speakers alternate."""
    parts = TURN.split(hh_transcript(text))
    turns: Conversation = []
    for speaker, text in zip(parts[1::2], parts[2::2], strict=True):
        add_turn(turns, "user" if speaker == "Human" else "assistant", text.strip())
    return turns


def hh_transcript(text: str) -> str:
    """A transcript of either form in hh-rlhf's form; other text is only prefixed with two newlines."""
    if _OTHER_TURN.match(text):
        text = _OTHER_TURN.sub(lambda found: f"\n\n{'Assistant' if found[1] in _ASSISTANT else 'Human'}:", text)
    return "\n\n" + text.lstrip()


def is_transcript(text: str) -> bool:
    return bool(TURN.search(text)) or text.lstrip().startswith(
        ("Human:", "### Human:", "### User:", "### Instruction:")
    )


def add_turn(turns: Conversation, role: str, text: str) -> None:
    if not turns and role == "assistant":
        return  # a conversation starts with the user
    if turns and turns[-1]["role"] == role:
        turns[-1] = ChatMessage(role=role, content=f"{turns[-1]['content']}\n\n{text}".strip())
    else:
        turns.append(ChatMessage(role=role, content=text))


def _has_visible_text(text: str) -> bool:
    """Whether anything is visible: zero-width characters alone are not a prompt."""
    return any(character.isprintable() and not character.isspace() for character in text)


def before_the_answer(turns: Conversation) -> Conversation:
    """The conversation before the last assistant turn. Raises ValueError if nothing is left."""
    if turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    if not turns or not _has_visible_text(turns[-1]["content"]):
        raise ValueError("no user turn is waiting for an answer")
    return turns
