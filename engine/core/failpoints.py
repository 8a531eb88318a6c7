"""Named places where a test makes the N-th call fail.

The code calls `failpoint("sync")` where something can go wrong; a test chooses what fails, and at which call:

    FAILPOINTS_STAGE3="sync=EIO@3" stage3-tui --auto --demo      the third sync of the process fails
    FAILPOINTS_STAGE3="append=ENOSPC@7+,push=term@2"             every append from the seventh; SIGTERM at the second push

or, within one process, `with failing("sync=EIO@3") as armed: …`, and `armed.fired` counts the failures. The variable is
read once, when this module is imported. Without it, a call costs as much as any Python function call
(`python -m bench.failpoints`).

Actions: the name of an errno (OSError), `memory` (MemoryError), `nan` (the caller replaces its number by NaN), `hang`
(forever), `abort`, `kill` (SIGKILL), `term` and `int` (SIGTERM and SIGINT to this process, which continues until it handles
them). Modelled on tikv's crate `fail` and on SQLite's I/O error tests.
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
"""Does not begin with `STAGE3_`, because those variables are options."""

POINTS = {
    "append": "before a line of a JSONL file is written",
    "sync": "before a file or a folder is synced",
    "rename": "before a temporary file is renamed to its final name",
    "checkpoint": "before a checkpoint's files are written, and before its manifest",
    "delete": "while an old checkpoint is deleted",
    "manifest": "before run.json is saved",
    "event": "before an event goes into the journal",
    "loss": "at the loss of an optimizer step",
    "zip": "before a file goes into the archive",
    "push": "before a request to the Hub, and while a file is uploaded",
    "download": "before a request that reads from the Hub",
}

_RULE = re.compile(r"(?P<point>\w+)=(?P<action>\w+)@(?P<number>\d+)(?P<every_later>\+?)")


class Armed:
    """The active rules, and how often each fail point has been reached since."""

    def __init__(self, rules: str) -> None:
        """Raises ValueError for a rule that could never apply."""
        self.reached: Counter[str] = Counter()
        self.fired = 0
        self._rules = [_rule(text.strip()) for text in rules.split(",") if text.strip()]
        self._lock = Lock()

    def reach(self, point: str) -> str | None:
        """The action that is due at this call of `point`, or None."""
        with self._lock:
            self.reached[point] += 1
            for name, action, number, every_later in self._rules:
                count = self.reached[point]
                if name == point and (count == number or (every_later and count > number)):
                    self.fired += 1
                    return action
        return None


def _rule(text: str) -> tuple[str, str, int, bool]:
    match = _RULE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not a fail point: use POINT=ACTION@N, or POINT=ACTION@N+ for every call from the N-th"
        )
    point, action = match["point"], match["action"]
    if point not in POINTS:
        raise ValueError(f"Unknown fail point {point!r}; choose from {', '.join(POINTS)}")
    if action not in _ACTIONS and not hasattr(errno, action):
        raise ValueError(f"Unknown action {action!r}; choose the name of an errno or one of {', '.join(_ACTIONS)}")
    return point, action, int(match["number"]), bool(match["every_later"])


def failpoint(point: str) -> bool:
    """Fail if a test has requested it for this call. Returns True if the caller must replace its number by NaN."""
    return _armed is not None and _act(_armed.reach(point))


@contextmanager
def failing(rules: str) -> Iterator[Armed]:
    """Activate these rules within the block, in all threads. Counting starts from 0."""
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
