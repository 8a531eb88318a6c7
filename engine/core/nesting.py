"""A limit on the nesting of plain data, so that whatever walks through it ends, whoever wrote it."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100
"""Levels of objects and lists. Nothing written here has ten; Python's own limit is that of its stack."""
MAX_ELEMENTS = 1_000_000
"""Objects and lists in one document, counted once per mention: YAML's aliases turn a few lines into a billion."""
TOO_DEEP = f"nested too deeply: more than {MAX_DEPTH} levels"


def parse_untrusted_json(raw: bytes) -> Any:
    """JSON as other programs send it, including NaN and duplicate keys. Raises ValueError, also for endless nesting."""
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
        inside = (child for each in level for child in (each.values() if isinstance(each, dict) else each))
        level = []
        for child in inside:
            if isinstance(child, (dict, list)):
                level.append(child)
                if len(level) + seen > MAX_ELEMENTS:
                    raise ValueError(f"it unfolds to more than {MAX_ELEMENTS:,} objects and lists")
        seen += len(level)
        if not level:
            return
    raise ValueError(TOO_DEEP)
