"""Render conversations to token ids with the model's own chat template, the same way for generation, judging and training.

The options of a template, and what it writes around a reply, are found by trying it (`engine.models.templates.behaviour`).
Text inside a message that looks like a special token (`<eos>` in a dataset) stays text: it is split after its first character,
and the halves are tokenised separately. Conversations without such text are tokenised exactly as by `apply_chat_template`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.core.errors import PreconditionError
from engine.models.chat import ChatMessage
from engine.models.templates.behaviour import OPENS_A_THOUGHT, Behaviour, behaviour_of
from engine.models.templates.control_text import break_control_text, encode_continuation, encode_marked, unused_mark
from engine.models.templates.rendering import TemplateRefusal, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[ChatMessage], *, add_generation_prompt: bool
) -> list[int]:
    """Token ids of `conversation`. `add_generation_prompt` opens the model's turn at the end.

    Raises PreconditionError if the template refuses the conversation (for example, an unknown role).
    """
    mark = unused_mark(conversation)
    text = _render(tokenizer, conversation, mark, add_generation_prompt)
    return encode_marked(tokenizer, text + behaviour_of(tokenizer).opening if add_generation_prompt else text, mark)


def reply_ids(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[ChatMessage], reply: Sequence[ChatMessage]
) -> list[int]:
    """Token ids of `reply` as the model would generate it after `conversation_ids(conversation, add_generation_prompt=True)`:
    its text, one end-of-turn token, and any whitespace that the template writes after it.

    Raises PreconditionError if the template cannot be used for training.
    """
    behaviour = behaviour_of(tokenizer)
    if behaviour.fault:
        raise template_fault(tokenizer, behaviour.fault)
    mark = unused_mark([*conversation, *reply])
    prompt = _render(tokenizer, conversation, mark, add_generation_prompt=True)
    prompt_text = prompt.removesuffix(behaviour.only_in_prompt) + behaviour.only_with_reply + behaviour.opening
    text = _render(tokenizer, [*conversation, *reply], mark, add_generation_prompt=False)
    if not text.startswith(prompt_text):
        raise template_fault(tokenizer, "it renders this prompt differently when a reply follows")
    return _ids_up_to_end(tokenizer, _ids_after(tokenizer, prompt_text, text, mark), behaviour)


def template_fault(tokenizer: PreTrainedTokenizerBase, why: str) -> PreconditionError:
    return PreconditionError(
        f"The chat template of {tokenizer.name_or_path} cannot be used for training: {why}.",
        "The model would be trained on a different text than it is given when it generates.",
        _WITHOUT_THOUGHT
        if OPENS_A_THOUGHT in why
        else "Use the tokenizer that was published with the instruction-tuned model.",
    )


_WITHOUT_THOUGHT = (
    "Copy its chat_template.jinja, remove the opening tag of the thought at the end, and pass the copy with --chat-template "
    "FILE; or use a model that answers without a thought."
)


def _render(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[ChatMessage], mark: str, add_generation_prompt: bool
) -> str:
    behaviour = behaviour_of(tokenizer)
    inert: list[ChatMessage] = [
        {"role": message["role"], "content": break_control_text(message["content"], behaviour.control, mark)}
        for message in conversation
    ]
    try:
        return render(tokenizer, inert, behaviour.options, add_generation_prompt=add_generation_prompt)
    except TemplateRefusal as error:
        roles = ", ".join(message["role"] for message in conversation)
        raise PreconditionError(
            f"The chat template of {tokenizer.name_or_path} refuses a conversation of {roles}.",
            f"It says: {error}",
            "Fix the dataset's conversations: they must start with the user, and the speakers must alternate.",
        ) from error


def _ids_after(tokenizer: PreTrainedTokenizerBase, prompt_text: str, text: str, mark: str) -> list[int]:
    """The ids of `text` after those of `prompt_text`. If a token would span the boundary, the rest is tokenised separately, because
    generation starts from the ids of the prompt alone."""
    prompt_ids, full_ids = encode_marked(tokenizer, prompt_text, mark), encode_marked(tokenizer, text, mark)
    if full_ids[: len(prompt_ids)] == prompt_ids:
        return full_ids[len(prompt_ids) :]
    first, *rest = text[len(prompt_text) :].split(mark)
    return [
        *encode_continuation(tokenizer, first),
        *(token for part in rest for token in encode_continuation(tokenizer, part)),
    ]


def _ids_up_to_end(tokenizer: PreTrainedTokenizerBase, ids: list[int], behaviour: Behaviour) -> list[int]:
    """`ids` up to the first end-of-turn token. Whatever the template writes after it (the next turn, a second end) is dropped."""
    ids = [*ids, *behaviour.appended]
    if behaviour.end not in ids:
        raise template_fault(
            tokenizer, f"a reply ends with {tokenizer.decode(ids[-2:])!r} instead of an end-of-turn token"
        )
    after = ids.index(behaviour.end) + 1
    return ids if not tokenizer.decode(ids[after:]).strip() else ids[:after]
