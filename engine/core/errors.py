"""The errors that a person can fix, and their exit codes.

Stage3Error
├── ConfigError          2   the command line, the environment or a file has an invalid value
├── PreconditionError    3   the run needs something that is missing
├── AccessError          4   token or access
├── NetworkError         5   network or Hub
├── DiskError            6
├── MemoryExhausted      7
│   └── RestartNeeded        the run continues in a fresh process
├── NumbersError         8   NaN, or no learning
├── DataError            9   the data cannot teach
├── DamagedState        10   a file of the run is damaged, and a person must decide
├── RunLocked           11   another process has this run
├── UnsafeError         12   refused for safety
└── Stopped        129/130/143   asked to stop; everything is saved
"""

from __future__ import annotations

import signal
from enum import IntEnum

from engine.security.redaction import redact


class ExitCode(IntEnum):
    """The process's exit codes (a contract)."""

    DONE = 0
    BUG = 1
    USAGE = 2
    PRECONDITION = 3
    ACCESS = 4
    NETWORK = 5
    DISK = 6
    MEMORY = 7
    NUMBERS = 8
    DATA = 9
    DAMAGED = 10
    LOCKED = 11
    UNSAFE = 12
    HANGUP = 128 + signal.SIGHUP
    INTERRUPTED = 128 + signal.SIGINT
    TERMINATED = 128 + signal.SIGTERM


class Stage3Error(Exception):
    """A failure that a person can fix. Its texts are redacted.

    what         what failed, with the value that was given
    why          why it cannot work
    what_to_do   the next step, as a command where there is one
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, what: str, why: str = "", what_to_do: str = "") -> None:
        self.what = redact(what)
        self.why = redact(why)
        self.what_to_do = redact(what_to_do)
        super().__init__(self.what)

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.what_to_do) if part)

    def as_dict(self) -> dict[str, str | int]:
        return {
            "what": self.what,
            "why": self.why,
            "what_to_do": self.what_to_do,
            "exit_code": int(self.exit_code),
        }


class ConfigError(Stage3Error):
    exit_code = ExitCode.USAGE


class PreconditionError(Stage3Error):
    exit_code = ExitCode.PRECONDITION


class AccessError(Stage3Error):
    exit_code = ExitCode.ACCESS


class NetworkError(Stage3Error):
    exit_code = ExitCode.NETWORK


class DiskError(Stage3Error):
    exit_code = ExitCode.DISK


class MemoryExhausted(Stage3Error):
    exit_code = ExitCode.MEMORY


class RestartNeeded(MemoryExhausted):
    """This process cannot continue (its memory is exhausted, or its GPU context is broken), but a new one can.

    Not a failure: the driver of the run starts it again in another process, which finds everything on disk.
    """


class NumbersError(Stage3Error):
    exit_code = ExitCode.NUMBERS


class DataError(Stage3Error):
    exit_code = ExitCode.DATA


class DamagedState(Stage3Error):
    exit_code = ExitCode.DAMAGED


class RunLocked(Stage3Error):
    exit_code = ExitCode.LOCKED


class UnsafeError(Stage3Error):
    exit_code = ExitCode.UNSAFE


def error_from_exit_code(exit_code: object, what: str, why: str, what_to_do: str) -> Stage3Error:
    """Rebuild an error that another process reported, with the class that its exit code stands for."""
    kinds = (kind for kind in Stage3Error.__subclasses__() if int(kind.exit_code) == exit_code != ExitCode.BUG)
    return next(kinds, Stage3Error)(what, why, what_to_do)


class Stopped(Stage3Error):
    """The run stopped on request, with everything saved."""

    def __init__(self, reason: str, exit_code: ExitCode = ExitCode.TERMINATED) -> None:
        super().__init__(
            f"The run stopped ({reason}).",
            "Everything made so far is saved.",
            "The same command continues from here.",
        )
        self.exit_code = exit_code
