"""The side that deals out the tasks: several workers, each on one task at a time, and the answers in the order of the tasks.

A task that its worker did not finish, because it was killed, goes to another one. The order makes sure that what is written
from the answers is what one process would have written, and that a run which stops early does so at the same place.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

from engine.core import layout
from engine.core.errors import ExitCode, Stage3Error, error_from_exit_code
from engine.core.events import Event, Message
from engine.process.children import DRAIN_SECONDS
from engine.process.environment import model_process_environment
from engine.process.interactive_child import InteractiveChild, interactive_child
from engine.process.kill import describe_exit
from engine.process.suspended import SuspendedProcesses
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line
from engine.storage.jsonl import dumps, loads
from engine.workers.rows import rows_between, share_file

LISTEN_SECONDS = 0.1
LOG_LINES, LOG_CHARACTERS = 4, 240
"""Of the end of a log, in an error."""
Task = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a worker made of one task."""

    rows: list[dict[str, Any]]
    facts: Mapping[str, Any]


@dataclass
class Worker:
    """One child."""

    number: int
    """From 0."""
    talk: InteractiveChild
    child: ExitStack
    """Closed, it is ended."""
    rows: Path
    heard: Iterator[bytes | None]
    facts: Mapping[str, Any] | None = None
    """What it knows of its model; None until it is ready."""
    task: int | None = None
    """The one it works on."""
    end: int = 0
    """Bytes of its file that were read, or were there before."""

    @property
    def is_free(self) -> bool:
        return self.facts is not None and self.task is None


