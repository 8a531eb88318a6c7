"""The parent's side: hands tasks to several workers, one at a time each, and yields the results in the order of the tasks.

If a worker is killed, its unfinished task goes to another one. The order ensures that what is written from the results is what
one process would have written, and that a run which stops early stops at the same place.
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
from engine.workers.tasks import Task, TaskResult

POLL_SECONDS = 0.1
LOG_LINES, LOG_CHARACTERS = 4, 240
"""How much of the end of a log an error quotes: lines, and characters of each."""
RESUME_HINT = "Run the same command again: it keeps the finished tasks, also with another --num-processes."


@dataclass
class Worker:
    """One child process."""

    number: int
    """From 0."""
    channel: InteractiveChild
    resources: ExitStack
    """Closing it ends the process."""
    rows: Path
    """The file that the worker appends its rows to."""
    lines: Iterator[bytes | None]
    """Its standard output, line by line; None when there is nothing to read at the moment."""
    facts: Mapping[str, Any] | None = None
    """What it reports about its model; None until it is ready."""
    task: int | None = None
    """The number of the task that it works on."""
    end: int = 0
    """How many bytes of its file have been read, or were there before."""

    @property
    def is_free(self) -> bool:
        return self.facts is not None and self.task is None


@dataclass
class WorkerPool:
    """Workers of one kind, started when there is something to do. Use as a context manager, which ends all of them.

    module     the module that each runs: it calls `engine.workers.serve.serve`
    requests   what each worker loads; there are at most as many workers as requests
    doing      what they do, as part of a sentence: "make pairs"
    """

    run: Run
    kind: str
    module: str
    requests: Sequence[Task]
    stop: StopToken
    doing: str
    threads: int = 1
    """Threads of each worker, on the CPU."""
    _alive: list[Worker] = field(default_factory=list)
    _started: int = 0
    _watch: SuspendedProcesses = field(default_factory=SuspendedProcesses)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._alive:
            worker.resources.close()

    def grow(self, wanted: int) -> None:
        """Start workers until there were `wanted` in all, or one for each request."""
        while self._started < min(wanted, len(self.requests)):
            self._alive.append(self._start(self._started))
            self._started += 1

    def facts(self) -> Mapping[str, Any]:
        """What the first worker to be ready reports about its model. Raises as `results`."""
        self.grow(1)
        while (ready := next((worker for worker in self._alive if worker.facts is not None), None)) is None:
            for _ in self._poll({}, deque()):
                pass
        return ready.facts or {}

    def results(self, tasks: Sequence[Task]) -> Iterator[str | Event | TaskResult]:
        """The TaskResult of each task, in order; between them the steps that workers begin, and what happens to the workers.

        Raises Stopped, the error of a worker, and Stage3Error if no worker is left.
        """
        self.grow(len(tasks))
        waiting, finished = deque(range(len(tasks))), dict[int, TaskResult]()
        for number in range(len(tasks)):
            while number not in finished:
                self._assign(tasks, waiting)
                yield from self._poll(finished, waiting)
            yield finished.pop(number)

    def _assign(self, tasks: Sequence[Task], waiting: deque[int]) -> None:
        for worker in self._alive:
            if waiting and worker.is_free:
                worker.task = waiting.popleft()
                self._send(worker, tasks[worker.task])

    def _send(self, worker: Worker, task: Task) -> None:
        """Send in a thread, because a stopped process (SIGSTOP) reads nothing and a write could block."""
        Thread(target=worker.channel.send, args=(dumps(task),), daemon=True).start()

    def _poll(self, finished: dict[int, TaskResult], waiting: deque[int]) -> Iterator[str | Event]:
        """Handle everything that the workers have sent since the last poll, or send within POLL_SECONDS."""
        self.stop.raise_if_requested()
        outputs = [file for worker in self._alive for file in worker.channel.outputs]
        select.select(outputs, [], [], POLL_SECONDS)
        for worker in list(self._alive):
            for line in worker.lines:
                if line is None:
                    break
                yield from self._handle(worker, line, finished)
            else:
                yield from self._died(worker, waiting)
        yield from self._stopped_workers()

    def _handle(self, worker: Worker, line: bytes, finished: dict[int, TaskResult]) -> Iterator[str]:
        """Handle one message. Lines that are not JSON, such as a library's output, are ignored."""
        try:
            message = loads(line)
        except ValueError:
            return
        match message:
            case {"ready": dict(facts), "end": int(end)}:
                worker.facts, worker.end = facts, end
            case {"step": str(step)}:
                yield step
            case {"done": dict(facts), "end": int(end)} if worker.task is not None:
                finished[worker.task] = TaskResult(rows_between(worker.rows, worker.end, end), facts)
                worker.task, worker.end = None, end
            case {"failed": dict(failure)}:
                self._drain(worker)
                raise self._error(worker, failure)

    def _drain(self, worker: Worker) -> None:
        """Read on until the worker has ended: its traceback may still be on the way."""
        deadline = time.monotonic() + DRAIN_SECONDS
        for _ in worker.lines:
            if time.monotonic() > deadline:
                return
            select.select(worker.channel.outputs, [], [], POLL_SECONDS)

    def _died(self, worker: Worker, waiting: deque[int]) -> Iterator[Event]:
        """The worker ended without reporting an error: its task goes to the others."""
        self._alive.remove(worker)
        if worker.task is not None:
            waiting.appendleft(worker.task)
        worker.resources.close()
        how = describe_exit(worker.channel.code)
        who = self._name(worker.number)
        if not self._alive:
            last = "" if self._started == 1 else ", and none is left"
            raise Stage3Error(
                f"{who} ended {how}{last}.",
                f"The end of {self._log(worker)}: {self._log_end(worker)}",
                RESUME_HINT,
            )
        others = "the other one takes" if len(self._alive) == 1 else f"the other {len(self._alive)} take"
        yield Message("warning", f"{who} ended {how}; {others} over its work. Its log is {self._log(worker)}.")

    def _error(self, worker: Worker, failure: Mapping[str, Any]) -> Stage3Error:
        what, why, what_to_do = (str(failure.get(name, "")) for name in ("what", "why", "what_to_do"))
        if failure.get("exit_code") != ExitCode.BUG:
            return error_from_exit_code(failure.get("exit_code"), what, why, what_to_do)
        return Stage3Error(
            f"{self._name(worker.number)} crashed: {visible_line(what)}",
            f"The end of {self._log(worker)}: {self._log_end(worker)}",
            RESUME_HINT,
        )

    def _stopped_workers(self) -> Iterator[Event]:
        pids = {worker.number: worker.channel.pid for worker in self._alive}
        for number, seconds in self._watch.poll(pids):
            if not seconds:
                yield Message("info", f"Process {number} continues.")
                continue
            text = f"{self._name(number)} (pid {pids[number]}) is stopped (SIGSTOP)."
            yield Message("warning", f"{text} To continue it: `kill -CONT {pids[number]}`.")

    def _name(self, number: int) -> str:
        return f"Process {number} of the {self._started} that {self.doing}"

    def _log(self, worker: Worker) -> str:
        return f"{layout.PROCESSES_DIR}/{self.kind}-{worker.number}.log"

    def _log_end(self, worker: Worker) -> str:
        last = [visible_line(line, LOG_CHARACTERS) for line in worker.channel.stderr.tail if line.strip()]
        return " / ".join(last[-LOG_LINES:]) or "nothing"

    def _start(self, number: int) -> Worker:
        rows, resources = share_file(self.run, self.kind, number), ExitStack()
        (self.run / layout.PROCESSES_DIR).mkdir(parents=True, exist_ok=True)
        channel = resources.enter_context(
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
        worker = Worker(number, channel, resources, rows, channel.lines(poll_seconds=0))
        self._send(worker, {**self.requests[number], "rows": str(rows)})
        return worker
