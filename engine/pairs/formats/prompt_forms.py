"""The forms of prompts: each turns a row into a conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.models.chat import Conversation
from engine.pairs.data.conversations import add_turn, before_the_answer, is_transcript, transcript_turns
from engine.pairs.data.rendered import rendered_turns
from engine.pairs.formats.form import Form, first_column
from engine.pairs.formats.nested_values import unwrapped
from engine.pairs.formats.values import ROLES, Row, check_text, messages_in, type_name

NO_PROMPT = "no user turn is waiting for an answer"
SYSTEM = ("system", "system_prompt")

MESSAGES = ("messages", "conversation", "dialogue", "dialog", "chat")
SHAREGPT = ("conversations",)
PROMPT = ("prompt", "prompts")
QUESTION = (
    "question.full_text", "question", "query", "goal", "behavior", "user_input", "request", "user", "human", "inputs",
)  # fmt: skip
POST = ("history", "context", "post", "info.post")
TEXT = ("text", "content")


def turns_of(value: Any, key: str) -> Conversation:
    """Turns of a value: a string is the user's turn or a transcript, a list is messages. A system message is prepended
    to the user's turn, because Gemma's template has no system role.
    """
    value = unwrapped(value, key)
    turns: Conversation = []
    if isinstance(value, str):
        check_text(value, key)
        if is_transcript(value):
            return transcript_turns(value)
        rendered = rendered_turns(value)
        if rendered is not None:
            return rendered
        add_turn(turns, "user", value.strip())
        return turns
    if not isinstance(value, (list, dict)):
        raise TypeError(f"{key} is {type_name(value)}, not a string or a list of messages")
    messages = messages_in(_with_roles(value, key), key)
    if messages and all(message["role"] == "system" for message in messages):
        raise ValueError(f"{key} has only a system turn, without a prompt from a user")
    for message in messages:
        add_turn(turns, "assistant" if message["role"] == "assistant" else "user", message["content"].strip())
    return turns


def _with_roles(value: Any, key: str) -> Any:
    """The texts of a conversation (LIMA) as messages, starting with the user. Raises TypeError for several prompts in one row."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        return value
    if key not in (*MESSAGES, *SHAREGPT):
        raise TypeError(f"{key} is a list of {len(value)} texts, not one text or a list of messages")
    return [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(value)]


def with_system(row: Row, turns: Conversation) -> Conversation:
    """Prepend the text of a system column to the user's first turn."""
    system = next((text for name in SYSTEM if isinstance(text := row.get(name), str) and text.strip()), "")
    if not system or not turns:
        return turns
    check_text(system, "system")
    return [{"role": "user", "content": f"{system.strip()}\n\n{turns[0]['content']}"}, *turns[1:]]


def _of(names: tuple[str, ...]) -> Callable[[Row], Conversation]:
    def read(row: Row) -> Conversation:
        key, value = first_column(row, names)
        return with_system(row, before_the_answer(turns_of(value, key)))

    return read


def _alpaca(row: Row) -> Conversation:
    """`instruction` followed by `input`, or Dolly's `context`, after the earlier turns in `history`."""
    turns: Conversation = []
    history = row.get("history")
    for pair in history if isinstance(history, list) else ():
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
            add_turn(turns, "user", pair[0].strip())
            add_turn(turns, "assistant", pair[1].strip())
    key, instruction = first_column(row, ALPACA)
    prompt, more = turns_of(instruction, key), row.get("input") or row.get("context")
    if isinstance(more, str) and more.strip() and prompt and more.strip() != prompt[-1]["content"]:
        check_text(more, "input")
        prompt[-1] = {"role": prompt[-1]["role"], "content": f"{prompt[-1]['content']}\n\n{more.strip()}".strip()}
    for turn in prompt:
        add_turn(turns, turn["role"], turn["content"])
    return with_system(row, before_the_answer(turns))


ALPACA = ("instruction",)


def _first_turn(row: Row) -> Conversation:
    """A list of consecutive questions, of which the first is read."""
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        raise TypeError(f"turns is {type_name(turns)}, not a list of texts")
    if isinstance(unwrapped(turns[0], "turns[0]"), dict):
        return with_system(row, before_the_answer(turns_of(turns, "turns")))
    return with_system(row, before_the_answer(turns_of(turns[0], "turns[0]")))


def _text(row: Row) -> Conversation:
    """A text. OpenAssistant's rows also name its role."""
    role = row.get("role")
    if isinstance(role, str) and ROLES.get(role.casefold()) == "assistant":
        raise ValueError("it is a reply, not a prompt: its role is assistant")
    return _of(TEXT)(row)


def _transcript(row: Row) -> Conversation:
    key, value = first_column(row, ("transcript", "chosen", "rejected"))
    turns = turns_of(value, key)
    if isinstance(value, str) and not is_transcript(value):
        raise ValueError(f"{key} is not a transcript: it has neither Human: nor Assistant:")
    return with_system(row, before_the_answer(turns))


PAIR_PROMPT_FORMS: tuple[Form[Conversation], ...] = (
    Form("messages", (MESSAGES,), _of(MESSAGES), "OpenAI, UltraChat, WildChat, LMSYS"),
    Form("sharegpt", (SHAREGPT,), _of(SHAREGPT), "ShareGPT, LLaMA-Factory, axolotl"),
    Form("openai", (("input.messages",),), _of(("input.messages",)), "OpenAI's preference files"),
    Form("prompt", (PROMPT,), _of(PROMPT), "TRL, UltraFeedback, most others"),
    Form("alpaca", (ALPACA,), _alpaca, "Alpaca, Dolly, LLaMA-Factory; also reads `input`, `context`, `history`"),
    Form("question", (QUESTION,), _of(QUESTION), "orca, WebGPT, AdvBench, HarmBench"),
    Form("turns", (("turns",),), _first_turn, "MT-Bench: the first turn"),
    Form("post", (POST,), _of(POST), "SHP, HelpSteer3, summaries of posts"),
)
"""Forms that may also hold the prompt of a pair."""

INPUT_FORM: Form[Conversation] = Form("input", (("input",),), _of(("input",)), "instruction tuning, Argilla")

PROMPT_FORMS: tuple[Form[Conversation], ...] = (
    *PAIR_PROMPT_FORMS,
    Form("transcript", (("transcript", "chosen", "rejected"),), _transcript, "hh-rlhf and its red-team-attempts"),
    INPUT_FORM,
    Form("text", (TEXT,), _text, "plain text files, one prompt per line; guanaco"),
)


def prompt_beside_replies(row: Row) -> Conversation | None:
    """The prompt of a row that also has replies; None if no column holds one. Raises TypeError, ValueError."""
    for form in (*PAIR_PROMPT_FORMS, INPUT_FORM):
        if form.matches(row):
            return form.read(row)
    return None
