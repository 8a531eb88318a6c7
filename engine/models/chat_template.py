"""A conversation as token ids, by the model's own chat template: the one rendering for generation, judging and training.

How the template is asked, and what it writes around a reply, is found by trying it (`engine.models.templates.behaviour`).
What looks like a special token inside a message (`<eos>` in a dataset's text) stays text: it is cut after its first
character, and the two halves are tokenised apart. A conversation without such text is tokenised exactly as
`apply_chat_template` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.core.errors import PreconditionError
from engine.models.chat import ChatMessage
from engine.models.templates.behaviour import Behaviour, behaviour_of
from engine.models.templates.control_text import cut, encode_behind, encode_marked, mark_not_in
from engine.models.templates.rendering import TemplateRefusal, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[ChatMessage], *, reply_wanted: bool
) -> list[int]:
    """Token ids of `conversation`; with `reply_wanted`, the model's turn is opened at its end.

    Raises PreconditionError if the template refuses the conversation (a role that it does not know).
    """
    mark = mark_not_in(conversation)
    text = _text(tokenizer, conversation, mark, reply_wanted)
    return encode_marked(tokenizer, text + behaviour_of(tokenizer).opening if reply_wanted else text, mark)


def reply_ids(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[ChatMessage], reply: Sequence[ChatMessage]
) -> list[int]:
    """What the model says after `conversation_ids(conversation, reply_wanted=True)` when it gives `reply`: its text, one end of
    turn, and the blanks that the template writes behind it.

    Raises PreconditionError if the template cannot be trained with.
    """
    behaviour = behaviour_of(tokenizer)
    if behaviour.fault:
        raise template_fault(tokenizer, behaviour.fault)
    mark = mark_not_in([*conversation, *reply])
    prompt = _text(tokenizer, conversation, mark, reply_wanted=True)
    begun = prompt.removesuffix(behaviour.only_in_prompt) + behaviour.in_its_place + behaviour.opening
    whole = _text(tokenizer, [*conversation, *reply], mark, reply_wanted=False)
    if not whole.startswith(begun):
        raise template_fault(tokenizer, "it renders this prompt otherwise when a reply follows")
    return _ended(tokenizer, _behind(tokenizer, begun, whole, mark), behaviour)


def template_fault(tokenizer: PreTrainedTokenizerBase, why: str) -> PreconditionError:
    return PreconditionError(
        f"The chat template of {tokenizer.name_or_path} cannot be trained with: {why}.",
        "The model would learn another text than the one that it is asked with later.",
        "Use the tokenizer that the instruction-tuned model was published with.",
    )


def _text(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[ChatMessage], mark: str, reply_wanted: bool
) -> str:
    behaviour = behaviour_of(tokenizer)
    inert: list[ChatMessage] = [
        {"role": message["role"], "content": cut(message["content"], behaviour.control, mark)}
        for message in conversation
    ]
    try:
        return render(tokenizer, inert, behaviour.asking, reply_wanted=reply_wanted)
    except TemplateRefusal as error:
        roles = ", ".join(message["role"] for message in conversation)
        raise PreconditionError(
            f"The chat template of {tokenizer.name_or_path} refuses a conversation of {roles}.",
            f"It says: {error}",
            "Mend the dataset's conversations: they begin with the user, and the two speakers take turns.",
        ) from error


def _behind(tokenizer: PreTrainedTokenizerBase, begun: str, whole: str, mark: str) -> list[int]:
    """The ids of `whole` behind those of `begun`. Where a token would span the two, what follows is tokenised by itself: the
    model is asked with the ids of `begun`, whatever comes next."""
    before, both = encode_marked(tokenizer, begun, mark), encode_marked(tokenizer, whole, mark)
    if both[: len(before)] == before:
        return both[len(before) :]
    first, *rest = whole[len(begun) :].split(mark)
    return [*encode_behind(tokenizer, first), *(token for part in rest for token in encode_behind(tokenizer, part))]


def _ended(tokenizer: PreTrainedTokenizerBase, ids: list[int], behaviour: Behaviour) -> list[int]:
    """`ids` with one end of turn; what a template writes behind it (the next turn, a second end) is no part of the reply."""
    ids = [*ids, *behaviour.appended]
    if behaviour.end not in ids:
        raise template_fault(tokenizer, f"a reply ends with {tokenizer.decode(ids[-2:])!r}, and no end of turn")
    after = ids.index(behaviour.end) + 1
    return ids if not tokenizer.decode(ids[after:]).strip() else ids[:after]
