"""Runs the program many times, each time in its own process, without importing torch each time: a server imports it
once and forks.

A test gets a real process with its own lock, signals, exit code and standard error, which can be killed. The server has
only one thread, so forking is safe.
"""

from __future__ import annotations

import gc
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.short_demo import SHORT

ROOT = Path(__file__).parents[2]
MAKING = ("adapter", "pairs", "quality", "training")
TINY = {
    **SHORT,
    "num_examples": 10,
    "split": "train[:12]",
    "min_pairs": 4,
    "eval_prompts": 1,
    "eval_harmless_prompts": 1,
    "num_train_epochs": 3.0,
    "judge": "none",
    "accept_quality": "nobody judges them",
}
"""Three steps of training, and a checkpoint after each."""
TIMEOUT_SECONDS = 240


def tiny(folder: Path, **options: object) -> list[str]:
    """The command line of a run that takes a few seconds once torch is imported."""
    given = [
        text for name, value in {**TINY, **options}.items() for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    return ["--auto", "--demo", "--json", "--output-dir", str(folder), *given]


@dataclass
class Ended:
    """A process that has ended."""

    code: int
    """Negative: the signal that ended it."""
    errors: str
    fired: int = 0
    """How often a fail point fired; 0 for a process that was killed, where it is unknown."""
    reached: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """Wall time from start to end."""
    cpu: float = 0.0
    """CPU seconds."""


@dataclass
class ForkServer:
    """Starts one process at a time."""

    scratch: Path
    _process: subprocess.Popen[str] | None = None
    _terminal: str = ""
    _pid: int = 0
    _started: float = 0.0

    def __enter__(self) -> ForkServer:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        self._receive()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    @contextmanager
    def terminal(self) -> Iterator[int]:
        """Processes started inside the block get a terminal. Yields its other end, where a person types, and which must be read."""
        ours, theirs = pty.openpty()
        self._terminal = os.ttyname(theirs)
        try:
            yield ours
        finally:
            self._terminal = ""
            os.close(ours)
            os.close(theirs)

    def start(self, arguments: Sequence[str], *, rules: str = "", stages: Sequence[str] = ()) -> int:
        """Start the program; returns its process id.

        rules    of `engine.core.failpoints`, counted from this start
        stages   to run instead of all ten
        """
        request = {"arguments": list(arguments), "rules": rules, "stages": list(stages), "scratch": str(self.scratch)}
        self._send({**request, "terminal": self._terminal})
        self._started = time.monotonic()
        self._pid = int(self._receive()["pid"])
        return self._pid

    def end(self, *, kill_after: float | None = None, kill_more_after: float | None = None) -> Ended:
        """Wait until the process ends. Send SIGKILL `kill_after` seconds after its start, or `kill_more_after` seconds from now."""
        if kill_more_after is not None:
            kill_after = time.monotonic() - self._started + kill_more_after
        if kill_after is not None:
            time.sleep(max(self._started + kill_after - time.monotonic(), 0))
            os.kill(self._pid, signal.SIGKILL)
        self._send({"wait": True})
        response = self._receive()
        seconds = time.monotonic() - self._started
        return Ended(
            response["code"],
            (self.scratch / "stderr").read_text(),
            response["fired"],
            response["reached"],
            seconds,
            response["cpu"],
        )

    def run(self, arguments: Sequence[str], *, rules: str = "", stages: Sequence[str] = ()) -> Ended:
        self.start(arguments, rules=rules, stages=stages)
        return self.end()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the fork server has ended"
        response: dict[str, Any] = json.loads(line)
        return response


# -- in the server's process -------------------------------------------------------------------------------------------


def serve() -> None:
    from engine.machine.memory import no_garbage_collection
    from engine.process.environment import quiet_libraries

    quiet_libraries()
    with no_garbage_collection():
        import datasets  # noqa: F401
        import torch

        import engine.dpo.training.trl_trainer
        import engine.pipeline.session  # noqa: F401

        gc.freeze()  # otherwise each child's garbage collector scans all objects, which copies their pages
    torch.set_num_threads(1)
    _respond({"ready": True})
    pid, scratch = 0, Path()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            code, cpu = _wait(pid)
            _respond({"code": code, "cpu": cpu, **_counters(scratch)})
            continue
        scratch = Path(request["scratch"])
        (scratch / "counters").unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            _child(request, scratch)
        _respond({"pid": pid})


def _wait(pid: int) -> tuple[int, float]:
    """(exit code, CPU seconds). A process that hangs is killed."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < end:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGKILL, 0.0


def _child(request: dict[str, Any], scratch: Path) -> None:
    """Never returns."""
    code = 1  # Python's own exit code for an exception
    try:
        _redirect(scratch, request["terminal"])
        code = _run_program(request, scratch)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(scratch: Path, terminal: str) -> None:
    """Replace the server's stdin, stdout and stderr with the program's own."""
    writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if terminal:
        os.setsid()  # the first terminal opened from now on becomes the session's
    targets = (
        (terminal or os.devnull, os.O_RDWR, 0),
        (terminal or str(scratch / "stdout"), writing, 1),
        (str(scratch / "stderr"), writing, 2),
    )
    for path, flags, file in targets:
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, file)
        os.close(opened)


def _run_program(request: dict[str, Any], scratch: Path) -> int:
    from engine.core.failpoints import failing
    from engine.pipeline import loop, session
    from tui.cli import main

    if request["stages"]:
        loop.STAGES = session.STAGES = tuple(request["stages"])  # type: ignore[misc,attr-defined]
        request["arguments"] += ["--until", request["stages"][-1]]
    with failing(request["rules"]) as armed:
        try:
            return main(request["arguments"])
        finally:
            (scratch / "counters").write_text(json.dumps({"fired": armed.fired, "reached": armed.reached}))


def _counters(scratch: Path) -> dict[str, Any]:
    try:
        counters: dict[str, Any] = json.loads((scratch / "counters").read_text())
    except FileNotFoundError:
        return {"fired": 0, "reached": {}}
    return counters


def _respond(response: dict[str, Any]) -> None:
    print(json.dumps(response), flush=True)


if __name__ == "__main__":
    serve()
