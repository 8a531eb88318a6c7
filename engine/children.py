"""Child processes: git, uv, the dependency probe. No shell, no terminal, no tokens, a time limit, and no orphans.

A child leads a session of its own, so it can neither ask anything on the terminal nor outlive its limit with its
children. What it prints is foreign text: it comes line by line, made visible, and bounded.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import PreconditionError
from engine.stop import StopToken
from engine.text import visible_line

GRACE_SECONDS = 5.0
"""Between TERM and KILL."""
DRAIN_SECONDS = 1.0
"""How long a grandchild may hold the pipes open after the child's end."""
POLL_SECONDS = 0.1
MAX_LINE_CHARACTERS = 4000
MAX_LINES = 10_000
TAIL_LINES = 40

# Proxies and certificates are here because git and uv need them.
_ALLOWED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|XDG_.*_(HOME|DIR|DIRS)|(HTTPS?|ALL|NO)_PROXY"
    r"|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|LD_LIBRARY_PATH|CUDA_.*|NVIDIA_.*|ROCR?_.*|NCCL_.*|OMP_.*|MKL_.*"
    r"|OPENBLAS_NUM_THREADS|VIRTUAL_ENV|CONDA_PREFIX|PYTHONPATH|PYTHONUSERBASE|PYTORCH_.*|UV_.*|PIP_.*",
    re.IGNORECASE,
)
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
        """A few words for an error: exit code or time limit, and what it said last."""
        how = f"no end after {self.seconds:.0f} s" if self.timed_out else f"exit code {self.code}"
        return f"{how}: {' / '.join(self.tail[-4:])}" if self.tail else how


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A child's environment: an allow-list of this process's, without what is named like a secret, and `extra`."""
    kept = {key: value for key, value in os.environ.items() if _ALLOWED.fullmatch(key) and _SECRET.search(key) is None}
    quiet = {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    return {**kept, **quiet, **(extra or {})}


def environment_without_secrets() -> dict[str, str]:
    """This process's environment for a program of the person's own, such as an editor: all but what is named like a secret."""
    return {key: value for key, value in os.environ.items() if _SECRET.search(key) is None}


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


def stream_child(
    argv: Sequence[str],
    *,
    limit_seconds: float,
    cwd: Path | None = None,
    extra: Mapping[str, str] | None = None,
    stop: StopToken | None = None,
) -> Generator[str, None, ChildResult]:
    """Yield what a child prints, line by line as it comes, and return how it ended.

    Raises PreconditionError where it cannot be started, and Stopped when `stop` was requested; the child and all of
    its group are gone by then, as they are after the limit, and when the generator is closed.
    """
    started = time.monotonic()
    child = _start(argv, cwd, clean_environment(extra))
    try:
        heard = _Heard()
        timed_out = yield from _listen(child, heard, started + limit_seconds, stop)
    finally:
        code = _end(child)
    if stop is not None:
        stop.raise_if_requested()
    return ChildResult(code, tuple(heard.output), tuple(heard.tail), time.monotonic() - started, timed_out)


class _Heard:
    """What of a child's words is kept."""

    def __init__(self) -> None:
        self.output: list[str] = []
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.count = 0

    def note(self, line: str, *, is_output: bool) -> Iterator[str]:
        """Keep a line, and hand it on while there are not too many."""
        self.tail.append(line)
        self.count += 1
        if is_output and len(self.output) < MAX_LINES:
            self.output.append(line)
        if self.count <= MAX_LINES:
            yield line
        elif self.count == MAX_LINES + 1:
            yield f"… more than {MAX_LINES} lines; the rest is not shown"


class _Lines:
    """Cuts bytes into visible lines. A carriage return ends one too: progress bars redraw theirs with it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        *whole, self._rest = re.split(rb"[\r\n]", self._rest + data)
        self._rest = self._rest[: 4 * MAX_LINE_CHARACTERS]  # a gigabyte without a newline must not be kept
        for line in whole:
            yield from self._shown(line)

    def end(self) -> Iterator[str]:
        rest, self._rest = self._rest, b""
        yield from self._shown(rest)

    def _shown(self, line: bytes) -> Iterator[str]:
        if text := visible_line(line.decode("utf-8", errors="replace"), MAX_LINE_CHARACTERS):
            yield text


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
        )
    except (OSError, ValueError) as error:  # not there, not executable, no such folder, a NUL in an argument
        raise PreconditionError(
            f"{visible_line(argv[0], 200)} could not be started.",
            visible_line(str(error), 400),
            "Install it, or put its folder on PATH.",
        ) from error


def _listen(
    child: subprocess.Popen[bytes], heard: _Heard, deadline: float, stop: StopToken | None
) -> Generator[str, None, bool]:
    """Yield lines until the child ended; returns whether its time was over first."""
    assert child.stdout is not None and child.stderr is not None
    lines = {child.stdout: _Lines(), child.stderr: _Lines()}
    exited_at: float | None = None
    timed_out = False
    with selectors.DefaultSelector() as selector:
        for pipe in lines:
            selector.register(pipe, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            if exited_at is None and _has_exited(child):
                exited_at = now
            if exited_at is not None and (not selector.get_map() or now > exited_at + DRAIN_SECONDS):
                break
            if (timed_out := now > deadline) or (stop is not None and stop.requested):
                break
            if not selector.get_map():  # it closed its outputs and works on
                time.sleep(POLL_SECONDS)
            for key, _ in selector.select(POLL_SECONDS) if selector.get_map() else ():
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                for line in lines[key.fileobj].feed(data):  # type: ignore[index]
                    yield from heard.note(line, is_output=key.fileobj is child.stdout)
    for pipe, cutter in lines.items():
        for line in cutter.end():
            yield from heard.note(line, is_output=pipe is child.stdout)
    return timed_out


def _has_exited(child: subprocess.Popen[bytes]) -> bool:
    """Without reaping it: as long as it is a zombie its group's number cannot be given to strangers."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(child: subprocess.Popen[bytes]) -> int:
    """Make an end of the child's whole group: TERM, then KILL for what is left. Returns the exit status."""
    deadline = time.monotonic() + GRACE_SECONDS
    if not _has_exited(child):
        os.killpg(child.pid, signal.SIGTERM)
        while not _has_exited(child) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)
    os.killpg(child.pid, signal.SIGKILL)  # the unreaped child is in the group, so the group is there
    code = child.wait()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    return code
