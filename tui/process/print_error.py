"""Print a failure for a person at a prompt."""

from __future__ import annotations

import sys

from engine.core.errors import Stage3Error
from engine.security.sanitize import visible


def print_error(error: Stage3Error) -> None:
    """Print what failed, why, and what to do next, on stderr."""
    for word, text in (("failed", error.what), ("why", error.why), ("next", error.what_to_do)):
        if text:
            print(f"{word + ':':8}{visible(text)}", file=sys.stderr)
