"""Tasks distributed to several processes: results in order, even if processes die, are stopped or fail on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from engine.core.errors import NumbersError, Stage3Error, Stopped
from engine.core.events import Message
from engine.process import suspended
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.workers.distribution import FinishedBatch, distribute
from engine.workers.pool import WorkerPool
from engine.workers.rows import earlier_rows, remove_shares, share_file
from engine.workers.tasks import TaskResult

WORKER = "tests.support.echo_worker"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Callable[..., WorkerPool]]:
    """Start a pool of echo workers in the test's run folder."""
    started = []

    def start(processes: int = 2) -> WorkerPool:
        requests = [{"context length": 512}] * processes
        pool = WorkerPool(Run(tmp_path / "run"), "echo", WORKER, requests, StopToken(), "echo")
        started.append(pool)
        return pool.__enter__()

    yield start
    for pool in started:
        pool.__exit__(None, None, None)


def run_tasks(pool: WorkerPool, tasks: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The texts of the results, and the messages."""
    texts, messages = [], []
    for item in pool.results(tasks):
        if isinstance(item, TaskResult):
            texts.append(item.rows[0]["text"])
        elif isinstance(item, Message):
            messages.append(item.text)
    return texts, messages


def echo_tasks(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"text": str(number), **more} for number in range(count)]


def test_results_come_in_the_order_of_the_tasks_even_if_the_first_takes_longest(pool):
    tasks = echo_tasks(6)
    tasks[0]["sleep"] = 0.4
    assert run_tasks(pool(), tasks) == ([str(number) for number in range(6)], [])


def test_all_processes_take_part_and_each_writes_its_own_file(pool, tmp_path):
    both = pool()
    both.grow(2)
    while any(worker.facts is None for worker in both._alive):  # on a busy machine, one is ready long before the other
        list(both._poll({}, deque()))
    assert both.facts() == {"context length": 512}
    by = {item.rows[0]["by"] for item in both.results(echo_tasks(6, sleep=0.1)) if isinstance(item, TaskResult)}
    files = [share_file(Run(tmp_path / "run"), "echo", number) for number in (0, 1)]
    assert len(by) == 2 and all(path.read_text() for path in files)


def test_the_steps_of_a_task_are_reported_and_a_library_s_output_goes_to_the_log(pool, tmp_path):
    items = list(pool(1).results(echo_tasks(1)))
    assert items[0] == "begins 0" and isinstance(items[-1], TaskResult)
    assert "a library greets" in (tmp_path / "run" / layout.PROCESSES_DIR / "echo-0.log").read_text()


def test_a_killed_process_is_named_and_another_takes_over_its_task(pool, tmp_path):
    tasks = echo_tasks(5)
    tasks[1]["dies"] = str(tmp_path / "died")
    found, messages = run_tasks(pool(), tasks)
    assert found == [str(number) for number in range(5)]
    [message] = messages
    assert "ended by SIGKILL, as the kernel does if memory runs out; the other one takes over its work" in message
    assert "logs/processes/echo-" in message


def test_if_all_are_killed_the_error_names_the_last_and_quotes_the_end_of_its_log(pool):
    tasks = echo_tasks(3)
    tasks[1]["always dies"] = True
    with pytest.raises(Stage3Error, match=r"Process \d of the 2 that echo ended by SIGKILL.*none is left") as ended:
        run_tasks(pool(), tasks)
    assert "a library greets" in ended.value.why


def test_an_error_that_a_person_can_fix_becomes_the_error_of_the_pool(pool):
    with pytest.raises(NumbersError, match="The logits are NaN") as failed:
        run_tasks(pool(), echo_tasks(3, fails=True))
    assert failed.value.what_to_do == "Use --dtype float32."


def test_a_bug_is_reported_with_the_process_and_the_end_of_its_log(pool):
    with pytest.raises(Stage3Error, match=r"of the 2 that echo crashed: ZeroDivisionError: a bug") as crashed:
        run_tasks(pool(), echo_tasks(3, breaks=True))
    assert "raise ZeroDivisionError" in crashed.value.why


def test_a_stop_ends_the_wait_and_no_process_is_left(pool):
    both = pool()
    items = both.results(echo_tasks(2, sleep=60))
    assert next(items) in ("begins 0", "begins 1")
    pids = [worker.channel.pid for worker in both._alive]
    both.stop.request("asked")
    with pytest.raises(Stopped):
        list(items)
    both.__exit__(None, None, None)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_stopped_process_is_reported_and_continues(pool, monkeypatch):
    monkeypatch.setattr(suspended, "SUSPENDED_SECONDS", 0.2)
    monkeypatch.setattr(suspended, "POLL_SECONDS", 0.05)
    one, messages = pool(1), []
    for item in one.results(echo_tasks(1, sleep=0.5)):
        if item == "begins 0":
            os.kill(one._alive[0].channel.pid, signal.SIGSTOP)
        if isinstance(item, Message):
            messages.append(item.text)
            os.kill(one._alive[0].channel.pid, signal.SIGCONT)
    assert "is stopped (SIGSTOP)" in messages[0] and "continues" in messages[1]


KILLED = """
import sys
from pathlib import Path
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.workers.pool import WorkerPool
with WorkerPool(Run(Path(sys.argv[1])), "echo", sys.argv[2], [{"context length": 1}], StopToken(), "echo") as pool:
    for _ in pool.results([{"text": "0", "sleep": 60}]):
        print(pool._alive[0].channel.pid, flush=True)
"""


def test_if_the_run_is_killed_its_processes_end(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), WORKER], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and _lives(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    """A zombie, or a process that is gone, does not live."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_rows_of_an_earlier_start_are_not_made_again(pool, tmp_path):
    run = Run(tmp_path / "run")
    list(pool(2).results([{"text": "2"}, {"text": "3"}]))
    left = {row["text"]: row for row in earlier_rows(run, "echo")}
    assert set(left) == {"2", "3"}
    made: list[str] = []

    def task_of(batch: Any) -> dict[str, Any]:
        made.append(batch[0])
        return {"text": batch[0]}

    batches = [[str(number)] for number in range(5)]
    items = [*distribute(pool(), batches, left.get, task_of)]
    finished = [item for item in items if isinstance(item, FinishedBatch)]
    assert [batch.rows[0]["text"] for batch in finished] == ["0", "1", "2", "3", "4"]
    assert made == ["0", "1", "4"]
    remove_shares(run, "echo")
    assert not (run / layout.SHARES_DIR).exists()
