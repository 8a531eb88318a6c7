"""A child that is told words: it ends when its input ends, and not by a signal that all processes of a job get."""

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

ECHO = "print('here', flush=True)\nfor line in __import__('sys').stdin: print('told', line.strip(), flush=True)"
LAUNCHER = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.DEVNULL)
for word in sys.stdin:
    if word == "end it\\n":
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


def talk_with(code: str, folder: Path, *arguments: str) -> AbstractContextManager[InteractiveChild]:
    return interactive_child(
        [sys.executable, "-c", code, *arguments], cwd=Path.cwd(), extra={}, log_file=folder / "child.log"
    )


def said_by(talk: InteractiveChild) -> Iterator[str]:
    return (line.decode() for line in talk.lines() if line is not None)


@pytest.mark.parametrize("number", JOB_SIGNALS)
def test_a_signal_that_all_processes_of_a_job_get_does_not_end_the_child(number: int, tmp_path: Path):
    with talk_with(ECHO, tmp_path) as talk:
        said = said_by(talk)
        assert next(said) == "here"
        os.kill(talk.pid, number)
        talk.send("stop")
        assert next(said) == "told stop"


def test_what_the_child_starts_ends_by_the_signal_of_its_parent_and_by_nobody_elses(tmp_path: Path):
    with talk_with(LAUNCHER, tmp_path, WORKER) as talk:
        said = said_by(talk)
        worker = int(next(said))
        for number in JOB_SIGNALS:
            os.kill(worker, number)
        time.sleep(0.2)
        assert psutil.Process(worker).status() == psutil.STATUS_SLEEPING
        talk.send("end it")
        assert next(said) == f"code -{signal.SIGTERM:d}"


def test_it_ends_soon_when_nobody_talks_with_it_any_more(tmp_path: Path):
    with talk_with(ECHO, tmp_path) as talk:
        said = said_by(talk)
        assert next(said) == "here"
        began = time.monotonic()
    assert time.monotonic() - began < 2
    assert talk.code == 0


def test_a_word_for_a_child_that_has_ended_is_lost_without_an_error(tmp_path: Path):
    with talk_with("print('bye')", tmp_path) as talk:
        assert list(said_by(talk)) == ["bye"]
        talk.send("stop")
    assert talk.code == 0
