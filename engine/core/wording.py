"""Numbers of things in sentences."""

from __future__ import annotations


def plural(count: int, one: str, many: str | None = None) -> str:
    """1 pair, 1,291 pairs."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
