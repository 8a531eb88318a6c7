"""What a chat template does, found by rendering short conversations and looking at what comes out.

Nothing is expected of its wording. What must hold: every text of a message arrives; the prompt is how prompt and reply
begin; no thought stands open where the reply begins; a token of its own ends the reply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from engine.models.chat import ChatMessage, Conversation
from engine.models.generation.prefix_cache import common_length
from engine.models.templates.control_text import control_pattern
from engine.models.templates.rendering import Asking, TemplateRefusal, render
from engine.models.templates.thoughts import closes_thought, has_thought, opens_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_THOUGHT: dict[str, Any] = {"enable_thinking": False, "thinking": False, "thinking_budget": 0}
"""The switches of published templates (Qwen, SmolLM3, GLM; DeepSeek and Granite; Seed-OSS), each given if it is named."""
_EFFORT = "reasoning_effort"
_GENERATION = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")
"""Marks of transformers, which Jinja does not know."""
_BEGUN_MARK = re.compile(r"<[^<>\s]*$|\[[^\[\]\s]*$")
_NO_EFFORT = re.compile(r"""["']none["']""")

_SYSTEM, _USER, _EARLIER, _AGAIN, _REPLY = "Numbat", "Wombat", "Dingo", "Quoll", "Quokka"
"""Words that no template writes and that no tokenizer gives a meaning."""


def _said(role: str, content: str) -> ChatMessage:
    return {"role": role, "content": content}


_FIRST: Conversation = [_said("user", _USER)]
_LATER: Conversation = [*_FIRST, _said("assistant", _EARLIER), _said("user", _AGAIN)]
_ANSWER = _said("assistant", _REPLY)


@dataclass(frozen=True)
class Behaviour:
    """How a template is asked, and what it writes around a reply."""

    asking: Asking
    control: re.Pattern[str]
    """What would be a token of the template's in the text of a message."""
    only_in_prompt: str = ""
    """The end of the opened turn that the rendering with a reply lacks: a closed thought (Gemma 4). It stays in the prompt."""
    in_its_place: str = ""
    """What the rendering with a reply has there: another spelling of no thought (DeepSeek-V3.2). It is no part of the reply."""
    opening: str = ""
    """What the template writes before every reply and not when it opens the turn: an empty thought, the channel of the answer.
    It is put at the end of the prompt."""
    end: int | None = None
    """The token that ends a reply; generation stops at it."""
    appended: tuple[int, ...] = ()
    """What is put behind a reply, up to `end`, if the template writes it only before the next turn (GLM)."""
    fault: str = ""
    """Why it cannot be trained with, as what was seen; empty if it can."""


class _Fault(Exception):
    """What makes a template unfit, as what was seen."""


@dataclass(frozen=True)
class _Known:
    template: str
    special: tuple[str, ...]
    behaviour: Behaviour


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, _Known] = WeakKeyDictionary()


def behaviour_of(tokenizer: PreTrainedTokenizerBase) -> Behaviour:
    """Of the tokenizer's template; found once, and again if its template or special tokens have changed."""
    template, special = str(tokenizer.chat_template), tuple(tokenizer.all_special_tokens)
    known = _KNOWN.get(tokenizer)
    if known is None or (known.template, known.special) != (template, special):
        known = _Known(template, special, _observed(tokenizer, template))
        _KNOWN[tokenizer] = known
    return known.behaviour


def _observed(tokenizer: PreTrainedTokenizerBase, template: str) -> Behaviour:
    seen = Behaviour(Asking(switches_of(template)), control_pattern(tokenizer))
    try:
        for step in (_form_of_content, _place_of_system, _around_the_reply, _end_of_turn, _beginning):
            seen = step(tokenizer, seen)
    except TemplateRefusal as refusal:
        return replace(seen, fault=f"it refuses to render a short conversation, and says: {refusal}")
    except _Fault as fault:
        return replace(seen, fault=str(fault))
    return seen


def switches_of(template: str) -> dict[str, Any]:
    """The template's own switches that ask the model not to think."""
    asked = _variables(template)
    switches = {name: value for name, value in NO_THOUGHT.items() if name in asked}
    if _EFFORT in asked and _NO_EFFORT.search(template):
        switches[_EFFORT] = "none"
    return switches


def _variables(template: str) -> set[str]:
    """The names that a template reads from outside; none if it cannot be read."""
    from jinja2 import Environment, TemplateError, meta

    reader = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return meta.find_undeclared_variables(reader.parse(_GENERATION.sub("", template)))
    except TemplateError:
        return set()


def _form_of_content(tokenizer: PreTrainedTokenizerBase, seen: Behaviour) -> Behaviour:
    as_text, as_parts = seen.asking, replace(seen.asking, as_parts=True)
    refused = None
    for asking in (as_text, as_parts):
        try:
            if _USER in render(tokenizer, _FIRST, asking, reply_wanted=True):
                return replace(seen, asking=asking)
        except TemplateRefusal as refusal:
            refused = refused or refusal
    if refused is not None:
        raise refused
    raise _Fault("the text of a message is not in what it renders")


