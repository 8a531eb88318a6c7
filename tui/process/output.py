"""Text and data on standard output. Nothing printed here can control a terminal."""

from __future__ import annotations

import json
from typing import Any

from engine.security.sanitize import visible_line


def print_line(text: str) -> None:
    """Print a line for people, and flush it."""
    print(visible_line(text), flush=True)


def print_json(data: Any) -> None:
    """Print data for programs: in ASCII, which every encoding has, and without control characters."""
    print(json.dumps(data, indent=2, ensure_ascii=True))
