"""Find out what a chat template does by rendering short conversations.

Nothing is assumed about its wording. Required: the text of every message appears; the prompt is a prefix of prompt plus reply;
no thought is open where the reply starts; a dedicated token ends the reply.
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
from engine.models.templates.marks import without_generation_marks
from engine.models.templates.rendering import RenderOptions, TemplateRefusal, own_template, render
from engine.models.templates.thoughts import closes_thought, has_thought, opens_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_THOUGHT: dict[str, Any] = {"enable_thinking": False, "thinking": False, "thinking_budget": 0}
"""Arguments of published templates that turn thinking off (Qwen, SmolLM3, GLM; DeepSeek and Granite; Seed-OSS)."""
OPENS_A_THOUGHT = "it opens a thought where the reply should begin"
_EFFORT = "reasoning_effort"
_BEGUN_MARK = re.compile(r"<[^<>\s]*$|\[[^\[\]\s]*$")
_NO_EFFORT = re.compile(r"""["']none["']""")

_SYSTEM, _USER, _EARLIER, _AGAIN, _REPLY = "Numbat", "Wombat", "Dingo", "Quoll", "Quokka"
"""Words that no template writes and no tokenizer treats specially."""
_WRITTEN = "Numbat:\n\n  1. \"Wombat\" & 'Dingo' <b>é 日本 🦘\n\t" + "Quoll is not Quokka. " * 400 + "End"
"""A text with what a template may escape, join or cut."""


def _said(role: str, content: str) -> ChatMessage:
    return {"role": role, "content": content}


_FIRST: Conversation = [_said("user", _USER)]
_LATER: Conversation = [*_FIRST, _said("assistant", _EARLIER), _said("user", _AGAIN)]
_ANSWER = _said("assistant", _REPLY)


@dataclass(frozen=True)
class Behaviour:
    """How to render a template, and what it writes around a reply."""

    options: RenderOptions
    control: re.Pattern[str]
    """Matches text in a message that would be read as a control token."""
    only_in_prompt: str = ""
    """The end of the generation prompt that is missing when a reply follows: a closed thought (Gemma 4). It stays in the prompt."""
    only_with_reply: str = ""
    """What the rendering with a reply has instead: another way to write no thought (DeepSeek-V3.2). Not part of the reply."""
    opening: str = ""
    """What the template writes before every reply but not in the generation prompt: an empty thought, the answer's channel. It is
    added to the prompt."""
    end: int | None = None
    """The token that ends a reply and stops generation."""
    appended: tuple[int, ...] = ()
    """Tokens to add after a reply, up to `end`, if the template writes them only before the next turn (GLM)."""
    fault: str = ""
    """Why it cannot be used for training; empty if it can."""


class _Fault(Exception):
    """Why a template cannot be used."""


@dataclass(frozen=True)
class _Known:
    template: str
    special: tuple[str, ...]
    behaviour: Behaviour


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, _Known] = WeakKeyDictionary()


def behaviour_of(tokenizer: PreTrainedTokenizerBase) -> Behaviour:
    """The behaviour of the tokenizer's template; cached until its template or special tokens change."""
    template, special = own_template(tokenizer), tuple(tokenizer.all_special_tokens)
    known = _KNOWN.get(tokenizer)
    if known is None or (known.template, known.special) != (template, special):
        known = _Known(template, special, _observed(tokenizer, template))
        _KNOWN[tokenizer] = known
    return known.behaviour


def _observed(tokenizer: PreTrainedTokenizerBase, template: str) -> Behaviour:
    seen = Behaviour(RenderOptions(switches_of(template)), control_pattern(tokenizer))
    try:
        for step in (_form_of_content, _place_of_system, _around_the_reply, _keeps_text, _end_of_turn, _beginning):
            seen = step(tokenizer, seen)
    except TemplateRefusal as refusal:
        return replace(seen, fault=f"it refuses to render a short conversation, and says: {refusal}")
    except _Fault as fault:
        return replace(seen, fault=str(fault))
    return seen


def switches_of(template: str) -> dict[str, Any]:
    """The template's own arguments that turn thinking off."""
    asked = _variables(template)
    switches = {name: value for name, value in NO_THOUGHT.items() if name in asked}
    if _EFFORT in asked and _NO_EFFORT.search(template):
        switches[_EFFORT] = "none"
    return switches


def _variables(template: str) -> set[str]:
    """The variables that a template reads; empty if it cannot be parsed."""
    from jinja2 import Environment, TemplateError, meta

    reader = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return meta.find_undeclared_variables(reader.parse(without_generation_marks(template)))
    except TemplateError:
        return set()


def _form_of_content(tokenizer: PreTrainedTokenizerBase, seen: Behaviour) -> Behaviour:
    as_text, as_parts = seen.options, replace(seen.options, as_parts=True)
    refused = None
    for options in (as_text, as_parts):
        try:
            if _USER in render(tokenizer, _FIRST, options, add_generation_prompt=True):
                return replace(seen, options=options)
        except TemplateRefusal as refusal:
            refused = refused or refusal
    if refused is not None:
        raise refused
    raise _Fault("the text of a message is not in what it renders")


def _keeps_text(tokenizer: PreTrainedTokenizerBase, seen: Behaviour) -> Behaviour:
    """A template that escapes a message as JSON, joins its lines or cuts it would train on other texts than people read."""
    for said, answer in ((_said("user", _WRITTEN), _ANSWER), (_said("user", _USER), _said("assistant", _WRITTEN))):
        if _WRITTEN not in render(tokenizer, [said, answer], seen.options, add_generation_prompt=False):
            raise _Fault(
                "it changes the text of a message: line breaks, quotes, other signs than letters, or what is long"
            )
    return seen


