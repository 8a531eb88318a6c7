"""A worker without a model: it returns a task's text, after sleeping, killing itself or failing as the task requires."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from pathlib import Path

from engine.core.errors import NumbersError
from engine.workers.serve import Loaded, serve
from engine.workers.tasks import Task, TaskResult


def load(request: Task) -> Loaded:
    print("a library greets", flush=True)
    return Loaded(work, {"context length": request["context length"]})


def work(task: Task) -> Generator[str, None, TaskResult]:
    yield f"begins {task['text']}"
    time.sleep(task.get("sleep", 0.0))
    if task.get("dies") and not Path(task["dies"]).exists():
        Path(task["dies"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if task.get("always dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.get("fails"):
        raise NumbersError("The logits are NaN.", "Float16 overflowed.", "Use --dtype float32.")
    if task.get("breaks"):
        raise ZeroDivisionError("a bug")
    return TaskResult([{"text": task["text"], "by": os.getpid()}], {"tokens": 1})


if __name__ == "__main__":
    serve(load)
