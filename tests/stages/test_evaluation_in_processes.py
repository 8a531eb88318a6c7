"""The evaluation by two processes: the report of one, also after one of them was killed, or after a stop."""

from __future__ import annotations

import gc
import json
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from engine.core import layout
from engine.core.errors import NumbersError, Stopped
from engine.core.events import Event, Message, Progress
from engine.dpo.evaluation.in_processes import KIND, RunTasksInProcesses, reusing_results, task_handler, task_key
from engine.dpo.evaluation.policies import load_policies
from engine.dpo.evaluation.report import evaluate
from engine.dpo.evaluation.tasks import Results, Task
from engine.dpo.training.trainer import save_adapter
from engine.models.generation import sampling
from engine.models.tensors import adapter_tensors, hash_tensors
from engine.pairs.judges import exam
from engine.run.context import Context
from engine.run.stop import StopToken
from engine.stages.load_judge import judge_loader
from engine.stages.pair_processes import evaluation_process_count, evaluation_workers
from engine.storage.jsonl import dumps
from engine.workers.rows import share_file
from tests.conftest import run_stage
from tests.support.kill_a_worker import kill_a_worker
from tests.support.pool_here import PoolHere
from tests.support.tiny_models import build_context, pairs
from tests.support.trainings import train

ROWS: Any = pairs(20)[12:]


