"""Tasks dealt out to several processes: answers in order, whoever dies, stops or fails on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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
from engine.workers.pool import Answer, WorkerPool
from engine.workers.rows import left_rows, remove_shares, share_file
from engine.workers.shares import Share, shared_out

WORKER = "tests.support.echo_worker"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Callable[..., WorkerPool]]:
    """Starts a pool of echo workers in the run folder of the test."""
    begun = []

    def start(processes: int = 2) -> WorkerPool:
        asked = [{"context length": 512}] * processes
        found = WorkerPool(Run(tmp_path / "run"), "echo", WORKER, asked, StopToken(), "echo")
        begun.append(found)
        return found.__enter__()

    yield start
    for found in begun:
        found.__exit__(None, None, None)


def answers(pool: WorkerPool, tasks: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The texts of the answers, and the messages."""
    texts, messages = [], []
    for told in pool.answers(tasks):
        if isinstance(told, Answer):
            texts.append(told.rows[0]["text"])
        elif isinstance(told, Message):
            messages.append(told.text)
    return texts, messages


def texts(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"text": str(number), **more} for number in range(count)]


def test_answers_come_in_the_order_of_the_tasks_though_the_first_takes_longest(pool):
    asked = texts(6)
    asked[0]["sleep"] = 0.4
    assert answers(pool(), asked) == ([str(number) for number in range(6)], [])


def test_all_processes_take_part_and_each_writes_a_file_of_its_own(pool, tmp_path):
    both = pool()
    assert both.facts() == {"context length": 512}
    by = {told.rows[0]["by"] for told in both.answers(texts(6, sleep=0.5)) if isinstance(told, Answer)}
    files = [share_file(Run(tmp_path / "run"), "echo", number) for number in (0, 1)]
    assert len(by) == 2 and all(path.read_text() for path in files)


def test_the_steps_of_a_task_are_told_and_what_a_library_prints_goes_into_the_log(pool, tmp_path):
    told = list(pool(1).answers(texts(1)))
    assert told[0] == "begins 0" and isinstance(told[-1], Answer)
    assert "a library greets" in (tmp_path / "run" / layout.PROCESSES_DIR / "echo-0.log").read_text()


def test_a_process_that_is_killed_is_named_and_another_takes_up_its_task(pool, tmp_path):
    asked = texts(5)
    asked[1]["dies"] = str(tmp_path / "died")
    found, messages = answers(pool(), asked)
    assert found == [str(number) for number in range(5)]
    [message] = messages
    assert "ended by SIGKILL, as the kernel does if memory runs out; the other one takes up its share" in message
    assert "logs/processes/echo-" in message


def test_if_all_are_killed_the_error_names_the_last_and_the_end_of_its_log(pool):
    asked = texts(3)
    asked[1]["always dies"] = True
    with pytest.raises(Stage3Error, match=r"Process \d of the 2 that echo ended by SIGKILL.*none is left") as ended:
        answers(pool(), asked)
    assert "a library greets" in ended.value.why


def test_an_error_that_a_person_can_fix_is_the_error_of_the_whole(pool):
    with pytest.raises(NumbersError, match="The logits are NaN") as failed:
        answers(pool(), texts(3, fails=True))
    assert failed.value.what_to_do == "Use --dtype float32."


def test_a_bug_is_told_with_the_process_and_the_end_of_its_log(pool):
    with pytest.raises(Stage3Error, match=r"of the 2 that echo broke: ZeroDivisionError: a bug") as broke:
        answers(pool(), texts(3, breaks=True))
    assert "raise ZeroDivisionError" in broke.value.why


def test_a_stop_ends_the_wait_and_no_process_is_left(pool):
    both = pool()
    told = both.answers(texts(2, sleep=60))
    assert next(told) in ("begins 0", "begins 1")
    pids = [worker.talk.pid for worker in both._alive]
    both.stop.request("asked")
    with pytest.raises(Stopped):
        list(told)
    both.__exit__(None, None, None)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_process_that_somebody_stopped_is_told_of_and_goes_on(pool, monkeypatch):
    monkeypatch.setattr(suspended, "SUSPENDED_SECONDS", 0.2)
    monkeypatch.setattr(suspended, "LOOK_SECONDS", 0.05)
    one, messages = pool(1), []
    for told in one.answers(texts(1, sleep=0.5)):
        if told == "begins 0":
            os.kill(one._alive[0].talk.pid, signal.SIGSTOP)
        if isinstance(told, Message):
            messages.append(told.text)
            os.kill(one._alive[0].talk.pid, signal.SIGCONT)
    assert "is stopped (SIGSTOP)" in messages[0] and "goes on" in messages[1]


KILLED = """
import sys
from pathlib import Path
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.workers.pool import WorkerPool
with WorkerPool(Run(Path(sys.argv[1])), "echo", sys.argv[2], [{"context length": 1}], StopToken(), "echo") as pool:
    for told in pool.answers([{"text": "0", "sleep": 60}]):
        print(pool._alive[0].talk.pid, flush=True)
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
    """A zombie without a parent that waits for it is as dead as can be."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_what_an_earlier_start_left_is_not_made_again(pool, tmp_path):
    run = Run(tmp_path / "run")
    list(pool(2).answers([{"text": "2"}, {"text": "3"}]))
    left = {row["text"]: row for row in left_rows(run, "echo")}
    assert set(left) == {"2", "3"}
    made: list[str] = []

    def task_of(batch: Any) -> dict[str, Any]:
        made.append(batch[0])
        return {"text": batch[0]}

    batches = [[str(number)] for number in range(5)]
    shares = [each for each in shared_out(pool(), batches, left.get, task_of) if isinstance(each, Share)]
    assert [share.rows[0]["text"] for share in shares] == ["0", "1", "2", "3", "4"]
    assert made == ["0", "1", "4"]
    remove_shares(run, "echo")
    assert not (run / layout.SHARES_DIR).exists()
