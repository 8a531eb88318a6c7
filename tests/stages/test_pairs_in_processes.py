"""Pairs made and scored by two processes: the bytes of what one process makes, also after one of them was killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from engine.core.events import Message, PairMade, Progress
from engine.models.loading import load_base, load_tokenizer
from engine.models.local_backend import LocalBackend
from engine.pairs.data.record import Pair
from engine.pairs.judges import in_processes as scores_in_processes
from engine.pairs.judges import scores
from engine.pairs.judges.in_processes import ScoreInProcesses
from engine.pairs.relevance import in_processes as relevance_in_processes
from engine.pairs.relevance import pairs as relevance
from engine.pairs.relevance.in_processes import MeasureInProcesses
from engine.pairs.relevance.measure import RelevanceMeter
from engine.run.context import Context
from engine.run.folder import Run
from engine.stages import pairs as stage
from engine.stages.load_judge import load_judge
from engine.stages.pair_processes import judge_process_count, pair_process_count, scoring_workers
from engine.workers.pool import WorkerPool
from engine.workers.rows import earlier_rows, share_file
from tests.conftest import run_stage
from tests.support.kill_a_worker import kill_a_worker
from tests.support.pool_here import PoolHere


@pytest.fixture
def at_work(stage2: tuple[Path, Path], tmp_path: Path, config: Callable[..., Any]) -> Callable[..., Context]:
    """The context of a run that has reached stage pairs, in its own folder."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"How do I mend thing {n}?"}) + "\n" for n in range(10)))

    def make(name: str, **options: Any) -> Context:
        base, adapter = stage2
        given = {
            "base_model_id": str(base),
            "adapter_path": str(adapter),
            "dataset": str(prompts),
            "split": "train",
            "num_examples": 10,
            "generation_batch_size": 2,
            "max_new_tokens": 8,
            "max_attempts": 2,
            "device": "cpu",
            "judge": "self",
            **options,
        }
        context = Context(config(output_dir=tmp_path / name, **given), Run(tmp_path / name))
        context.run.record_stage("adapter", status="done", result={"tensors_sha256": "a", "base_model_id": "b"})
        return context

    return make


