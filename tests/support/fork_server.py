"""Many runs of the program, each in a process of its own, without many imports of torch: a server imports it all once, and forks.

What a test gets is a real process: it has a lock, signals, an exit code and a standard error of its own, and can be killed.
The server has one thread, so that a fork is safe.
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
TOO_LONG = 240


def tiny(folder: Path, **options: object) -> list[str]:
    """The command line of a run of a few seconds, once torch is imported."""
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
    """How often a fail point did something. Not known of a process that was killed: then 0."""
    reached: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """From start to end."""
    cpu: float = 0.0
    """Seconds of a processor."""


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
        self._heard()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    @contextmanager
    def terminal(self) -> Iterator[int]:
        """What is started within has a terminal: the file is where a person types, and must read."""
        ours, theirs = pty.openpty()
        self._terminal = os.ttyname(theirs)
        try:
            yield ours
        finally:
            self._terminal = ""
            os.close(ours)
            os.close(theirs)

    def start(self, arguments: Sequence[str], *, rules: str = "", stages: Sequence[str] = ()) -> int:
        """Its process id.

        rules    of `engine.core.failpoints`, counted from this start
        stages   instead of all ten
        """
        asked = {"arguments": list(arguments), "rules": rules, "stages": list(stages), "scratch": str(self.scratch)}
        self._say({**asked, "terminal": self._terminal})
        self._started = time.monotonic()
        self._pid = int(self._heard()["pid"])
        return self._pid

    def end(self, *, kill_after: float | None = None, kill_more_after: float | None = None) -> Ended:
        """Wait until it ends; it gets SIGKILL so many seconds after its start, or so many more."""
        if kill_more_after is not None:
            kill_after = time.monotonic() - self._started + kill_more_after
        if kill_after is not None:
            time.sleep(max(self._started + kill_after - time.monotonic(), 0))
            os.kill(self._pid, signal.SIGKILL)
        self._say({"wait": True})
        told = self._heard()
        seconds = time.monotonic() - self._started
        return Ended(
            told["code"], (self.scratch / "stderr").read_text(), told["fired"], told["reached"], seconds, told["cpu"]
        )

    def run(self, arguments: Sequence[str], *, rules: str = "", stages: Sequence[str] = ()) -> Ended:
        self.start(arguments, rules=rules, stages=stages)
        return self.end()

    def _say(self, asked: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def _heard(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server of processes has ended"
        told: dict[str, Any] = json.loads(line)
        return told


# -- the server's own process ------------------------------------------------------------------------------------------


def serve() -> None:
    from engine.machine.memory import no_garbage_collection
    from engine.process.environment import quiet_libraries

    quiet_libraries()
    with no_garbage_collection():
        import datasets  # noqa: F401
        import torch

        import engine.dpo.training.trl_trainer
        import engine.pipeline.session  # noqa: F401

        gc.freeze()  # else each process looks through all of it, and gets a copy of the pages where it does
    torch.set_num_threads(1)
    _tell({"ready": True})
    pid, scratch = 0, Path()
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            code, cpu = _wait(pid)
            _tell({"code": code, "cpu": cpu, **_counted(scratch)})
            continue
        scratch = Path(asked["scratch"])
        (scratch / "counted").unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            _child(asked, scratch)
        _tell({"pid": pid})


def _wait(pid: int) -> tuple[int, float]:
    """Exit code and CPU seconds; a process that hangs is killed."""
    end = time.monotonic() + TOO_LONG
    while time.monotonic() < end:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGKILL, 0.0


def _child(asked: dict[str, Any], scratch: Path) -> None:
    """Never returns."""
    code = 1  # as Python itself would end
    try:
        _redirect(scratch, asked["terminal"])
        code = _run_program(asked, scratch)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(scratch: Path, terminal: str) -> None:
    """Give the program its own stdin, stdout and stderr, not the server's."""
    writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if terminal:
        os.setsid()  # the first terminal that is opened now is the session's
    places = (
        (terminal or os.devnull, os.O_RDWR, 0),
        (terminal or str(scratch / "stdout"), writing, 1),
        (str(scratch / "stderr"), writing, 2),
    )
    for place, flags, file in places:
        opened = os.open(place, flags, 0o600)
        os.dup2(opened, file)
        os.close(opened)


def _run_program(asked: dict[str, Any], scratch: Path) -> int:
    from engine.core.failpoints import failing
    from engine.pipeline import loop, session
    from tui.cli import main

    if asked["stages"]:
        loop.STAGES = session.STAGES = tuple(asked["stages"])  # type: ignore[misc,attr-defined]
        asked["arguments"] += ["--until", asked["stages"][-1]]
    with failing(asked["rules"]) as armed:
        try:
            return main(asked["arguments"])
        finally:
            (scratch / "counted").write_text(json.dumps({"fired": armed.fired, "reached": armed.reached}))


def _counted(scratch: Path) -> dict[str, Any]:
    try:
        counted: dict[str, Any] = json.loads((scratch / "counted").read_text())
    except FileNotFoundError:
        return {"fired": 0, "reached": {}}
    return counted


def _tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    serve()
