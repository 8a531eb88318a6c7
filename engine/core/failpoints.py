"""Named places where a test makes the N-th call fail.

The code says `failpoint("sync")` where something can go wrong; a test says what does, at which call:

    FAILPOINTS_STAGE3="sync=EIO@3" stage3-tui --auto --demo      the third sync of the process fails
    FAILPOINTS_STAGE3="append=ENOSPC@7+,push=term@2"             every append from the seventh; SIGTERM at the second push

or, within one process, `with failing("sync=EIO@3") as armed: …`, and `armed.fired` tells whether it came to that. The
variable is read once, when this module is imported. Without it a call costs what a call of a Python function does
(`python -m bench.failpoints`).

Actions: the name of an errno (OSError), `memory` (MemoryError), `nan` (the place turns its number into NaN), `hang` (for
ever), `abort`, `kill` (SIGKILL), `term` and `int` (SIGTERM and SIGINT to this process, which goes on until it hears it).
Shape: the crate `fail` of tikv, and SQLite's I/O error tests.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

VARIABLE = "FAILPOINTS_STAGE3"
"""Not `STAGE3_…`: those are options."""

POINTS = {
    "append": "before a line of a JSONL file is written",
    "sync": "before a file or a folder is synced",
    "rename": "before what was written aside gets its name",
    "checkpoint": "before a checkpoint's files are written, and before its manifest",
    "delete": "while an old checkpoint is deleted",
    "manifest": "before run.json is saved",
    "event": "before an event goes into the journal",
    "loss": "at the loss of an optimizer step",
    "zip": "before a file goes into the archive",
    "push": "before a question to the Hub, and while a file is sent",
    "download": "before a request to the Hub that reads",
}

_RULE = re.compile(r"(?P<point>\w+)=(?P<action>\w+)@(?P<number>\d+)(?P<ever>\+?)")


class Armed:
    """What is to fail, and how often each place was reached since."""

    def __init__(self, rules: str) -> None:
        """Raises ValueError for a rule that would never do anything."""
        self.reached: Counter[str] = Counter()
        self.fired = 0
        self._rules = [_rule(text.strip()) for text in rules.split(",") if text.strip()]
        self._lock = Lock()

    def reach(self, point: str) -> str | None:
        """The action that is due at this call of `point`."""
        with self._lock:
            self.reached[point] += 1
            for name, action, number, ever in self._rules:
                count = self.reached[point]
                if name == point and (count == number or (ever and count > number)):
                    self.fired += 1
                    return action
        return None


def _rule(text: str) -> tuple[str, str, int, bool]:
    found = _RULE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no fail point: POINT=ACTION@N, or POINT=ACTION@N+ for every call from the N-th")
    point, action = found["point"], found["action"]
    if point not in POINTS:
        raise ValueError(f"There is no fail point {point!r}; there are {', '.join(POINTS)}")
    if action not in _ACTIONS and not hasattr(errno, action):
        raise ValueError(f"There is no action {action!r}; there are the names of errno, nan, {', '.join(_ACTIONS)}")
    return point, action, int(found["number"]), bool(found["ever"])


def failpoint(point: str) -> bool:
    """Do what a test asked for at this call; nothing otherwise. True where a number is to become NaN."""
    return _armed is not None and _act(_armed.reach(point))


@contextmanager
def failing(rules: str) -> Iterator[Armed]:
    """Let these fail within the block, in all threads; counting begins anew."""
    global _armed
    before, _armed = _armed, Armed(rules)
    try:
        yield _armed
    finally:
        _armed = before


def _act(action: str | None) -> bool:
    if action is None or action == "nan":
        return action is not None
    if action in _ACTIONS:
        _ACTIONS[action]()
        return False
    number = getattr(errno, action)
    raise OSError(number, os.strerror(number))


def _out_of_memory() -> None:
    raise MemoryError("a fail point")


def _hang() -> None:
    while True:
        time.sleep(3600)


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


_ACTIONS: dict[str, Callable[[], None]] = {
    "nan": lambda: None,
    "memory": _out_of_memory,
    "hang": _hang,
    "abort": os.abort,
    "kill": lambda: _send(signal.SIGKILL),
    "term": lambda: _send(signal.SIGTERM),
    "int": lambda: _send(signal.SIGINT),
}
_armed = Armed(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
