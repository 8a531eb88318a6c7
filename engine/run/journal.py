"""Events on disk: `logs/events.jsonl`, one per line, each with `seq` and `time`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from engine.core import clock
from engine.core.events import Event, PairFailed, PairMade, Telemetry, event_from_dict
from engine.core.failpoints import failpoint
from engine.storage.jsonl import BadLine, JsonlAppender, read_jsonl


@dataclass(frozen=True)
class Entry:
    """An event with its sequence number and time, as stored."""

    seq: int
    time: float
    """Seconds since the epoch, by `engine.core.clock` of the process that worked."""
    event: Event

    def as_dict(self) -> dict[str, Any]:
        return {"seq": self.seq, "time": self.time, **self.event.as_dict()}


class Journal:
    """Append events; `seq` continues from what an earlier process wrote."""

    def __init__(self, path: Path) -> None:
        self._appender = JsonlAppender(path)
        self._lock = Lock()
        self._next = max((entry.seq for entry in read_entries(path)), default=-1) + 1

    @property
    def torn_bytes(self) -> int:
        return self._appender.torn

    def append(self, event: Event) -> Entry:
        failpoint("event")
        with self._lock:
            entry = self._entry(event)
            # Telemetry arrives every second and is not worth an fsync; a pair has its own, in pairs.jsonl.
            self._appender.append(
                finite(entry.as_dict()), sync=not isinstance(event, (Telemetry, PairMade, PairFailed))
            )
            self._next += 1
        return entry

    def unwritten(self, event: Event) -> Entry:
        """The entry of an event that the disk does not take."""
        with self._lock:
            entry = self._entry(event)
            self._next += 1
        return entry

    def _entry(self, event: Event) -> Entry:
        return Entry(self._next, round(clock.now(), 3), event)

    def close(self) -> None:
        self._appender.close()


def read_entries(path: Path) -> Iterator[Entry]:
    """The events in a journal, oldest first; damaged lines and unknown kinds of events are skipped."""
    if not path.exists():
        return
    for _, record in read_jsonl(path):
        entry = entry_from_dict(record)
        if entry is not None:
            yield entry


def entry_from_dict(record: dict[str, Any] | BadLine) -> Entry | None:
    """The entry of one line; None if the line is damaged or its kind of event unknown to this version."""
    if isinstance(record, BadLine):
        return None
    try:
        event = event_from_dict(record)
        return None if event is None else Entry(int(record["seq"]), float(record["time"]), event)
    except (KeyError, TypeError, ValueError):
        return None


def finite(value: Any) -> Any:
    """NaN and infinities as text: JSON has no such numbers, and the event that reports them must not be lost."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
