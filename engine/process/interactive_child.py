"""A child that tells lines on its standard output and is told words on its standard input, until it ends.

If this process ends in any way, the kernel closes the pipe: the child reads the end of its input, and knows. A signal that all
processes of a job get does not end it (`job_signals`).
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
"""Bytes of a line that the child tells; what is longer is no line of ours."""

log = logging.getLogger(__name__)


class InteractiveChild:
    """What was heard from the child, and how it ended."""

    def __init__(self, child: subprocess.Popen[bytes], note: Callable[[str], None]) -> None:
        self._child, self._note = child, note
        self.stderr = OutputTail()
        """The lines of its standard error, sanitised."""
        self.code: int | None = None
        """Its exit status, -N after signal N; None until the conversation has ended."""

    @property
    def pid(self) -> int:
        return self._child.pid

    def send(self, word: str) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{word}\n".encode())
            self._child.stdin.flush()
        except BrokenPipeError:
            log.info("the child does not listen any more: %s", word)

    @property
    def outputs(self) -> list[IO[bytes]]:
        """What to wait for, with `select`, beside other children's."""
        assert self._child.stdout is not None and self._child.stderr is not None
        return [self._child.stdout, self._child.stderr]

    def lines(self, poll_seconds: float = POLL_SECONDS) -> Iterator[bytes | None]:
        """The lines of its standard output until it has ended; None after each time that none has come for `poll_seconds`."""
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
                            *whole, rest = (rest + data).split(b"\n")
                            rest = rest[:MAX_LINE_BYTES]
                            yield from whole
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
    """Start a child and talk with it. At the end its input ends, and then it and its descendants are ended.

    Raises PreconditionError if it cannot start.

    log_file   for the lines of its standard error
    """
    with log_file.open("w", encoding="utf-8", errors="backslashreplace") as file:

        def note(line: str) -> None:
            print(line, file=file, flush=True)

        with job_signals_blocked():
            child, mark = start_child(argv, cwd, extra, stdin=subprocess.PIPE)
        talk = InteractiveChild(child, note)
        try:
            yield talk
        finally:
            with suppress(BrokenPipeError):  # a word that it did not hear any more
                cast("IO[bytes]", child.stdin).close()
            talk.code = end_child(child, mark)
