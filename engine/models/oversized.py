"""Models without end: a stranger's `config.json` needs one number to make transformers build layers until the memory is full."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.core.errors import UnsafeError
from engine.security.sanitize import visible_line

MAX_PARTS = 10_000
"""Layers, or experts of one; the deepest models have some hundred."""
_COUNT = re.compile(r"(num|n)_(\w+_)?(layer|expert|block|stage|module)s?")


def refuse_oversized_model(name: str, option: str, **arguments: Any) -> None:
    """Look at a model's configuration before anything is built of it. Raises as `refuse_endless`, and what transformers raises.

    option   that the model was given with
    """
    from transformers import PreTrainedConfig

    settings, _ = PreTrainedConfig.get_config_dict(name, **arguments)
    refuse_oversized(settings, option)


def refuse_oversized(settings: Mapping[str, Any], option: str) -> None:
    """Raises UnsafeError if a model has more parts than any: building it, even without weights, would fill the memory."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            refuse_oversized(value, option)
        elif isinstance(value, int) and value > MAX_PARTS and _COUNT.fullmatch(name):
            raise UnsafeError(
                f"A model's config.json says {visible_line(name, 80)} = {value:,}.",
                "No model has so many: building it would fill the memory and never end.",
                f"Look at where the model comes from, and give another one with {option}.",
            )
