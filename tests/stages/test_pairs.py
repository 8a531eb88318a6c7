"""Stage pairs: no record is generated twice, none is lost, and decisions follow a pair while its texts stay the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from engine.core import layout
from engine.core.errors import DamagedState, ExitCode, NetworkError
from engine.core.events import Message, PairFailed, PairMade
from engine.models.chat import Conversation
from engine.models.generation.sampling import RefusedReply, Reply, SamplingSettings
from engine.pairs.data.edits import read_edits, write_edit
from engine.pairs.generation.inventory import Inventory, take_inventory
from engine.run.context import Context
from engine.run.folder import Run
from engine.stages import pairs as stage
from tests.conftest import run_stage


class Backend:
    """Its replies depend on seed, settings and the rest of the batch, as a real model's last bits do."""

    KIND: ClassVar = {1: "Kick it hard", 3: "That was rude, and", 5: "Mend it kindly with glue"}
    tokens = 0
    context_length = None

    def __init__(self) -> None:
        self.drafted: list[str] = []
        self.fails_at: Callable[[str], bool] = lambda text: False

    def reply(self, talks: Sequence[Conversation], settings: SamplingSettings, seeds: Sequence[int]) -> list[Reply]:
        self.drafted += [talk[-1]["content"] for talk in talks if len(talk) == 1]
        beside = "".join(talk[0]["content"].split()[-1] for talk in talks).replace("?", ".")
        return [
            RefusedReply("", False, 0, "The server returned 500. out of memory\x1b[31m", failed=True)
            if self.fails_at(talk[0]["content"])
            else Reply(
                f"{self.KIND[len(talk)]}, as number {seed % 9973} says at {settings.temperature} of {beside}", True, 5
            )
            for talk, seed in zip(talks, seeds, strict=True)
        ]

    def length(self, conversation: Conversation) -> int:
        return len(conversation[0]["content"].split())

    def batch_size(self, longest: int) -> int:
        return 4

    def check(self, settings: SamplingSettings) -> list[str]:
        return []

    def warnings(self) -> list[str]:
        return []


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"How do I mend thing {n}?"}) + "\n" for n in range(30)))
    return path


