"""Refuse oversized models: with one number in its `config.json`, an untrusted model makes transformers build layers until memory
is full."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.core.errors import UnsafeError
from engine.security.sanitize import visible_line

MAX_PARTS = 10_000
"""Layers, or experts per layer; the deepest models have a few hundred."""
_COUNT = re.compile(r"(num|n)_(\w+_)?(layer|expert|block|stage|module)s?")


def refuse_oversized_model(name: str, option: str, **arguments: Any) -> None:
    """Check a model's configuration before the model is built. Raises as `refuse_oversized`, and what transformers raises.

    option   the option that names the model
    """
    from transformers import PreTrainedConfig

    settings, _ = PreTrainedConfig.get_config_dict(name, **arguments)
    refuse_oversized(settings, option)


def refuse_oversized(settings: Mapping[str, Any], option: str) -> None:
    """Raises UnsafeError for an absurd number of layers or experts: building them, even without weights, would fill memory."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            refuse_oversized(value, option)
        elif isinstance(value, int) and value > MAX_PARTS and _COUNT.fullmatch(name):
            raise UnsafeError(
                f"A model's config.json has {visible_line(name, 80)} = {value:,}.",
                "No model has that many, and building it would fill the memory.",
                f"Check where the model comes from, and pass another one with {option}.",
            )