def _place_of_system(tokenizer: PreTrainedTokenizerBase, seen: Behaviour) -> Behaviour:
    """A turn of its own if the template writes it whether or not a reply follows; else in the first user turn."""
    for conversation in (_FIRST, _LATER):
        try:
            _between(tokenizer, [_said("system", _SYSTEM), *conversation], seen.asking)
        except (TemplateRefusal, _Fault):
            return replace(seen, asking=replace(seen.asking, folds_system=True))
    return seen


def _around_the_reply(tokenizer: PreTrainedTokenizerBase, seen: Behaviour) -> Behaviour:
    """What stands between the opened turn and the reply: the same in the first turn, in a later one, behind a system message."""
    found = {
        _between(tokenizer, conversation, seen.asking)
        for conversation in (_FIRST, _LATER, [_said("system", _SYSTEM), *_LATER])
    }
    if len(found) > 1:
        told = " and ".join(repr(shown) for shown in sorted({opened or lead for opened, lead in found}))
        raise _Fault(f"it opens the model's turn otherwise from one conversation to the next ({told})")
    opened, lead = found.pop()
    no_reply = lead if _shown(tokenizer, lead) or has_thought(lead) else ""
    if closes_thought(opened):
        return replace(seen, only_in_prompt=opened, in_its_place=no_reply)
    if opened.strip():
        raise _opened_fault(opened)
    prompt = render(tokenizer, _FIRST, seen.asking, reply_wanted=True).split(_USER)[-1]
    if opens_thought(prompt + no_reply):
        raise _opened_fault(prompt + no_reply)
    return replace(seen, only_in_prompt=opened, opening=no_reply)


def _between(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, asking: Asking) -> tuple[str, str]:
    """(the end of the opened turn that is not there when a reply follows, what stands before the reply in its place)."""
    prompt = render(tokenizer, conversation, asking, reply_wanted=True)
    whole = render(tokenizer, [*conversation, _ANSWER], asking, reply_wanted=False)
    for said in conversation:
        if said["content"] not in prompt or said["content"] not in whole:
            raise _Fault(f"the text of a turn of the {said['role']} is not in what it renders")
    before, reply, _ = whole.rpartition(_REPLY)
    if not reply:
        raise _Fault("the text of a reply is not in what it renders")
    shared = common_length(prompt, before)
    mark = _BEGUN_MARK.search(prompt[:shared])
    if shared < len(prompt) and mark:
        shared = mark.start()  # `<|START_` is how two marks begin
    return prompt[shared:], before[shared:]


def _shown(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """What a reader of the reply would see of `text`."""
    ids = tokenizer.encode(text, add_special_tokens=False) if text else []
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _opened_fault(opened: str) -> _Fault:
    if opens_thought(opened):
        return _Fault(
            f"it opens a thought where the reply should begin ({opened[-60:]!r}), and has no switch that closes it: the "
            "model would think before each reply, and learn replies without a thought"
        )
    return _Fault(
        f"it renders the prompt otherwise when a reply follows: {opened[-60:]!r} at its end is not there any more"
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, seen: Behaviour) -> Behaviour:
    last = render(tokenizer, [*_FIRST, _ANSWER], seen.asking, reply_wanted=False).rpartition(_REPLY)[2]
    more = render(tokenizer, [*_FIRST, _ANSWER, _said("user", _AGAIN)], seen.asking, reply_wanted=True)
    inner = more.rpartition(_REPLY)[2].partition(_AGAIN)[0]
    behind_last: list[int] = tokenizer.encode(last, add_special_tokens=False)
    behind_inner: list[int] = tokenizer.encode(inner, add_special_tokens=False)
    marks = _marks(tokenizer)
    for ids in (behind_last[: common_length(behind_last, behind_inner)], behind_last):
        ends = [token for token in ids if token in marks]
        if ends:
            return replace(seen, end=next((token for token in ends if token == tokenizer.eos_token_id), ends[0]))
    first = next((place for place, token in enumerate(behind_inner) if tokenizer.decode([token]).strip()), None)
    if first is not None and behind_inner[first] in marks and behind_inner[first] != tokenizer.bos_token_id:
        return replace(seen, end=behind_inner[first], appended=tuple(behind_inner[: first + 1]))
    told = f"{last!r}" if last else "nothing"
    raise _Fault(f"behind a reply it writes {told}, and no token of its own that generation could stop at")


def _marks(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that are no pieces of text: special ones, and added ones that are not blank."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}
    return added | set(tokenizer.all_special_ids)


def _beginning(tokenizer: PreTrainedTokenizerBase, seen: Behaviour) -> Behaviour:
    """The BOS is what the template writes: refused are two in a row, and one that it begins with and the tokenizer lacks."""
    text = render(tokenizer, _FIRST, seen.asking, reply_wanted=True)
    ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False)
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        raise _Fault(f"a prompt begins with two BOS tokens ({tokenizer.bos_token!r})")
    named = "\ue001"
    asked = replace(seen.asking, switches={**seen.asking.switches, "bos_token": named})
    if render(tokenizer, _FIRST, asked, reply_wanted=True).startswith(named) and list(ids[:1]) != [bos]:
        raise _Fault("a prompt begins with the BOS token, and the tokenizer has none")
    return seen
