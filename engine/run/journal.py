"""Events on disk: `logs/events.jsonl`, one per line, each with `seq` and `time`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from engine.core import clock
from engine.core.errors import DamagedState
from engine.core.events import Event, PairFailed, PairMade, Telemetry, event_from_dict
from engine.core.failpoints import failpoint
from engine.storage.jsonl import BadLine, JsonlAppender, read_jsonl

MAX_EVENTS = 1 << 53
"""Larger integers lose precision in programs that read JSON numbers as floats, and no run has so many events."""
MAX_TIME = 4e10
"""Seconds since the epoch: the year 3237. A later time is damage."""


@dataclass(frozen=True)
class Entry:
    """An event with its sequence number and time, as stored."""

    seq: int
    time: float
    """Seconds since the epoch, by `engine.core.clock` in the process that emitted the event."""
    event: Event

    def as_dict(self) -> dict[str, Any]:
        return {"seq": self.seq, "time": self.time, **self.event.as_dict()}


class Journal:
    """Append events; `seq` continues from what an earlier process wrote."""

    def __init__(self, path: Path) -> None:
        # Events are written even if the folder was moved; the session checks whether the file is still in place.
        self._appender = JsonlAppender(path, acknowledges=False)
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

    def require_in_place(self) -> None:
        """Raises the errors of `JsonlAppender.require_in_place`."""
        self._appender.require_in_place()

    def unwritten_entry(self, event: Event) -> Entry:
        """The entry of an event that cannot be written to disk."""
        with self._lock:
            entry = self._entry(event)
            self._next += 1
        return entry

    def _entry(self, event: Event) -> Entry:
        return Entry(self._next, round(clock.now(), 3), event)

    def close(self) -> None:
        self._appender.close()


def read_journal(path: Path) -> Iterator[Entry | None]:
    """The events in a journal, oldest first; None for a line that is damaged or from another version. Raises UnsafeError if it
    is not a regular file, DamagedState if it is a folder, and OSError.
    """
    try:
        yield from (entry_from_dict(record) for _, record in read_jsonl(path))
    except FileNotFoundError:
        return
    except IsADirectoryError:
        raise DamagedState(
            f"{path} is a folder.",
            "A run keeps its journal in this place: another program created the folder.",
            "Check what it is, move it away, and run the same command again.",
        ) from None


def read_entries(path: Path) -> Iterator[Entry]:
    """`read_journal` without the lines that it cannot read."""
    yield from (entry for entry in read_journal(path) if entry is not None)


def entry_from_dict(record: dict[str, Any] | BadLine) -> Entry | None:
    """The entry in one line; None if the line is damaged or from another version."""
    if isinstance(record, BadLine):
        return None
    seq, when = record.get("seq"), record.get("time")
    if type(seq) is not int or not 0 <= seq < MAX_EVENTS:
        return None
    if type(when) not in (int, float) or not 0 <= when < MAX_TIME:  # type: ignore[operator]
        return None
    try:
        event = event_from_dict(record)
    except ValueError:
        return None
    return None if event is None else Entry(seq, float(when), event)  # type: ignore[arg-type]


def finite(value: Any) -> Any:
    """Replace NaN and infinities by text: JSON cannot represent them, and an event that reports them must not be lost."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
