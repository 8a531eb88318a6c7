"""A limit on the nesting of untrusted data, so that code that walks through it always ends."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100
"""Levels of objects and lists. Our own files have fewer than ten; Python's only limit is its stack."""
MAX_ELEMENTS = 1_000_000
"""Objects and lists in one document. Aliases count every time: YAML can expand a few lines into a billion objects."""
TOO_DEEP = f"nested too deeply: more than {MAX_DEPTH} levels"


def parse_untrusted_json(raw: bytes) -> Any:
    """Parse JSON from other programs, which may contain NaN and duplicate keys. Raises ValueError, also if nested too deeply."""
    try:
        value = json.loads(raw)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    check_nesting([value])
    return value


def check_nesting(value: Any) -> None:
    """Raises ValueError for more than `MAX_DEPTH` levels, or `MAX_ELEMENTS` objects and lists."""
    level, seen = [value], 0
    for _ in range(MAX_DEPTH):
        children = (child for each in level for child in (each.values() if isinstance(each, dict) else each))
        level = []
        for child in children:
            if isinstance(child, (dict, list)):
                level.append(child)
                if len(level) + seen > MAX_ELEMENTS:
                    raise ValueError(f"it expands to more than {MAX_ELEMENTS:,} objects and lists")
        seen += len(level)
        if not level:
            return
    raise ValueError(TOO_DEEP)
