"""A child that exchanges lines with this process through its standard input and output.

However this process ends, the kernel closes the pipe, and the child reads the end of its input. A signal that goes to all
processes of a job does not end the child (`job_signals`).
"""

from __future__ import annotations

import logging
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from engine.process.children import DRAIN_SECONDS, POLL_SECONDS, start_child
from engine.process.job_signals import job_signals_blocked
from engine.process.kill import end_child
from engine.process.output import LineSplitter, OutputTail

MAX_LINE_BYTES = 1 << 20
"""Longer lines of the child are cut, because none of our messages is that long."""

log = logging.getLogger(__name__)


class InteractiveChild:
    """A running child: its input, its output, and how it ended."""

    def __init__(self, child: subprocess.Popen[bytes], note: Callable[[str], None]) -> None:
        self._child, self._note = child, note
        self.stderr = OutputTail()
        """The lines of its standard error, sanitised."""
        self.code: int | None = None
        """The exit status, or -N after signal N; None until the child has ended."""

    @property
    def pid(self) -> int:
        return self._child.pid

    def send(self, line: str) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{line}\n".encode())
            self._child.stdin.flush()
        except BrokenPipeError:
            log.info("the child no longer reads its input: %s", line)

    @property
    def outputs(self) -> list[IO[bytes]]:
        """The pipes to wait for with `select`, together with those of other children."""
        assert self._child.stdout is not None and self._child.stderr is not None
        return [self._child.stdout, self._child.stderr]

    def lines(self, poll_seconds: float = POLL_SECONDS) -> Iterator[bytes | None]:
        """The lines of its standard output until it ends, and None after each poll of up to `poll_seconds`."""
        child, rest, splitter = self._child, b"", LineSplitter()
        assert child.stdout is not None and child.stderr is not None
        process, exited_at = os.pidfd_open(child.pid), None
        try:
            with selectors.DefaultSelector() as selector:
                for source in (process, child.stdout, child.stderr):
                    selector.register(source, selectors.EVENT_READ)
                while exited_at is None or (len(selector.get_map()) and time.monotonic() < exited_at + DRAIN_SECONDS):
                    for key, _ in selector.select(poll_seconds):
                        if key.fileobj == process:
                            exited_at = time.monotonic()
                            selector.unregister(process)
                            continue
                        data = os.read(key.fd, 1 << 16)
                        if not data:
                            selector.unregister(key.fileobj)
                        elif key.fileobj is child.stdout:
                            *complete, rest = (rest + data).split(b"\n")
                            rest = rest[:MAX_LINE_BYTES]
                            yield from complete
                        else:
                            self._log_stderr(splitter.feed(data))
                    yield None
        finally:
            os.close(process)
            self._log_stderr(splitter.end())

    def _log_stderr(self, lines: Iterator[str]) -> None:
        for line in lines:
            for kept in self.stderr.note(line, is_output=False):
                self._note(kept)


@contextmanager
def interactive_child(
    argv: Sequence[str], *, cwd: Path, extra: Mapping[str, str], log_file: Path
) -> Iterator[InteractiveChild]:
    """Start a child and exchange lines with it. On exit, its input is closed, and then it and its descendants are ended.

    log_file   receives the lines of its standard error

    Raises PreconditionError if it cannot be started.
    """
    with log_file.open("w", encoding="utf-8", errors="backslashreplace") as file:

        def note(line: str) -> None:
            print(line, file=file, flush=True)

        with job_signals_blocked():
            process, mark = start_child(argv, cwd, extra, stdin=subprocess.PIPE)
        child = InteractiveChild(process, note)
        try:
            yield child
        finally:
            with suppress(BrokenPipeError):  # the child did not read its last line
                cast("IO[bytes]", process.stdin).close()
            child.code = end_child(process, mark)
