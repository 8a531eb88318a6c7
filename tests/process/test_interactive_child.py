"""An interactive child ends when its input ends, and not by a signal that goes to all processes of a job."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from engine.process.interactive_child import InteractiveChild, interactive_child
from engine.process.job_signals import JOB_SIGNALS

ECHO = "print('here', flush=True)\nfor line in __import__('sys').stdin: print('received', line.strip(), flush=True)"
LAUNCHER = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.DEVNULL)
for line in sys.stdin:
    if line == "end it\\n":
        worker.terminate()
        print("code", worker.wait(), flush=True)
"""
WORKER = """
import os, time
from engine.process.job_signals import obey_parent_signals_only
obey_parent_signals_only()
print(os.getpid(), flush=True)
time.sleep(60)
"""


def start(code: str, folder: Path, *arguments: str) -> AbstractContextManager[InteractiveChild]:
    return interactive_child(
        [sys.executable, "-c", code, *arguments], cwd=Path.cwd(), extra={}, log_file=folder / "child.log"
    )


def lines_of(child: InteractiveChild) -> Iterator[str]:
    return (line.decode() for line in child.lines() if line is not None)


@pytest.mark.parametrize("number", JOB_SIGNALS)
def test_a_signal_to_all_processes_of_a_job_does_not_end_the_child(number: int, tmp_path: Path):
    with start(ECHO, tmp_path) as child:
        lines = lines_of(child)
        assert next(lines) == "here"
        os.kill(child.pid, number)
        child.send("stop")
        assert next(lines) == "received stop"


def test_a_worker_of_the_child_ends_only_by_a_signal_from_its_parent(tmp_path: Path):
    with start(LAUNCHER, tmp_path, WORKER) as child:
        lines = lines_of(child)
        worker = int(next(lines))
        for number in JOB_SIGNALS:
            os.kill(worker, number)
        time.sleep(0.2)
        assert psutil.Process(worker).status() == psutil.STATUS_SLEEPING
        child.send("end it")
        assert next(lines) == f"code -{signal.SIGTERM:d}"


def test_the_child_ends_soon_after_its_input_is_closed(tmp_path: Path):
    with start(ECHO, tmp_path) as child:
        lines = lines_of(child)
        assert next(lines) == "here"
        started = time.monotonic()
    assert time.monotonic() - started < 2
    assert child.code == 0


def test_a_line_for_a_child_that_has_ended_is_lost_without_an_error(tmp_path: Path):
    with start("print('bye')", tmp_path) as child:
        assert list(lines_of(child)) == ["bye"]
        child.send("stop")
    assert child.code == 0
