"""Find out what a chat template does by rendering short conversations.

Nothing is assumed about its wording. A template can be used for training if the text of every message appears, the prompt is a
prefix of prompt and reply together, no thought is open where the reply starts, and a dedicated token ends the reply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from engine.models.chat import ChatMessage, Conversation
from engine.models.generation.prefix_cache import common_prefix_length
from engine.models.templates.control_text import control_pattern
from engine.models.templates.generation_tags import without_generation_tags
from engine.models.templates.rendering import RenderOptions, TemplateRefusal, own_template, render
from engine.models.templates.thoughts import closes_thought, has_thought, opens_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_THOUGHT: dict[str, Any] = {"enable_thinking": False, "thinking": False, "thinking_budget": 0}
"""Arguments that turn thinking off in published templates (Qwen, SmolLM3, GLM; DeepSeek and Granite; Seed-OSS)."""
OPENS_A_THOUGHT = "it opens a thought where the reply should begin"
_EFFORT = "reasoning_effort"
_UNFINISHED_TAG = re.compile(r"<[^<>\s]*$|\[[^\[\]\s]*$")
_NO_EFFORT = re.compile(r"""["']none["']""")

_SYSTEM, _USER, _EARLIER_REPLY, _SECOND_USER, _REPLY = "Numbat", "Wombat", "Dingo", "Quoll", "Quokka"
"""Words that no template writes, and that no tokenizer treats specially."""
_TRICKY_TEXT = "Numbat:\n\n  1. \"Wombat\" & 'Dingo' <b>é 日本 🦘\n\t" + "Quoll is not Quokka. " * 400 + "End"
"""A text with everything that a template might escape, join or cut."""


def _message(role: str, content: str) -> ChatMessage:
    return {"role": role, "content": content}


_ONE_TURN: Conversation = [_message("user", _USER)]
_TWO_TURNS: Conversation = [*_ONE_TURN, _message("assistant", _EARLIER_REPLY), _message("user", _SECOND_USER)]
_REPLY_MESSAGE = _message("assistant", _REPLY)


@dataclass(frozen=True)
class Behaviour:
    """How to render a template, and what it writes around a reply."""

    options: RenderOptions
    control: re.Pattern[str]
    """Matches text in a message that would be read as a control token."""
    only_in_prompt: str = ""
    """The end of the generation prompt that is missing when a reply follows: a closed thought (Gemma 4). It stays in the prompt."""
    only_with_reply: str = ""
    """What the rendering with a reply has in its place: another form of an empty thought (DeepSeek-V3.2). Not part of the reply."""
    opening: str = ""
    """What the template writes before every reply, but not in the generation prompt: an empty thought, the answer's channel. It is
    added to the prompt."""
    end: int | None = None
    """The token that ends a reply and stops generation."""
    appended: tuple[int, ...] = ()
    """Tokens to append to a reply, up to `end`, if the template writes them only before the next turn (GLM)."""
    fault: str = ""
    """Why the template cannot be used for training; empty if it can."""


class _Fault(Exception):
    """Why a template cannot be used."""


@dataclass(frozen=True)
class _CachedBehaviour:
    template: str
    special: tuple[str, ...]
    behaviour: Behaviour


_CACHE: WeakKeyDictionary[PreTrainedTokenizerBase, _CachedBehaviour] = WeakKeyDictionary()


def behaviour_of(tokenizer: PreTrainedTokenizerBase) -> Behaviour:
    """The behaviour of the tokenizer's template; cached until its template or special tokens change."""
    template, special = own_template(tokenizer), tuple(tokenizer.all_special_tokens)
    cached = _CACHE.get(tokenizer)
    if cached is None or (cached.template, cached.special) != (template, special):
        cached = _CachedBehaviour(template, special, _observe(tokenizer, template))
        _CACHE[tokenizer] = cached
    return cached.behaviour


def _observe(tokenizer: PreTrainedTokenizerBase, template: str) -> Behaviour:
    behaviour = Behaviour(RenderOptions(switches_of(template)), control_pattern(tokenizer))
    try:
        for step in (
            _content_format,
            _system_placement,
            _text_before_reply,
            _require_text_unchanged,
            _end_of_turn,
            _require_one_bos,
        ):
            behaviour = step(tokenizer, behaviour)
    except TemplateRefusal as refusal:
        return replace(behaviour, fault=f"it refuses to render a short conversation, with the error: {refusal}")
    except _Fault as fault:
        return replace(behaviour, fault=str(fault))
    return behaviour


def switches_of(template: str) -> dict[str, Any]:
    """The template's own arguments that turn thinking off."""
    variables = _variables(template)
    switches = {name: value for name, value in NO_THOUGHT.items() if name in variables}
    if _EFFORT in variables and _NO_EFFORT.search(template):
        switches[_EFFORT] = "none"
    return switches


def _variables(template: str) -> set[str]:
    """The variables that the template reads; empty if it cannot be parsed."""
    from jinja2 import Environment, TemplateError, meta

    reader = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return meta.find_undeclared_variables(reader.parse(without_generation_tags(template)))
    except TemplateError:
        return set()


def _content_format(tokenizer: PreTrainedTokenizerBase, behaviour: Behaviour) -> Behaviour:
    as_text, as_parts = behaviour.options, replace(behaviour.options, as_parts=True)
    refused = None
    for options in (as_text, as_parts):
        try:
            if _USER in render(tokenizer, _ONE_TURN, options, add_generation_prompt=True):
                return replace(behaviour, options=options)
        except TemplateRefusal as refusal:
            refused = refused or refusal
    if refused is not None:
        raise refused
    raise _Fault("the text of a message is missing from what it renders")


def _require_text_unchanged(tokenizer: PreTrainedTokenizerBase, behaviour: Behaviour) -> Behaviour:
    """A template that escapes a message as JSON, joins its lines or cuts it would train on other texts than the pairs show."""
    for message, answer in (
        (_message("user", _TRICKY_TEXT), _REPLY_MESSAGE),
        (_message("user", _USER), _message("assistant", _TRICKY_TEXT)),
    ):
        if _TRICKY_TEXT not in render(tokenizer, [message, answer], behaviour.options, add_generation_prompt=False):
            raise _Fault("it changes the text of a message: line breaks, quotes, symbols, or anything long")
    return behaviour


def _system_placement(tokenizer: PreTrainedTokenizerBase, behaviour: Behaviour) -> Behaviour:
    """A system message gets its own turn if the template always writes it, else it goes into the first user turn."""
    for conversation in (_ONE_TURN, _TWO_TURNS):
        try:
            _around_boundary(tokenizer, [_message("system", _SYSTEM), *conversation], behaviour.options)
        except (TemplateRefusal, _Fault):
            return replace(behaviour, options=replace(behaviour.options, folds_system=True))
    return behaviour


def _text_before_reply(tokenizer: PreTrainedTokenizerBase, behaviour: Behaviour) -> Behaviour:
    """Find what is between the generation prompt and the reply. It must be the same in first and later turns, and with a system
    message.
    """
    boundaries = {
        _around_boundary(tokenizer, conversation, behaviour.options)
        for conversation in (_ONE_TURN, _TWO_TURNS, [_message("system", _SYSTEM), *_TWO_TURNS])
    }
    if len(boundaries) > 1:
        written = " and ".join(
            repr(text[-60:]) for text in sorted({prompt_end or reply_start for prompt_end, reply_start in boundaries})
        )
        raise _Fault(f"its generation prompt differs from one conversation to the next ({written})")
    prompt_end, reply_start = boundaries.pop()
    empty_thought = reply_start if _visible_text(tokenizer, reply_start) or has_thought(reply_start) else ""
    if closes_thought(prompt_end):
        return replace(behaviour, only_in_prompt=prompt_end, only_with_reply=empty_thought)
    if prompt_end.strip():
        raise _prompt_end_fault(prompt_end)
    prompt = render(tokenizer, _ONE_TURN, behaviour.options, add_generation_prompt=True).split(_USER)[-1]
    if opens_thought(prompt + empty_thought):
        raise _prompt_end_fault(prompt + empty_thought)
    return replace(behaviour, only_in_prompt=prompt_end, opening=empty_thought)


def _around_boundary(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, options: RenderOptions
) -> tuple[str, str]:
    """Returns the end of the generation prompt that is missing when a reply follows, and the text in its place."""
    prompt = render(tokenizer, conversation, options, add_generation_prompt=True)
    full = render(tokenizer, [*conversation, _REPLY_MESSAGE], options, add_generation_prompt=False)
    for message in conversation:
        if message["content"] not in prompt or message["content"] not in full:
            raise _Fault(f"the text of a turn of the {message['role']} is missing from what it renders")
    before, reply, _ = full.rpartition(_REPLY)
    if not reply:
        raise _Fault("the text of a reply is missing from what it renders")
    shared = common_prefix_length(prompt, before)
    tag = _UNFINISHED_TAG.search(prompt[:shared])
    if shared < len(prompt) and tag:
        shared = tag.start()  # two different tags may both start with `<|START_`
    if conversation[-1]["content"] in prompt[shared:]:
        raise _Fault(f"it renders the prompt differently when a reply follows, from {prompt[shared:][:40]!r} on")
    return prompt[shared:], before[shared:]


def _visible_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The visible part of `text`, without special tokens."""
    ids = tokenizer.encode(text, add_special_tokens=False) if text else []
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _prompt_end_fault(prompt_end: str) -> _Fault:
    if opens_thought(prompt_end):
        return _Fault(
            f"{OPENS_A_THOUGHT} ({prompt_end[-60:]!r}), and has no argument that closes it: the "
            "model would think before each reply but be trained on replies without a thought"
        )
    return _Fault(f"it renders the prompt differently when a reply follows, without {prompt_end[-60:]!r} at its end")


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, behaviour: Behaviour) -> Behaviour:
    last_text = render(
        tokenizer, [*_ONE_TURN, _REPLY_MESSAGE], behaviour.options, add_generation_prompt=False
    ).rpartition(_REPLY)[2]
    longer = render(
        tokenizer,
        [*_ONE_TURN, _REPLY_MESSAGE, _message("user", _SECOND_USER)],
        behaviour.options,
        add_generation_prompt=True,
    )
    inner_text = longer.rpartition(_REPLY)[2].partition(_SECOND_USER)[0]
    after_last: list[int] = tokenizer.encode(last_text, add_special_tokens=False)
    after_inner: list[int] = tokenizer.encode(inner_text, add_special_tokens=False)
    control_ids = _control_ids(tokenizer)
    for ids in (after_last[: common_prefix_length(after_last, after_inner)], after_last):
        end_tokens = [token for token in ids if token in control_ids]
        if end_tokens:
            return replace(
                behaviour, end=next((token for token in end_tokens if token == tokenizer.eos_token_id), end_tokens[0])
            )
    first = next((place for place, token in enumerate(after_inner) if tokenizer.decode([token]).strip()), None)
    if first is not None and after_inner[first] in control_ids and after_inner[first] != tokenizer.bos_token_id:
        return replace(behaviour, end=after_inner[first], appended=tuple(after_inner[: first + 1]))
    written = f"{last_text!r}" if last_text else "nothing"
    raise _Fault(f"after a reply it writes {written}, and no special token at which generation could stop")


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that are not ordinary text: special tokens, and added tokens that are not whitespace."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}
    return added | set(tokenizer.all_special_ids)


def _require_one_bos(tokenizer: PreTrainedTokenizerBase, behaviour: Behaviour) -> Behaviour:
    """Refuse a prompt that begins with two BOS tokens, or with a BOS that the tokenizer does not have. The template writes it."""
    text = render(tokenizer, _ONE_TURN, behaviour.options, add_generation_prompt=True)
    ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False)
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        raise _Fault(f"a prompt begins with two BOS tokens ({tokenizer.bos_token!r})")
    marker = "\ue001"
    options = replace(behaviour.options, switches={**behaviour.options.switches, "bos_token": marker})
    if render(tokenizer, _ONE_TURN, options, add_generation_prompt=True).startswith(marker) and list(ids[:1]) != [bos]:
        raise _Fault("a prompt begins with the BOS token, but the tokenizer has none")
    return behaviour
