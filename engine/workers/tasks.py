"""What a pool and its workers exchange: tasks, and the result of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Task = Mapping[str, Any]
"""Plain data, sent as one line of JSON."""


@dataclass(frozen=True)
class TaskResult:
    """What a worker made of one task."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """A few numbers beside the rows."""
