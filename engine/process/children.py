"""Child processes: git, uv, the dependency probe. No shell, no terminal, no tokens, a time limit, and no orphans.

A child leads a session of its own, so it can neither ask anything on the terminal nor outlive its limit with its
children; what of them left that session is found by a mark in its environment. What a child prints is foreign text: it
comes line by line, made visible, and bounded.
"""

from __future__ import annotations

import logging
import os
import re
import selectors
import signal
import subprocess
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from engine.core.errors import PreconditionError
from engine.core.events import Level, Message
from engine.process.kill import MARK, end_child
from engine.process.output import LineSplitter, OutputTail
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line

DRAIN_SECONDS = 1.0
"""How long a grandchild may hold the pipes open after the child's end."""
POLL_SECONDS = 0.1
ENDING_CHARACTERS = 240

log = logging.getLogger(__name__)

# Proxies and certificates are here because git and uv need them.
_ALLOWED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|XDG_.*_(HOME|DIR|DIRS)|(HTTPS?|ALL|NO)_PROXY"
    r"|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|GIT_SSL_CA(INFO|PATH)|LD_LIBRARY_PATH|CUDA_.*|NVIDIA_.*|ROCR?_.*"
    r"|NCCL_.*|OMP_.*|MKL_.*|OPENBLAS_NUM_THREADS|VIRTUAL_ENV|CONDA_PREFIX|PYTHONPATH|PYTHONUSERBASE|PYTORCH_.*",
    re.IGNORECASE,
)
_OF_INSTALLERS = re.compile(r"UV_.*|PIP_.*")
_ANY = re.compile(r"(?s).*")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|PRIVATE", re.IGNORECASE)