@dataclass
class WorkerPool:
    """Children of one kind, started when there is something to do. Use as a context manager; at the end none of them is left.

    module     what each runs: `engine.workers.serve.serve` with what it loads
    requests   what each is asked to load, one for each that may be started
    doing      what they do, for sentences: "make pairs"
    """

    run: Run
    kind: str
    module: str
    requests: Sequence[Task]
    stop: StopToken
    doing: str
    threads: int = 1
    """Of each, on the CPU."""
    _alive: list[Worker] = field(default_factory=list)
    _started: int = 0
    _watch: SuspendedProcesses = field(default_factory=SuspendedProcesses)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._alive:
            worker.child.close()

    def grow(self, wanted: int) -> None:
        """Start workers until `wanted` were started, or as many as there are requests."""
        while self._started < min(wanted, len(self.requests)):
            self._alive.append(self._start(self._started))
            self._started += 1

    def facts(self) -> Mapping[str, Any]:
        """What the first worker that is ready knows of its model. Raises as `answers`."""
        self.grow(1)
        while (ready := next((worker for worker in self._alive if worker.facts is not None), None)) is None:
            for _ in self._listen({}, deque()):
                pass
        return ready.facts or {}

    def answers(self, tasks: Sequence[Task]) -> Iterator[str | Event | Answer]:
        """An Answer for each task, in order; between them each step that a worker began, and what happens to the workers.

        Raises Stopped, the error that a worker met, and Stage3Error if none of them is left.
        """
        self.grow(len(tasks))
        waiting, finished = deque(range(len(tasks))), dict[int, Answer]()
        for number in range(len(tasks)):
            while number not in finished:
                self._deal(tasks, waiting)
                yield from self._listen(finished, waiting)
            yield finished.pop(number)

    def _deal(self, tasks: Sequence[Task], waiting: deque[int]) -> None:
        for worker in self._alive:
            if waiting and worker.is_free:
                worker.task = waiting.popleft()
                self._tell(worker, tasks[worker.task])

    def _tell(self, worker: Worker, task: Task) -> None:
        """In a thread, because a worker that somebody stopped reads nothing."""
        Thread(target=worker.talk.send, args=(dumps(task),), daemon=True).start()

    def _listen(self, finished: dict[int, Answer], waiting: deque[int]) -> Iterator[str | Event]:
        """What all workers said since the last time, or within a moment."""
        self.stop.raise_if_requested()
        outputs = [file for worker in self._alive for file in worker.talk.outputs]
        select.select(outputs, [], [], LISTEN_SECONDS)
        for worker in list(self._alive):
            for line in worker.heard:
                if line is None:
                    break
                yield from self._understand(worker, line, finished)
            else:
                yield from self._lost(worker, waiting)
        yield from self._stopped_workers()

    def _understand(self, worker: Worker, line: bytes, finished: dict[int, Answer]) -> Iterator[str]:
        """A line that is none of ours, of a library perhaps, is passed over."""
        try:
            told = loads(line)
        except ValueError:
            return
        match told:
            case {"ready": dict(facts), "end": int(end)}:
                worker.facts, worker.end = facts, end
            case {"step": str(step)}:
                yield step
            case {"done": dict(facts), "end": int(end)} if worker.task is not None:
                finished[worker.task] = Answer(rows_between(worker.rows, worker.end, end), facts)
                worker.task, worker.end = None, end
            case {"failed": dict(failure)}:
                self._hear_out(worker)
                raise self._error(worker, failure)

    def _hear_out(self, worker: Worker) -> None:
        """Its traceback may still be on the way."""
        deadline = time.monotonic() + DRAIN_SECONDS
        for _ in worker.heard:
            if time.monotonic() > deadline:
                return
            select.select(worker.talk.outputs, [], [], LISTEN_SECONDS)

    def _lost(self, worker: Worker, waiting: deque[int]) -> Iterator[Event]:
        """It ended without a word: the others take up its task."""
        self._alive.remove(worker)
        if worker.task is not None:
            waiting.appendleft(worker.task)
        worker.child.close()
        how = describe_exit(worker.talk.code)
        who = self._name(worker.number)
        if not self._alive:
            last = "" if self._started == 1 else ", and none is left"
            raise Stage3Error(
                f"{who} ended {how}{last}.",
                f"The end of {self._log(worker)}: {self._log_end(worker)}",
                "The same command goes on from what they made, also with another --num-processes.",
            )
        others = "the other one takes" if len(self._alive) == 1 else f"the other {len(self._alive)} take"
        yield Message("warning", f"{who} ended {how}; {others} up its share. Its log is {self._log(worker)}.")

    def _error(self, worker: Worker, failure: Mapping[str, Any]) -> Stage3Error:
        what, why, what_to_do = (str(failure.get(name, "")) for name in ("what", "why", "what_to_do"))
        if failure.get("exit_code") != ExitCode.BUG:
            return error_from_exit_code(failure.get("exit_code"), what, why, what_to_do)
        return Stage3Error(
            f"{self._name(worker.number)} broke: {visible_line(what)}",
            f"The end of {self._log(worker)}: {self._log_end(worker)}",
            "The same command goes on from what they made, also with another --num-processes.",
        )

    def _stopped_workers(self) -> Iterator[Event]:
        pids = {worker.number: worker.talk.pid for worker in self._alive}
        for number, seconds in self._watch.look(pids):
            if not seconds:
                yield Message("info", f"Process {number} goes on.")
                continue
            text = f"{self._name(number)} (pid {pids[number]}) is stopped (SIGSTOP)."
            yield Message("warning", f"{text} `kill -CONT {pids[number]}` lets it go on.")

    def _name(self, number: int) -> str:
        return f"Process {number} of the {self._started} that {self.doing}"

    def _log(self, worker: Worker) -> str:
        return f"{layout.PROCESSES_DIR}/{self.kind}-{worker.number}.log"

    def _log_end(self, worker: Worker) -> str:
        last = [visible_line(line, LOG_CHARACTERS) for line in worker.talk.stderr.tail if line.strip()]
        return " / ".join(last[-LOG_LINES:]) or "nothing"

    def _start(self, number: int) -> Worker:
        rows, child = share_file(self.run, self.kind, number), ExitStack()
        (self.run / layout.PROCESSES_DIR).mkdir(parents=True, exist_ok=True)
        talk = child.enter_context(
            interactive_child(
                [sys.executable, "-m", self.module],
                cwd=Path.cwd(),
                extra={
                    **model_process_environment(),
                    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(self.threads),
                },
                log_file=self.run / layout.PROCESSES_DIR / f"{self.kind}-{number}.log",
            )
        )
        worker = Worker(number, talk, child, rows, talk.lines(poll_seconds=0))
        self._tell(worker, {**self.requests[number], "rows": str(rows)})
        return worker
