"""A cache of results by the hash of their inputs: an append-only JSONL file of `{"key", "value"}` lines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.storage.jsonl import BadLine, JsonlAppender, read_jsonl


class KeyedCache:
    """Values by key. A damaged line counts as missing, so its value is computed again. If two lines have the same key, the
    newer one counts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those keys that the cache has."""
        wanted = set(keys)
        if not wanted or not self._path.is_file():
            return {}
        found = {}
        for _, line in read_jsonl(self._path):
            if not isinstance(line, BadLine) and line.get("key") in wanted and "value" in line:
                found[line["key"]] = line["value"]
        return found

    def append(self, values: dict[str, Any]) -> None:
        """Add these values. All of them are on disk when this returns. Raises DiskError."""
        if not values:
            return
        with JsonlAppender(self._path) as appender:
            for number, (key, value) in enumerate(values.items(), start=1):
                appender.append({"key": key, "value": value}, sync=number == len(values))
