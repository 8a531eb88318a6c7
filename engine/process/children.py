"""Child processes, such as git, uv and the dependency probe: no shell, no terminal, no tokens, a time limit, and no orphans.

A child leads its own session, so it can neither prompt on the terminal nor outlive its time limit. Descendants that left the
session are found by a mark in their environment. Output is untrusted: it is split into lines, sanitised and bounded.
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
from typing import IO, BinaryIO, cast

from engine.core.errors import PreconditionError
from engine.core.events import Level, Message
from engine.core.generators import drain
from engine.process.job_signals import JOB_SIGNALS
from engine.process.kill import MARK, describe_exit, end_child
from engine.process.output import LineSplitter, OutputTail
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line

DRAIN_SECONDS = 1.0
"""How long a grandchild may keep the pipes open after the child has exited."""
POLL_SECONDS = 0.1
JOB_SIGNAL_SECONDS = 1.0
"""How long to wait for this process's own signal after one that goes to all processes of a job has ended a child."""
ENDING_CHARACTERS = 240

log = logging.getLogger(__name__)

# git and uv need proxies and certificates. Processes that share a task must choose the same kernels and the same network.
_ALLOWED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|XDG_.*_(HOME|DIR|DIRS)|(HTTPS?|ALL|NO)_PROXY"
    r"|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|GIT_SSL_CA(INFO|PATH)|LD_LIBRARY_PATH|CUDA_.*|NVIDIA_.*|ROCR?_.*"
    r"|(ATEN|PYTORCH|TORCH|CUBLAS|CUDNN|HIP|HSA|MKL|ONEDNN|DNNL|OPENBLAS|OMP|GOMP|KMP|NCCL|GLOO|UCX|FI)_.*"
    r"|VIRTUAL_ENV|CONDA_PREFIX|PYTHONPATH|PYTHONUSERBASE",
    re.IGNORECASE,
)
_INSTALLER = re.compile(r"UV_.*|PIP_.*")
_ANY = re.compile(r"(?s).*")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|PRIVATE", re.IGNORECASE)


@dataclass(frozen=True)
class ChildResult:
    """The output of a child, and how it ended."""

    code: int
    """The exit status, or -N after signal N."""
    output: tuple[str, ...]
    """The lines of standard output, at most MAX_LINES."""
    tail: tuple[str, ...]
    """The last lines of standard output and standard error."""
    seconds: float
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        return self.code == 0 and not self.timed_out

    @property
    def ending(self) -> str:
        """A short description for an error: exit code, signal or timeout, and the last lines of output, shortened."""
        if self.timed_out:
            how = f"timed out after {self.seconds:.0f} s"
        else:
            how = f"ended {describe_exit(self.code)}" if self.killed_by else f"exit code {self.code}"
        last = " / ".join(visible_line(line, ENDING_CHARACTERS) for line in self.tail[-4:])
        return f"{how}: {last}" if last else how

    @property
    def killed_by(self) -> str:
        """The name of the signal that ended it; empty if it exited or timed out."""
        return signal.Signals(-self.code).name if self.code < 0 and not self.timed_out else ""


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A child's environment: an allow-list of this process's variables, without secrets, plus `extra`."""
    kept = _inherited(_ALLOWED)
    quiet = {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    return {**kept, **quiet, **(extra or {})}


def environment_without_secrets() -> dict[str, str]:
    """The whole environment without secrets, for the user's own programs, such as an editor."""
    return _inherited(_ANY)


def installer_settings() -> dict[str, str]:
    """The variables that only uv and pip get (index, cache), without secrets. An index that needs a password is therefore
    unreachable.
    """
    return _inherited(_INSTALLER)


def _inherited(allowed: re.Pattern[str]) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if allowed.fullmatch(key) and _SECRET.search(key) is None}


def run_child(
    argv: Sequence[str],
    *,
    limit_seconds: float,
    cwd: Path | None = None,
    extra: Mapping[str, str] | None = None,
    stop: StopToken | None = None,
    stdin: BinaryIO | None = None,
) -> ChildResult:
    """Run a child until it ends or times out. Parameters and errors are those of `stream_child`."""
    return drain(stream_child(argv, limit_seconds=limit_seconds, cwd=cwd, extra=extra, stop=stop, stdin=stdin))


