"""--chat-template: a template for a model without one, or a replacement for its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, PreconditionError
from engine.core.reading import read_file
from engine.hub.references import is_local, local_path
from engine.security.sanitize import visible_line
from engine.storage.files import sha256_of_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_FILE = "chat_template.jinja"
LARGEST_TEMPLATE = 1 << 20
"""Bytes; published templates have up to a few tens of thousands."""

GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}"
    "{% endif %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BUILT_IN = {"gemma": GEMMA, "chatml": CHATML}


def template_from_option(config: Stage3Config, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template of --chat-template; None without the option. ChatML starts with a BOS if the tokenizer adds one to plain text.
    Raises ConfigError for a file that cannot be read, or is not a chat template.
    """
    option = config.chat_template
    if option is None:
        return None
    if option in BUILT_IN:
        return ("{{ bos_token }}" if option == "chatml" and _begins_with_bos(tokenizer) else "") + BUILT_IN[option]
    try:
        text = read_file(Path(option).expanduser(), LARGEST_TEMPLATE, follow_links=True).decode("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Cannot read --chat-template {option}.",
            f"{type(error).__name__}: {error}",
            f"Pass a file with a Jinja template, or one of {', '.join(BUILT_IN)}.",
        ) from error
    if "messages" not in text:
        raise ConfigError(
            f"--chat-template {option} is not a chat template.",
            "It does not use `messages`, so it would write the same text for every conversation.",
            f"Pass a file such as the {TEMPLATE_FILE} of a published model.",
        )
    return text


def default_template(templates: Any, model: str) -> Any:
    """A tokenizer's template, or its templates by name with a default; a single one is used whatever its name. Raises
    PreconditionError if there are several and none is the default.
    """
    if not isinstance(templates, dict) or "default" in templates:
        return templates
    if len(templates) == 1:
        return next(iter(templates.values()))
    raise PreconditionError(
        f"The tokenizer of {model} has {len(templates)} chat templates, and none of them is the default.",
        f"Their names are {visible_line(', '.join(map(str, templates)), 200)}; Stage 2 was trained with one of them.",
        "Save that one as a file, and pass it with --chat-template FILE.",
    )


def template_key(config: Stage3Config) -> str | None:
    """The option's value for fingerprints. A file is represented by its hash."""
    option = config.chat_template
    if option is None or option in BUILT_IN or not Path(option).expanduser().is_file():
        return option
    return sha256_of_file(Path(option).expanduser())


def missing_template_advice(config: Stage3Config) -> str:
    """What to do about a model without a template. Mentions the template in the adapter's folder, if there is one."""
    beside = local_path(config.adapter_path) / TEMPLATE_FILE if is_local(config.adapter_path) else None
    found = f" The adapter has one: --chat-template {beside}." if beside is not None and beside.is_file() else ""
    return (
        "Pass the template that Stage 2 was trained with (--chat-template FILE, gemma or chatml), or use the "
        f"instruction-tuned model (google/gemma-2b-it, not google/gemma-2b).{found}"
    )


def _begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer.encode("a")[:1] == [bos] and tokenizer.bos_token not in CHATML