def _place_of_system(tokenizer: PreTrainedTokenizerBase, seen: Behaviour) -> Behaviour:
    """A system message gets its own turn if the template always writes it, else it goes into the first user turn."""
    for conversation in (_FIRST, _LATER):
        try:
            _between(tokenizer, [_said("system", _SYSTEM), *conversation], seen.options)
        except (TemplateRefusal, _Fault):
            return replace(seen, options=replace(seen.options, folds_system=True))
    return seen


def _around_the_reply(tokenizer: PreTrainedTokenizerBase, seen: Behaviour) -> Behaviour:
    """What is between the generation prompt and the reply. It must be the same in first and later turns, and with a system
    message.
    """
    found = {
        _between(tokenizer, conversation, seen.options)
        for conversation in (_FIRST, _LATER, [_said("system", _SYSTEM), *_LATER])
    }
    if len(found) > 1:
        told = " and ".join(repr(shown[-60:]) for shown in sorted({opened or lead for opened, lead in found}))
        raise _Fault(f"its generation prompt differs from one conversation to the next ({told})")
    opened, lead = found.pop()
    no_reply = lead if _shown(tokenizer, lead) or has_thought(lead) else ""
    if closes_thought(opened):
        return replace(seen, only_in_prompt=opened, only_with_reply=no_reply)
    if opened.strip():
        raise _opened_fault(opened)
    prompt = render(tokenizer, _FIRST, seen.options, add_generation_prompt=True).split(_USER)[-1]
    if opens_thought(prompt + no_reply):
        raise _opened_fault(prompt + no_reply)
    return replace(seen, only_in_prompt=opened, opening=no_reply)


def _between(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, options: RenderOptions) -> tuple[str, str]:
    """(end of the generation prompt that is missing when a reply follows, what is there instead)."""
    prompt = render(tokenizer, conversation, options, add_generation_prompt=True)
    whole = render(tokenizer, [*conversation, _ANSWER], options, add_generation_prompt=False)
    for said in conversation:
        if said["content"] not in prompt or said["content"] not in whole:
            raise _Fault(f"the text of a turn of the {said['role']} is not in what it renders")
    before, reply, _ = whole.rpartition(_REPLY)
    if not reply:
        raise _Fault("the text of a reply is not in what it renders")
    shared = common_prefix_length(prompt, before)
    mark = _BEGUN_MARK.search(prompt[:shared])
    if shared < len(prompt) and mark:
        shared = mark.start()  # two marks may both start with `<|START_`
    if conversation[-1]["content"] in prompt[shared:]:
        raise _Fault(f"it renders the prompt differently when a reply follows, from {prompt[shared:][:40]!r} on")
    return prompt[shared:], before[shared:]


def _shown(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The visible part of `text`, without special tokens."""
    ids = tokenizer.encode(text, add_special_tokens=False) if text else []
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _opened_fault(opened: str) -> _Fault:
    if opens_thought(opened):
        return _Fault(
            f"{OPENS_A_THOUGHT} ({opened[-60:]!r}), and has no argument that closes it: the "
            "model would think before each reply but be trained on replies without a thought"
        )
    return _Fault(
        f"it renders the prompt differently when a reply follows: {opened[-60:]!r} at its end is missing then"
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, seen: Behaviour) -> Behaviour:
    last = render(tokenizer, [*_FIRST, _ANSWER], seen.options, add_generation_prompt=False).rpartition(_REPLY)[2]
    more = render(tokenizer, [*_FIRST, _ANSWER, _said("user", _AGAIN)], seen.options, add_generation_prompt=True)
    inner = more.rpartition(_REPLY)[2].partition(_AGAIN)[0]
    behind_last: list[int] = tokenizer.encode(last, add_special_tokens=False)
    behind_inner: list[int] = tokenizer.encode(inner, add_special_tokens=False)
    marks = _marks(tokenizer)
    for ids in (behind_last[: common_prefix_length(behind_last, behind_inner)], behind_last):
        ends = [token for token in ids if token in marks]
        if ends:
            return replace(seen, end=next((token for token in ends if token == tokenizer.eos_token_id), ends[0]))
    first = next((place for place, token in enumerate(behind_inner) if tokenizer.decode([token]).strip()), None)
    if first is not None and behind_inner[first] in marks and behind_inner[first] != tokenizer.bos_token_id:
        return replace(seen, end=behind_inner[first], appended=tuple(behind_inner[: first + 1]))
    told = f"{last!r}" if last else "nothing"
    raise _Fault(f"after a reply it writes {told}, and no special token at which generation could stop")


def _marks(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that are not text: special ones, and added ones that are not whitespace."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}
    return added | set(tokenizer.all_special_ids)


def _beginning(tokenizer: PreTrainedTokenizerBase, seen: Behaviour) -> Behaviour:
    """The template writes the BOS. Two in a row are refused, and one that the tokenizer does not have."""
    text = render(tokenizer, _FIRST, seen.options, add_generation_prompt=True)
    ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False)
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        raise _Fault(f"a prompt begins with two BOS tokens ({tokenizer.bos_token!r})")
    named = "\ue001"
    asked = replace(seen.options, switches={**seen.options.switches, "bos_token": named})
    if render(tokenizer, _FIRST, asked, add_generation_prompt=True).startswith(named) and list(ids[:1]) != [bos]:
        raise _Fault("a prompt begins with the BOS token, but the tokenizer has none")
    return seen