@pytest.fixture
def made(context: Callable[..., Context], prompts: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the stage with these options in the same run folder; returns the drafts and the events."""

    def make(fails_at: Callable[[str], bool] | None = None, **options: Any) -> tuple[list[str], list[Any]]:
        backend, at_work = Backend(), a_context(**options)
        backend.fails_at = fails_at or backend.fails_at
        monkeypatch.setattr(stage, "load_backend", lambda *_: backend)
        monkeypatch.setattr(stage, "adapter_folder", lambda *_: None)
        events, _ = run_stage(stage.run(at_work))
        return backend.drafted, events

    def a_context(**options: Any) -> Context:
        at_work = context(
            **{"dataset": str(prompts), "split": "train", "max_attempts": 1, "num_examples": 12, **options}
        )
        at_work.run.record_stage("adapter", status="done", result={"tensors_sha256": "a", "base_model_id": "b"})
        return at_work

    make.context = a_context  # type: ignore[attr-defined]
    return make


def records(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / layout.PAIRS_JSONL).read_text().splitlines()]


def test_more_examples_make_only_what_is_missing(made):
    first, _ = made(num_examples=12)
    more, _ = made(num_examples=20)
    assert len(first) == 12 and len(more) == 8 and not set(first) & set(more)
    assert len(records(made.context().run)) == 20
    assert made(num_examples=20)[0] == []


@pytest.mark.fault("A15", "F2-17")
@pytest.mark.parametrize(
    "damaged", ['{"id": "cut", "status": "o', "[1, 2]", "\0" * 40], ids=["cut off", "a list", "zeros"]
)
def test_a_damaged_line_is_reported_before_anything_is_made(made, damaged: str):
    made(num_examples=12)
    path = made.context().run / layout.PAIRS_JSONL
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], damaged + "\n", *lines[4:]]))
    with pytest.raises(DamagedState, match=r"Line 4 of .*pairs\.jsonl is damaged") as error:
        made(num_examples=20)
    assert "remove that line" in error.value.what_to_do
    assert len(path.read_text().splitlines()) == 12, "nothing was made, and nothing taken away"
    path.write_text("".join([*lines[:3], *lines[4:]]))
    made(num_examples=12)
    assert sorted(records(made.context().run), key=str) == sorted(map(json.loads, lines), key=str)


def test_fewer_examples_are_a_selection_and_nothing_is_deleted(made):
    made(num_examples=20)
    run = made.context().run
    every = {row["id"]: row for row in records(run)}
    drafted, events = made(num_examples=12)
    assert drafted == [] and len(records(run)) == 12
    assert all(every[row["id"]] == row for row in records(run))
    kept = (run.folder / "superseded/1" / layout.PAIRS_JSONL).read_text().splitlines()
    assert len(kept) == 20
    assert sum(isinstance(event, (PairMade, PairFailed)) for event in events) == 12, "a screen counts the new set"


def test_returning_to_earlier_options_generates_nothing(made):
    made(num_examples=12)
    run = made.context().run
    before = records(run)
    assert len(made(temperature=0.3)[0]) == 12
    drafted, _ = made(num_examples=12)
    assert drafted == [] and sorted(map(str, records(run))) == sorted(map(str, before))


def test_another_split_keeps_the_prompts_that_both_have(made):
    made(split="train[:10]", num_examples=99)
    drafted, _ = made(split="train[5:15]", num_examples=99)
    assert len(drafted) == 5


def test_a_longer_limit_asks_only_what_was_too_long_before(made, prompts):
    rows = prompts.read_text() + json.dumps({"prompt": "long " * 40}) + "\n"
    prompts.write_text(rows)
    made(num_examples=99, max_prompt_tokens=20)
    statuses = {row["prompt"]: row["status"] for row in records(made.context().run)}
    assert statuses["long " * 39 + "long"] == "prompt too long"
    drafted, _ = made(num_examples=99, max_prompt_tokens=60)
    assert drafted == ["long " * 39 + "long"]
    drafted, _ = made(num_examples=99, max_prompt_tokens=20)
    assert drafted == [] and sum(row["status"] == "prompt too long" for row in records(made.context().run)) == 1


def test_after_from_no_record_is_reused(made):
    made()
    run = made.context().run
    run.set_aside("pairs", why="--from pairs", reusable=False)
    assert len(made()[0]) == 12


def test_killed_while_records_are_taken_over_it_ends_with_the_same_file(made):
    made(num_examples=20)
    made(num_examples=12)
    run = made.context().run
    content = (run / layout.PAIRS_JSONL).read_bytes()
    for kept in (1, 5, 11):
        lines = content.splitlines(keepends=True)
        (run / layout.PAIRS_JSONL).write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        assert made(num_examples=12)[0] == [] and (run / layout.PAIRS_JSONL).read_bytes() == content


def test_killed_anywhere_while_more_are_made_it_ends_with_the_same_file(made):
    made(num_examples=9)
    made(num_examples=25)
    run = made.context().run
    content = (run / layout.PAIRS_JSONL).read_bytes()
    lines = content.splitlines(keepends=True)
    for kept in range(9, 25):
        (run / layout.PAIRS_JSONL).write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        made(num_examples=25)
        assert (run / layout.PAIRS_JSONL).read_bytes() == content


@pytest.mark.parametrize("damage", ['{"batch_size": -3}', "", "[]", "{", '{"made_for": 1}'])
def test_an_unusable_batch_plan_is_ignored(made, damage):
    made(num_examples=9)
    (made.context().run / layout.PAIRS_PLAN).write_text(damage)
    made(num_examples=25)
    assert len(records(made.context().run)) == 25


def test_decisions_follow_a_pair_while_its_texts_are_the_same_and_are_listed_where_they_are_not(made):
    made(num_examples=20)
    run = made.context().run
    ids = [row["id"] for row in records(run)]
    for pair_id in ids:
        write_edit(run / layout.EDITS_JSONL, pair_id, "reject")
    made(num_examples=12)
    kept = {row["id"] for row in records(run)}
    assert set(read_edits(run / layout.EDITS_JSONL)) == kept
    _, events = made(temperature=0.3)
    assert not read_edits(run / layout.EDITS_JSONL)
    warnings = [event.text for event in events if isinstance(event, Message) and event.level == "warning"]
    assert any("decisions about 12 pairs" in text for text in warnings)
    made(num_examples=12)  # back: the texts are those that were decided about
    assert not read_edits(run / layout.EDITS_JSONL), "decisions are carried from the set before, and that had none"


def inventory_of(context: Context, *, from_scratch: bool = False) -> Inventory:
    return take_inventory(context.config, context.run, None, from_scratch=from_scratch)


def test_the_inventory_matches_what_the_stage_does(made):
    made(num_examples=12)
    assert inventory_of(made.context(num_examples=20)) == Inventory(12, 0, 8)
    made(num_examples=20)
    made(num_examples=5)
    assert inventory_of(made.context(num_examples=12)) == Inventory(5, 7, 0)
    assert inventory_of(made.context(num_examples=12, temperature=0.1)) == Inventory(0, 0, 12)
    assert inventory_of(made.context(num_examples=12), from_scratch=True).missing == 12


# -- prompts at which the server fails ------------------------------------------------------------------------------------


def is_one_of(*numbers: int) -> Callable[[str], bool]:
    return lambda text: any(text.endswith(f"thing {number}?") for number in numbers)


def failed_of(run: Run) -> list[dict[str, Any]]:
    return [row for row in records(run) if row["status"] == "failed on the server"]


def test_a_prompt_at_which_the_server_fails_is_a_record_with_its_reason_and_the_others_are_made(made):
    _, events = made(is_one_of(3, 7), num_examples=30)
    run = made.context().run
    assert len(records(run)) == 30 == len({row["id"] for row in records(run)})
    failed = failed_of(run)
    assert len(failed) == 2 and all("out of memory" in row["critic_notes"] for row in failed)
    assert [event.reason for event in events if isinstance(event, PairFailed)] == ["failed on the server"] * 2
    again, _ = made(num_examples=30)
    assert again == [] and len(failed_of(run)) == 2, "as few as that stay as they are"


def test_too_many_failures_end_the_stage_and_only_they_are_retried(made):
    with pytest.raises(NetworkError, match=r"failed on \d of \d+ prompts.*--max-failed-share.*out of memory") as caught:
        made(is_one_of(*range(0, 30, 3)), num_examples=30)
    assert caught.value.exit_code == ExitCode.NETWORK and "\x1b" not in str(caught.value)
    run = made.context().run
    before = {row["id"]: row for row in records(run)}
    assert len(failed_of(run)) >= 5 and len(before) < 30, "it did not go on to the end"
    drafted, events = made(num_examples=30)
    assert len(records(run)) == 30 == len({row["id"] for row in records(run)}) and failed_of(run) == []
    good = {pair_id: row for pair_id, row in before.items() if row["status"] != "failed on the server"}
    assert all(row == good[row["id"]] for row in records(run) if row["id"] in good), "nothing is made twice"
    assert sum(isinstance(event, PairMade | PairFailed) for event in events) == 30
    assert any("sent again" in event.text for event in events if isinstance(event, Message))
    assert set(drafted) >= {row["prompt"] for row in before.values() if row["status"] == "failed on the server"}


def test_a_higher_limit_continues_without_them(made):
    made(is_one_of(*range(0, 30, 3)), num_examples=30, max_failed_share=0.5)
    assert len(failed_of(made.context().run)) == 10
