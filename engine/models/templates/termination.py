"""Render an untrusted template in a child process first: Jinja has loops, so a template may never end, or fill the memory.

Jinja's sandbox limits a single `range`, but neither nested loops nor a text that is doubled again and again.
"""

from __future__ import annotations

import os
import resource
from datetime import date
from functools import lru_cache
from typing import Any

from engine.core.errors import UnsafeError
from engine.process.crash_check import check_in_child, checked_file

CPU_SECONDS = 3
"""CPU time of the child, imports included. A published template renders a short conversation in a few milliseconds."""
MEMORY = 1 << 30
"""Address space of the child, in bytes."""
CONVERSATION = [
    {"role": role, "content": text}
    for role, text in (("system", "Be brief."), ("user", "How?"), ("assistant", "So."), ("user", "Then?"))
]


@lru_cache(maxsize=64)
def require_termination(template: str, name: str) -> None:
    """Raises UnsafeError for a template that does not end, or fills the memory. A template that fails in any other way passes, and
    fails with its own error when it is used.
    """
    with os.fdopen(os.memfd_create("template"), "w+b") as file:
        file.write(template.encode("utf-8", "replace"))
        file.flush()
        file.seek(0)
        try:
            check_in_child(__name__, "jinja2", file, f"The chat template of {name}", remedy="")
        except UnsafeError as error:
            raise UnsafeError(
                f"The chat template of {name} does not end.",
                f"It did not render a short conversation within {CPU_SECONDS} s and {MEMORY >> 30} GiB. It is broken, or made to "
                "do that.",
                "Check where the model comes from, or pass another template with --chat-template FILE.",
            ) from error


# -- in the child ------------------------------------------------------------------------------------------------------


def crash_check() -> None:
    """Render as transformers does, with and without a system message."""
    with checked_file() as file:
        template = file.read().decode("utf-8")
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for messages in (CONVERSATION, CONVERSATION[1:]):
        try:
            _render(template, messages)
        except MemoryError:
            os.abort()
        except Exception:
            continue  # the caller renders it again, and reports the error better


def _render(template: str, messages: list[dict[str, str]]) -> None:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from engine.models.templates.generation_tags import without_generation_tags

    def refuse(message: str) -> Any:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": date.today().strftime}
    compiled = environment.from_string(without_generation_tags(template))
    compiled.render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