@pytest.fixture(autouse=True)
def threads_of_a_worker() -> Iterator[None]:
    """Two processes share two cores, and sums over more threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trained(stage2: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Context, Any]:
    """A run that is ready for its evaluation, with batches of 2 and a judge that passes its exam."""
    monkeypatch.setattr(exam, "MIN_ACCURACY", 0.0)  # a model of random numbers would not pass
    monkeypatch.setattr(exam, "MIN_LETTER_PROBABILITY", 0.0)
    context = build_context(
        tmp_path / "run", *stage2, judge="self", eval_harmless_prompts=3, generation_batch_size=2, save_steps=100
    )
    _, made = run_stage(train(context, pairs(12)))  # type: ignore[arg-type]
    save_adapter(made, context.run / layout.ADAPTER_DIR, base_name="base", base_revision=None)
    return context, made


def comparing(context: Context, made: Any, elsewhere: Any = None) -> Any:
    load_judge = judge_loader(context)
    return evaluate(context.config, context.run, made, ROWS, load_judge, context.stop, elsewhere)


def report_of(context: Context) -> bytes:
    return (context.run / layout.EVALUATION_REPORT).read_bytes()


def forget(context: Context) -> None:
    """Remove what one process found, so that several have to find it."""
    (context.run / layout.EVALUATION_REPORT).unlink()
    (context.run.cache / layout.ANSWERS).unlink()


def progress_of(events: Sequence[Event]) -> list[tuple[str, int, int, str]]:
    return [(each.unit, each.done, each.total, each.note) for each in events if isinstance(each, Progress)]


def test_two_processes_write_the_report_of_one_even_if_one_is_killed(trained: tuple[Context, Any]):
    context, made = trained
    alone, _ = run_stage(comparing(context, made))
    expected = report_of(context)
    forget(context)
    model = weakref.ref(made.model)
    together = replace(context, config=context.config.model_copy(update={"num_processes": 2}))
    was, made.plan = made.plan, made.plan.for_processes(4)
    assert made.plan.micro_batch < was.micro_batch, "the training was split as before"
    events: list[Event] = []
    for event in comparing(together, made, partial(evaluation_workers, together, made)):
        events.append(event)
        if isinstance(event, Progress) and event.unit == "held-out pairs" and event.done == 2:
            gc.collect()
            assert model() is None, "this process still holds the models that the others work with"
            kill_a_worker()
    messages = [event.text for event in events if isinstance(event, Message)]
    assert any("ended by SIGKILL" in text and "takes over its work" in text for text in messages), messages
    assert report_of(context) == expected and json.loads(expected)["judge"] == "self"
    after_the_exam = [line for line in progress_of(alone) if line[0] != "exam comparisons"]
    assert progress_of(events) == after_the_exam
    assert not (context.run / layout.EVALUATION_SHARES_DIR).exists()


def here_as_there(do: Callable[[Task], Results], run: Any) -> RunTasksInProcesses:
    """A pool whose only worker is this process; requests and results go through JSON, as through a pipe."""
    return RunTasksInProcesses(PoolHere(task_handler(do, no_judge)), run, "models")  # type: ignore[arg-type]


def no_judge() -> Any:
    raise AssertionError("no comparison was sent")


TASKS = [{"read": [{"ids": [number]}]} for number in range(5)]


class Counting:
    """Finds the ids of a task, and records the request."""

    def __init__(self) -> None:
        self.requests: list[int] = []

    def __call__(self, task: Task) -> Results:
        self.requests.append(task["read"][0]["ids"][0])
        return [[self.requests[-1] / 3, None, "é"]]


def test_results_survive_the_transfer_even_if_not_finite(context):
    strange = [0.1 + 0.2, -1e-300, math.inf, -math.inf, math.nan, None, "\x1b[2J\u2028"]
    (found,) = here_as_there(lambda task: strange, context().run)(TASKS[:1])
    assert repr(found) == repr(strange)


def test_one_process_or_several_continue_what_several_left(context):
    run, do = context().run, Counting()
    complete = list(here_as_there(do, run)(TASKS))
    share = share_file(run, KIND, 1)
    share.parent.mkdir(parents=True)
    rows = PoolHere(task_handler(Counting(), no_judge)).rows(
        [{**task, "key": task_key("models", task)} for task in TASKS[1:4]]
    )
    share.write_text("".join(f"{dumps(row)}\n" for row in rows) + '{"key": "torn')
    for ask in (here_as_there, lambda do, run: reusing_results(alone(do), run, "models")):
        do = Counting()
        assert list(ask(do, run)(TASKS)) == complete and do.requests == [0, 4]
    do = Counting()
    list(RunTasksInProcesses(PoolHere(task_handler(do, no_judge)), run, "other models")(TASKS))  # type: ignore[arg-type]
    assert do.requests == [0, 1, 2, 3, 4]


def alone(do: Callable[[Task], Results]) -> Any:
    return lambda tasks: (do(task) for task in tasks)


def test_a_stop_in_the_middle_of_an_answer_keeps_no_half_of_it(trained: tuple[Context, Any], monkeypatch):
    context, made = trained
    run_stage(comparing(context, made))
    expected = report_of(context)
    forget(context)
    generating = sampling.generate

    def stopped_at_once(*given: Any, **options: Any) -> Any:
        context.stop.request("SIGTERM")
        return generating(*given, **options)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(sampling, "generate", stopped_at_once)
        run_stage(comparing(context, made))
    run_stage(comparing(replace(context, stop=StopToken()), made))
    assert report_of(context) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 1), ({"num_processes": 2}, 2), ({"num_processes": 2, "num_machines": 2, "main_process_ip": "10.0.0.1"}, 1)],
)
def test_the_processes_of_this_machine_evaluate(config, options, expected):
    assert evaluation_process_count(config(device="cpu", **options)) == expected


def test_an_adapter_that_differs_from_its_file_is_not_compared(trained: tuple[Context, Any], monkeypatch):
    context, made = trained
    stage2 = Path(context.config.adapter_path or "")
    loaded = load_policies(made.plan.applied_to(context.config), context.run, stage2)
    assert hash_tensors(adapter_tensors(loaded.model, "default")) == made.tensors_sha256
    assert hash_tensors(adapter_tensors(loaded.model, "ref")) == made.stage2_sha256
    loading = PeftModel.load_adapter

    def passes_over_stage_3(model: Any, path: str, *given: Any, **options: Any) -> Any:
        return None if path.endswith(layout.ADAPTER_DIR) else loading(model, path, *given, **options)

    monkeypatch.setattr(PeftModel, "load_adapter", passes_over_stage_3)
    with pytest.raises(NumbersError, match=layout.ADAPTER_DIR):
        load_policies(made.plan.applied_to(context.config), context.run, stage2)
