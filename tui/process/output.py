"""Text and data on standard output. Nothing that is printed here can drive a terminal."""

from __future__ import annotations

import json
from typing import Any

from engine.security.sanitize import visible_line


def print_line(text: str) -> None:
    """A line for people; it is there when this returns."""
    print(visible_line(text), flush=True)


def print_json(data: Any) -> None:
    """For machines: in ASCII, so that every encoding has it, and no control character stands in it."""
    print(json.dumps(data, indent=2, ensure_ascii=True))