@dataclass(frozen=True)
class ChildResult:
    """How a child ended."""

    code: int
    """The exit status; -N after signal N."""
    output: tuple[str, ...]
    """Lines of standard output alone, MAX_LINES at most."""
    tail: tuple[str, ...]
    """The last lines of both outputs."""
    seconds: float
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        return self.code == 0 and not self.timed_out

    @property
    def ending(self) -> str:
        """A few words for an error: exit code, signal or time limit, and what it said last, no line of it at length."""
        if self.timed_out:
            how = f"timed out after {self.seconds:.0f} s"
        else:
            how = f"ended by {self.killed_by}" if self.killed_by else f"exit code {self.code}"
            if self.killed_by == "SIGKILL":
                how += ", as the kernel does if memory runs out"
        last = " / ".join(visible_line(line, ENDING_CHARACTERS) for line in self.tail[-4:])
        return f"{how}: {last}" if last else how

    @property
    def killed_by(self) -> str:
        """The signal's name; empty if it ended by itself or by its limit."""
        return signal.Signals(-self.code).name if self.code < 0 and not self.timed_out else ""


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A child's environment: an allow-list of this process's, without what is named like a secret, and `extra`."""
    kept = _inherited(_ALLOWED)
    quiet = {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    return {**kept, **quiet, **(extra or {})}


def environment_without_secrets() -> dict[str, str]:
    """This process's environment for a program of the person's own, such as an editor: all but what is named like a secret."""
    return _inherited(_ANY)


def installer_settings() -> dict[str, str]:
    """What uv and pip, and nobody else, get besides: their own variables (an index, a cache), none that is named like a
    secret. An index with a password of its own is thus not reached from here.
    """
    return _inherited(_OF_INSTALLERS)


def _inherited(allowed: re.Pattern[str]) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if allowed.fullmatch(key) and _SECRET.search(key) is None}


def run_child(
    argv: Sequence[str],
    *,
    limit_seconds: float,
    cwd: Path | None = None,
    extra: Mapping[str, str] | None = None,
    stop: StopToken | None = None,
) -> ChildResult:
    """Run a child to its end, or to its limit. Raises as `stream_child` does."""
    lines = stream_child(argv, limit_seconds=limit_seconds, cwd=cwd, extra=extra, stop=stop)
    while True:
        try:
            next(lines)
        except StopIteration as end:
            result: ChildResult = end.value
            return result


def stream_child_as_messages(
    argv: Sequence[str],
    *,
    speaker: str,
    level: Level = "info",
    limit_seconds: float,
    cwd: Path | None = None,
    extra: Mapping[str, str] | None = None,
    stop: StopToken | None = None,
) -> Generator[Message, None, ChildResult]:
    """Run a child and pass on what it prints, line by line, as messages and to the log. Raises as `stream_child` does."""
    lines = stream_child(argv, limit_seconds=limit_seconds, cwd=cwd, extra=extra, stop=stop)
    while True:
        try:
            line = next(lines)
        except StopIteration as end:
            result: ChildResult = end.value
            return result
        log.info("%s: %s", speaker, line)
        yield Message(level, f"{speaker}: {line}")


def stream_child(
    argv: Sequence[str],
    *,
    limit_seconds: float,
    cwd: Path | None = None,
    extra: Mapping[str, str] | None = None,
    stop: StopToken | None = None,
) -> Generator[str, None, ChildResult]:
    """Yield what a child prints, line by line as it comes, and return how it ended.

    Raises PreconditionError if it cannot be started, and Stopped when `stop` was requested; the child and all that
    it started are gone by then, as they are after the limit, and when the generator is closed.
    """
    started, mark = time.monotonic(), uuid.uuid4().hex
    child = _start(argv, cwd, {**clean_environment(extra), MARK: mark})
    try:
        heard = OutputTail()
        timed_out = yield from _read_output(child, heard, started + limit_seconds, stop)
    finally:
        code = end_child(child, mark)
    if stop is not None:
        stop.raise_if_requested()
    return ChildResult(code, tuple(heard.output), tuple(heard.tail), time.monotonic() - started, timed_out)


def _start(argv: Sequence[str], cwd: Path | None, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            umask=_umask() | 0o022,  # what a child makes is never for others to change, whatever umask it came with
        )
    except (OSError, ValueError) as error:  # not there, not executable, no such folder, a NUL in an argument
        raise PreconditionError(
            f"Cannot start {visible_line(argv[0], 200)}.",
            visible_line(str(error), 400),
            "Install it, or add its folder to PATH.",
        ) from error


def _umask() -> int:
    """Read from the kernel: `os.umask` tells only by setting another, for all threads."""
    found = re.search(rb"^Umask:\s*(\d+)", Path("/proc/self/status").read_bytes(), re.MULTILINE)
    return int(found[1], 8) if found else 0o022


def _read_output(
    child: subprocess.Popen[bytes], heard: OutputTail, deadline: float, stop: StopToken | None
) -> Generator[str, None, bool]:
    """Yield lines until the child ended; returns whether its time was over first."""
    assert child.stdout is not None and child.stderr is not None
    lines = {child.stdout: LineSplitter(), child.stderr: LineSplitter()}
    open_pipes, timed_out = set(lines), False
    exited_at: float | None = None
    process = os.pidfd_open(child.pid)  # can be read from when the child has ended
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process, selectors.EVENT_READ)
            for pipe in lines:
                selector.register(pipe, selectors.EVENT_READ)
            while exited_at is None or (open_pipes and time.monotonic() < exited_at + DRAIN_SECONDS):
                if (timed_out := time.monotonic() > deadline) or (stop is not None and stop.requested):
                    break
                for key, _ in selector.select(POLL_SECONDS):
                    if key.fileobj == process:
                        exited_at = time.monotonic()
                        selector.unregister(process)
                        continue
                    pipe = cast("IO[bytes]", key.fileobj)
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(pipe)
                        open_pipes.discard(pipe)
                    for line in lines[pipe].feed(data):
                        yield from heard.note(line, is_output=pipe is child.stdout)
    finally:
        os.close(process)
    for pipe, cutter in lines.items():
        for line in cutter.end():
            yield from heard.note(line, is_output=pipe is child.stdout)
    return timed_out
