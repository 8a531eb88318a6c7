"""Pairs that pass the detectors, and their lines in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.pairs.data.record import Pair

META = "The revised answer is clear."


def pair(number: int, **changes: Any) -> Pair:
    prompt = f"How do I mend thing number {number}?"
    values: dict[str, Any] = {
        "id": f"id{number}",
        "prompt": prompt,
        "messages": [{"role": "user", "content": prompt}],
        "base_response": f"Kick thing {number} as hard as you possibly can, twice.",
        "revised_response": f"Glue thing {number} gently.",
        "base_score": 0.25,
        "revised_score": 0.75,
    }
    return Pair(**{**values, **changes})


def row(number: int, **changes: Any) -> dict[str, Any]:
    """The notebook's line of `pair(number)`, with an id."""
    one = pair(number)
    values = {key: getattr(one, key) for key in ("id", "prompt", "base_response", "revised_response")}
    return {**values, **changes}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path