def pairs_of(context: Context) -> bytes:
    return (context.run / layout.PAIRS_JSONL).read_bytes()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the prompts that were sent to worker processes."""
    ids: list[str] = []
    send = WorkerPool._send

    def record_and_send(self: WorkerPool, worker: Any, task: Any) -> None:
        ids.extend(prompt["id"] for prompt in task.get("prompts", []))
        send(self, worker, task)

    monkeypatch.setattr(WorkerPool, "_send", record_and_send)
    return ids


def leave(context: Context, lines: list[bytes]) -> None:
    """What a process of an earlier start had written when it was killed."""
    share = share_file(context.run, "pairs", 1)
    share.parent.mkdir(parents=True)
    share.write_bytes(b"".join(lines))


def batches_of(pairs: bytes) -> list[list[str]]:
    ids = [str(json.loads(line)["id"]) for line in pairs.splitlines()]
    return [ids[first : first + 2] for first in range(0, len(ids), 2)]


def test_two_processes_make_the_pairs_of_one_and_reuse_what_an_earlier_start_left(at_work, sent):
    alone, together = at_work("alone"), at_work("together", num_processes=2)
    run_stage(stage.run(alone))
    leave(together, pairs_of(alone).splitlines(keepends=True)[2:5])
    run_stage(stage.run(together))
    assert pairs_of(together) == pairs_of(alone)
    expected = [name for number, batch in enumerate(batches_of(pairs_of(alone))) if number != 1 for name in batch]
    # A batch that a killed process had half written is made again in full.
    assert sorted(sent) == sorted(expected)
    assert not (together.run / layout.SHARES_DIR).exists()


@pytest.mark.slow
def test_two_processes_reuse_what_a_killed_run_of_two_left(at_work, sent):
    alone, together = at_work("alone"), at_work("together", num_processes=2)
    run_stage(stage.run(alone))
    events = stage.run(together)
    for event in events:  # until the second batch is there, as if the run was killed then
        if isinstance(event, PairMade) and sum(1 for _ in earlier_rows(together.run, "pairs")) >= 4:
            break
    events.close()
    assert pairs_of(alone).startswith(pairs_of(together))
    left = {row["id"] for row in earlier_rows(together.run, "pairs")}
    sent.clear()
    run_stage(stage.run(together))
    assert pairs_of(together) == pairs_of(alone)
    expected = [name for batch in batches_of(pairs_of(alone)) if not left.issuperset(batch) for name in batch]
    assert sorted(sent) == sorted(expected) and len(sent) < 10
    assert not (together.run / layout.SHARES_DIR).exists()


def test_one_process_continues_what_several_left(at_work, monkeypatch):
    complete, begun = at_work("whole"), at_work("begun")
    run_stage(stage.run(complete))
    lines = pairs_of(complete).splitlines(keepends=True)
    leave(begun, lines[2:6])
    made: list[str] = []
    reply = LocalBackend.reply

    def listen(self: LocalBackend, talks: Any, *rest: Any) -> Any:
        made.extend(talk[0]["content"] for talk in talks if len(talk) == 1)
        return reply(self, talks, *rest)

    monkeypatch.setattr(LocalBackend, "reply", listen)
    run_stage(stage.run(begun))
    assert pairs_of(begun) == pairs_of(complete)
    assert set(made).isdisjoint(json.loads(line)["prompt"] for line in lines[2:6]) and len(made) == 6
    assert not share_file(begun.run, "pairs", 1).exists()


PAIRS = [
    Pair(
        f"id{n}",
        f"How do I mend thing {n}?",
        [{"role": "user", "content": f"How do I mend thing {n}?"}],
        "Kick it.",
        text,
    )
    for n, text in enumerate(
        ["Close the valve.", "Water the plants, then test it twice.", "I am sorry that it came late."] * 24
    )
]


@pytest.mark.slow
def test_two_processes_score_like_one_even_if_one_is_killed(at_work):
    alone, together = at_work("alone"), at_work("together", num_processes=2)
    local = scores.in_this_process(lambda: load_judge(alone), alone.stop)  # type: ignore[arg-type, return-value]
    _, expected = run_stage(scores.score_pairs(alone.run / layout.SCORES_JSONL, PAIRS, "self", lambda: local))
    messages, killed = [], False
    scored = scores.score_pairs(
        together.run / layout.SCORES_JSONL, PAIRS, "self", lambda: scoring_workers(together, together.config)
    )
    while True:
        try:
            event = next(scored)
        except StopIteration as end:
            found = end.value
            break
        if isinstance(event, Progress) and not killed:
            killed = True
            kill_a_worker()
        if isinstance(event, Message):
            messages.append(event.text)
    assert any("ended by SIGKILL" in text and "takes over its work" in text for text in messages), messages
    assert [given.second for given in found] == pytest.approx([given.second for given in expected], abs=1e-5)
    rows = [(context.run / layout.SCORES_JSONL).read_text().splitlines() for context in (alone, together)]
    assert [json.loads(row)["id"] for row in rows[0]] == [json.loads(row)["id"] for row in rows[1]]


def test_scores_from_another_process_are_the_judges_own(at_work):
    alone, together = at_work("alone"), at_work("together")
    judge = load_judge(alone)
    assert judge is not None
    local = scores.in_this_process(lambda: judge, alone.stop)
    _, expected = run_stage(scores.score_pairs(alone.run / layout.SCORES_JSONL, PAIRS, "self", lambda: local))
    pool = PoolHere(scores_in_processes.task_handler(judge))
    sent = nullcontext(ScoreInProcesses(pool, together.run, "self"))  # type: ignore[arg-type]
    _, found = run_stage(scores.score_pairs(together.run / layout.SCORES_JSONL, PAIRS, "self", lambda: sent))
    assert found == expected
    files = [(context.run / layout.SCORES_JSONL).read_bytes() for context in (alone, together)]
    assert files[0] == files[1]


def test_relevance_from_another_process_is_the_models_own(at_work):
    alone, together = at_work("alone"), at_work("together")
    pairs = [*PAIRS, replace(PAIRS[0], id="empty", revised_response="")]
    meter = RelevanceMeter(load_base(alone.config), load_tokenizer(alone.config))
    local = relevance.in_this_process(lambda: meter, "base", alone.stop)
    _, expected = run_stage(relevance.measure_pairs(pairs, alone.run / layout.RELEVANCE_JSONL, "base", lambda: local))
    pool = PoolHere(relevance_in_processes.task_handler(meter, "base"))
    sent = nullcontext(MeasureInProcesses(pool, together.run, "base"))  # type: ignore[arg-type]
    _, found = run_stage(relevance.measure_pairs(pairs, together.run / layout.RELEVANCE_JSONL, "base", lambda: sent))
    assert found == expected and len(found) == len(PAIRS)
    files = [(context.run / layout.RELEVANCE_JSONL).read_bytes() for context in (alone, together)]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("options", "judge", "making", "judging"),
    [
        ({}, "self", 2, 2),
        ({"judge": "reward-model"}, "reward-model", 2, 2),
        ({"judge": "demo"}, "none", 2, 1),
        ({"server_url": ["http://localhost:1"], "server_model": "m"}, "self", 1, 2),
        ({"critic_url": ["http://localhost:1"], "critic_model": "m"}, "self", 1, 2),
        ({"judge": "server"}, "server", 1, 1),
        ({"num_machines": 2, "main_process_ip": "10.0.0.1"}, "none", 1, 1),
    ],
)
def test_only_local_models_are_loaded_in_several_processes(config, options, judge, making, judging):
    given = config(**{"device": "cpu", "judge": "self", "num_processes": 2, **options})
    assert (pair_process_count(given, judge), judge_process_count(given)) == (making, judging)
