"""Parses conversations that a chat template already rendered to text: ChatML, Llama 2 and 3, Gemma, Zephyr and Phi.

If they were trained as they are, the model would see one template inside another.
"""

from __future__ import annotations

import re

from engine.models.chat import Conversation
from engine.pairs.data.conversations import add_turn

_NAME = r"(system|user|human|assistant|model)"
_OPENS = re.compile(
    rf"<\|im_start\|>{_NAME}\n|<\|start_header_id\|>{_NAME}<\|end_header_id\|>|<start_of_turn>{_NAME}\n"
    r"|<\|(system|user|assistant)\|>"
)
_BEGINS = re.compile(rf"(?:(?:<s>|<bos>|<\|begin_of_text\|>)\s*)?(?:{_OPENS.pattern}|\[INST\])")
_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "</s>", "<eos>")
_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>\s*", re.DOTALL)


def rendered_turns(text: str) -> Conversation | None:
    """The turns of a text that begins with a template's mark; system turns become the user's. None for any other text."""
    if not _BEGINS.match(text.lstrip()):
        return None
    turns: Conversation = []
    for role, content in _marked_turns(text) or _llama2_turns(text):
        add_turn(turns, role, without_end_marks(content).strip())
    return turns or None


def without_end_marks(reply: str) -> str:
    """A reply without the end marks of a template: the model's own template adds its own."""
    end = len(reply.rstrip())
    if not reply.endswith(_ENDS, 0, end):
        return reply
    while mark := next((mark for mark in _ENDS if reply.endswith(mark, 0, end)), ""):
        end -= len(mark)
        while end and reply[end - 1].isspace():
            end -= 1
    return reply[:end]


def _marked_turns(text: str) -> list[tuple[str, str]]:
    found = list(_OPENS.finditer(text))
    return [
        (
            "assistant" if turn[turn.lastindex or 0] in ("assistant", "model") else "user",
            text[turn.end() : following.start() if following else len(text)],
        )
        for turn, following in zip(found, [*found[1:], None], strict=False)
    ]


def _llama2_turns(text: str) -> list[tuple[str, str]]:
    turns: list[tuple[str, str]] = []
    for part in text.split("[INST]")[1:]:
        prompt, closed, reply = part.partition("[/INST]")
        system = _SYSTEM.match(prompt)
        turns.append(("user", f"{system[1].strip()}\n\n{prompt[system.end() :]}" if system else prompt))
        if closed:
            turns.append(("assistant", reply.strip().removesuffix("<s>")))
    return turns