def stream_child_as_messages(
    argv: Sequence[str],
    *,
    prefix: str,
    level: Level = "info",
    limit_seconds: float,
    cwd: Path | None = None,
    extra: Mapping[str, str] | None = None,
    stop: StopToken | None = None,
) -> Generator[Message, None, ChildResult]:
    """Run a child, and log and yield its output line by line. Raises the errors of `stream_child`.

    prefix   the program's name, which precedes each line
    """
    lines = stream_child(argv, limit_seconds=limit_seconds, cwd=cwd, extra=extra, stop=stop)
    while True:
        try:
            line = next(lines)
        except StopIteration as end:
            result: ChildResult = end.value
            return result
        log.info("%s: %s", prefix, line)
        yield Message(level, f"{prefix}: {line}")


def stream_child(
    argv: Sequence[str],
    *,
    limit_seconds: float,
    cwd: Path | None = None,
    extra: Mapping[str, str] | None = None,
    stop: StopToken | None = None,
    stdin: BinaryIO | None = None,
) -> Generator[str, None, ChildResult]:
    """Yield the output of a child line by line, and return its result.

    stdin   an open file that becomes the child's standard input; empty by default

    Raises PreconditionError if the child cannot be started, and Stopped if `stop` was requested. In that case, after a timeout,
    and when the generator is closed, the child and its descendants are killed first.
    """
    started = time.monotonic()
    child, mark = start_child(argv, cwd, extra, stdin=subprocess.DEVNULL if stdin is None else stdin)
    try:
        kept = OutputTail()
        timed_out = yield from _read_output(child, kept, started + limit_seconds, stop)
    finally:
        code = end_child(child, mark)
    if stop is not None:
        if -code in JOB_SIGNALS and not timed_out:
            stop.wait(JOB_SIGNAL_SECONDS)
        stop.raise_if_requested()
    return ChildResult(code, tuple(kept.output), tuple(kept.tail), time.monotonic() - started, timed_out)


def start_child(
    argv: Sequence[str], cwd: Path | None, extra: Mapping[str, str] | None, *, stdin: int | BinaryIO
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a child in its own session. Returns it with the mark by which `end_child` finds its descendants. Raises
    PreconditionError.
    """
    mark = uuid.uuid4().hex
    try:
        child = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env={**clean_environment(extra), MARK: mark},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            umask=_umask() | 0o022,  # files that a child creates are never writable by others
        )
        return child, mark
    except (
        OSError,
        ValueError,
    ) as error:  # a missing or non-executable program, a missing folder, a NUL in an argument
        raise PreconditionError(
            f"Cannot start {visible_line(argv[0], 200)}.",
            visible_line(str(error), 400),
            "Install it, or add its folder to PATH.",
        ) from error


def _umask() -> int:
    """The umask as the kernel reports it: `os.umask` can read it only by setting it for all threads."""
    found = re.search(rb"^Umask:\s*(\d+)", Path("/proc/self/status").read_bytes(), re.MULTILINE)
    return int(found[1], 8) if found else 0o022


def _read_output(
    child: subprocess.Popen[bytes], kept: OutputTail, deadline: float, stop: StopToken | None
) -> Generator[str, None, bool]:
    """Yield lines until the child ends. Returns whether it timed out."""
    assert child.stdout is not None and child.stderr is not None
    splitters = {child.stdout: LineSplitter(), child.stderr: LineSplitter()}
    open_pipes, timed_out = set(splitters), False
    exited_at: float | None = None
    process = os.pidfd_open(child.pid)  # becomes readable when the child ends
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process, selectors.EVENT_READ)
            for pipe in splitters:
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
                    for line in splitters[pipe].feed(data):
                        yield from kept.note(line, is_output=pipe is child.stdout)
    finally:
        os.close(process)
    for pipe, splitter in splitters.items():
        for line in splitter.end():
            yield from kept.note(line, is_output=pipe is child.stdout)
    return timed_out
