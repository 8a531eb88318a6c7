"""How an optimizer step and the reference pass are split: by length, by memory, without affecting the result."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import DPOTrainer

from engine.core import layout
from engine.core.errors import NumbersError, Stopped
from engine.core.events import Progress, TrainStep
from engine.dpo.training import reference
from engine.dpo.training.batches import StepCollator, batch_by_length, tokens_read
from engine.dpo.training.dataset import EncodedPair, encode_rows
from engine.dpo.training.encoded_pairs import EncodedPairs
from engine.dpo.training.process_group import ProcessGroup
from engine.dpo.training.reference import reference_logps
from engine.dpo.training.trainer import training_settings
from engine.dpo.training.trl_trainer import Stage3Trainer, build_trainer
from engine.models.loading import load_base, load_policy, load_tokenizer
from engine.run.context import Context
from engine.run.stop import StopToken
from engine.storage.keyed_cache import KeyedCache
from tests.conftest import run_stage
from tests.support.tiny_models import build_context, pairs
from tests.support.trainings import train

ROWS = pairs(22)


@pytest.fixture
def make(stage2: tuple[Path, Path], tmp_path: Path) -> Callable[..., Context]:
    return lambda name="run", **options: build_context(tmp_path / name, *stage2, **options)


def plain(context: Context, rows: list[Any] = ROWS) -> list[dict[str, Any]]:
    encoded = encode_rows(rows, load_tokenizer(context.config))
    return [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in encoded]


# -- forming batches -----------------------------------------------------------------------------------------------------


def test_batches_are_formed_by_length_longest_first():
    assert list(batch_by_length([3, 10, 4, 9, 2, 5], 20)) == [[1, 3], [5, 2, 0, 4]]


def test_padding_counts():
    """Three pairs of 4 tokens in a batch with one of 10 would count as 40."""
    assert list(batch_by_length([4, 4, 10, 4], 39)) == [[2, 0, 1], [3]]


def test_a_pair_longer_than_the_limit_is_a_batch_of_its_own():
    assert list(batch_by_length([30, 3, 40], 6)) == [[2], [0], [1]]
    assert list(batch_by_length([], 6)) == []


def test_pairs_of_equal_length_keep_their_order():
    assert list(batch_by_length([7, 7, 7, 7], 14)) == [[0, 1], [2, 3]]


def test_every_pair_of_a_step_is_in_one_batch_and_none_is_larger_than_the_limit():
    draw = random.Random(4)
    step = [
        {"prompt_ids": [n] * draw.randint(1, 90), "chosen_ids": [n] * draw.randint(1, 30), "rejected_ids": [n]}
        for n in range(40)
    ]
    batches = StepCollator(lambda pairs: {"pairs": pairs}, 200)(step)["batches"]
    assert sorted(pair["rejected_ids"][0] for batch in batches for pair in batch["pairs"]) == list(range(40))
    assert all(len(b["pairs"]) * max(map(tokens_read, b["pairs"])) <= 200 for b in batches)
    assert 4 < len(batches) < 25


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("count", [1, 3, 8, 24])
def test_processes_make_the_same_number_of_passes_and_read_each_pair_of_a_step_once(processes: int, count: int):
    draw = random.Random(processes * 100 + count)
    step = [
        {"prompt_ids": [n] * draw.randint(1, 90), "chosen_ids": [n] * draw.randint(1, 30), "rejected_ids": [n]}
        for n in range(count)
    ]
    shares = [
        StepCollator(lambda pairs: {"pairs": pairs}, 130, ProcessGroup(rank, processes))(step)
        for rank in range(processes)
    ]
    assert len({len(share["batches"]) for share in shares}) == 1
    read = [
        (batch["pairs"], size) for share in shares for batch, size in zip(share["batches"], share["sizes"], strict=True)
    ]
    assert sorted(pair["rejected_ids"][0] for pairs, size in read for pair in pairs[:size]) == list(range(count))
    assert all(pairs and len(pairs) * max(map(tokens_read, pairs)) <= 130 for pairs, _ in read)
    assert {share["pairs"] for share in shares} == {count}


# -- steps -------------------------------------------------------------------------------------------------------------


def record_steps(monkeypatch: pytest.MonkeyPatch) -> list[list[list[str]]]:
    """A list that records, for each optimizer step, the pairs of each forward pass as text."""
    steps: list[list[list[str]]] = []
    real = Stage3Trainer.training_step

    def recorded(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        rows = [[str(ids(row)) for row in batch["input_ids"].chunk(2)[0]] for batch in inputs["batches"]]
        steps.append(rows)
        return real(self, model, inputs, *more)

    monkeypatch.setattr(Stage3Trainer, "training_step", recorded)
    return steps


def test_each_step_trains_the_same_pairs_however_it_is_split(
    make: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    recorded_steps = record_steps(monkeypatch)
    passes, steps, train_steps = [], [], []
    for size in (1, 2, 4):
        recorded_steps.clear()
        context = make(f"run{size}", per_device_train_batch_size=size, gradient_accumulation_steps=4 // size)
        events, _ = run_stage(train(context, ROWS))
        passes.append(sum(map(len, recorded_steps)))
        steps.append([sorted(pair for batch in step for pair in batch) for step in recorded_steps])
        train_steps.append([e for e in events if isinstance(e, TrainStep)])
    assert steps[0] == steps[1] == steps[2]
    assert [len(step) for step in steps[0]] == [4, 4, 4, 4, 4, 2]
    assert 22 >= passes[0] > passes[1] > passes[2] == 6
    for one, two, four in zip(*train_steps, strict=True):
        for name in ("loss", "grad_norm", "margin", "reward_chosen", "accuracy", "epoch", "learning_rate"):
            assert getattr(one, name) == pytest.approx(getattr(two, name), abs=2e-5)
            assert getattr(one, name) == pytest.approx(getattr(four, name), abs=2e-5)


def test_each_step_has_the_pairs_of_trls_own_order_sorted_within_the_step(trainer: Any):
    _, dpo_trainer, _ = trainer
    ours, theirs = iter(dpo_trainer.get_train_dataloader()), list(DPOTrainer.get_train_dataloader(dpo_trainer))
    firsts = []
    for batch in theirs:
        cut = next(ours)["batches"]
        rows = [row for part in cut for row in part["input_ids"].chunk(2)[0]]
        assert sorted(map(ids, rows)) == sorted(map(ids, batch["input_ids"].chunk(2)[0]))
        lengths = [length for part in cut for length in read_lengths(part)]
        assert lengths == sorted(lengths, reverse=True)
        firsts.append(lengths[0])
    assert len(theirs) == 6 and firsts != sorted(firsts, reverse=True)


def ids(row: torch.Tensor) -> list[int]:
    return [token for token in row.tolist() if token]


def read_lengths(batch: dict[str, torch.Tensor]) -> list[int]:
    """Tokens of prompt and both replies of each pair."""
    chosen, _ = batch["attention_mask"].sum(dim=1).chunk(2)
    _, rejected = batch["completion_mask"].sum(dim=1).chunk(2)
    return [int(length) for length in chosen + rejected]


def test_a_run_whose_batches_are_halved_midway_continues_with_the_same_pairs(
    make: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    split = {4: {"gradient_accumulation_steps": 1}, 2: {"gradient_accumulation_steps": 2}}
    recorded_steps = record_steps(monkeypatch)
    _, undisturbed = run_stage(train(make("undisturbed", per_device_train_batch_size=4, **split[4]), ROWS))
    expected = [sorted(pair for batch in step for pair in batch) for step in recorded_steps]
    recorded_steps.clear()
    context = make("halved", per_device_train_batch_size=4, **split[4])
    with pytest.raises(Stopped):
        for event in train(context, ROWS):
            if isinstance(event, TrainStep) and event.step == 3:
                context.stop.request("the test asks")
    before = len(recorded_steps)
    _, trained = run_stage(train(make("halved", per_device_train_batch_size=2, **split[2]), ROWS))
    assert trained.resumed_from == before < 6
    assert [sorted(pair for batch in step for pair in batch) for step in recorded_steps] == expected
    assert len(recorded_steps[0]) == 1 < len(recorded_steps[before])  # from there on, the step is split differently
    assert trained.losses == pytest.approx(undisturbed.losses, abs=2e-5)


@pytest.mark.parametrize("once", [False, True], ids=["live reference", "reference computed once"])
def test_steps_and_reference_read_a_prompt_once(once: bool, make: Callable[..., Context]):
    context = make(cpu_ref_model=once)
    policy = load_policy(load_base(context.config), Path(context.config.adapter_path), trainable=True)
    read: list[int] = []
    policy.get_base_model().base_model.register_forward_pre_hook(
        lambda _, __, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    run_stage(train(context, ROWS[:1], policy=policy, max_steps=1))
    (pair,) = plain(context, ROWS[:1])
    # Without either reply's last token. Four probes come first (the head; two small pairs plain, shared, and shared without the
    # mask), then the reference, the first loss and the step.
    assert read[4:] == [tokens_read(pair) - 2] * (3 if once else 4)


def test_means_are_over_pairs_and_not_over_passes(trainer: Any, monkeypatch: pytest.MonkeyPatch):
    """Three pairs whose losses are 1, 1 and 4, in a pass of two and a pass of one."""
    _, dpo_trainer, tokens = trainer
    parameter = next(p for p in dpo_trainer.model.parameters() if p.requires_grad)

    def loss_of(self: Any, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
        value = 4.0 if len(inputs["input_ids"]) == 2 else 1.0
        self._metrics["train"]["rewards/margins"].append(value)
        self._metrics["train"]["num_tokens"] = [70]
        return value + 0.0 * parameter.sum()

    monkeypatch.setattr(Stage3Trainer, "compute_loss", loss_of)
    two, one = dpo_trainer.data_collator(tokens[:2]), dpo_trainer.data_collator(tokens[2:3])
    step = {"batches": [two, one], "sizes": [2, 1], "pairs": 3}
    assert dpo_trainer.training_step(dpo_trainer.model, step).item() == pytest.approx((2 * 1 + 4) / 3)
    margins = dpo_trainer._metrics["train"]["rewards/margins"]
    assert sum(margins) / len(margins) == pytest.approx((2 * 1 + 4) / 3)
    assert dpo_trainer._metrics["train"]["num_tokens"] == [70]


# -- the reference's log-probabilities -----------------------------------------------------------------------------------


@pytest.fixture
def trainer(make: Callable[..., Context]) -> Any:
    context = make()
    policy = load_policy(load_base(context.config), Path(context.config.adapter_path), trainable=True)
    tokens = plain(context)
    dpo_trainer = build_trainer(
        context.config,
        context.run / layout.CHECKPOINTS_DIR,
        policy,
        load_tokenizer(context.config),
        EncodedPairs((EncodedPair(number, **pair) for number, pair in enumerate(tokens)), context.run.folder),
        training_settings(context.config, len(tokens)),
        torch.float32,
        "x",
    )
    return context, dpo_trainer, tokens


def logps(trainer: Any, batch_size: int, name: str = "logps.jsonl", policy: str = "right", **more: Any) -> Any:
    context, dpo_trainer, tokens = trainer
    return reference_logps(
        dpo_trainer.model, tokens, dpo_trainer.data_collator, batch_size=batch_size, dtype=torch.float32,
        cache=KeyedCache(context.run / name), policy=policy, stop=context.stop, **more,
    )  # fmt: skip


def test_the_references_log_probabilities_are_trls_in_the_order_of_the_rows(trainer: Any):
    _, dpo_trainer, tokens = trainer
    theirs = []
    for pair in tokens:
        with torch.no_grad():
            chosen, rejected = DPOTrainer.compute_ref_log_probs(
                dpo_trainer, dpo_trainer.model, dpo_trainer.data_collator([pair])
            )
        theirs.append((chosen.item(), rejected.item()))
    assert len({round(value, 3) for pair in theirs for value in pair}) == 44
    for batch_size in (1, 3, 100):
        events, ours = run_stage(logps(trainer, batch_size, f"{batch_size}.jsonl"))
        assert [value for pair in ours for value in pair] == pytest.approx(
            [v for pair in theirs for v in pair], abs=5e-5
        )
        assert [e.done for e in events if isinstance(e, Progress)][-1] == 22


def test_short_pairs_share_a_batch(trainer: Any, monkeypatch: pytest.MonkeyPatch):
    sizes: list[tuple[int, int]] = []
    real = reference.pair_logps

    def recorded(model: Any, batch: Any, *more: Any) -> Any:
        sizes.append(tuple(batch["input_ids"].shape))
        return real(model, batch, *more)

    monkeypatch.setattr(reference, "pair_logps", recorded)
    tokens = trainer[2]
    tokens[5]["prompt_ids"] = tokens[5]["prompt_ids"] * 8
    run_stage(logps(trainer, 1))
    assert sum(rows for rows, _ in sizes) == 44
    assert sizes[0] == (2, max(width for _, width in sizes))
    assert 11 > len(sizes) > 5 and all(rows >= 4 for rows, _ in sizes[1:-1])


def test_a_pass_that_was_stopped_continues_with_the_same_result(trainer: Any, monkeypatch: pytest.MonkeyPatch):
    context, *_ = trainer
    _, expected = run_stage(logps(trainer, 2, "undisturbed.jsonl"))
    computation = logps(trainer, 2)
    next(computation)
    context.stop.request("the test asks")
    with pytest.raises(Stopped):
        next(computation)
    context.stop = StopToken()
    done = (context.run / "logps.jsonl").read_text().splitlines()
    assert 0 < len(done) < 22
    read = record_batch_sizes(monkeypatch)
    _, computed = run_stage(logps(trainer, 2))
    assert sum(read) == 22 - len(done)
    assert computed == expected
    lines = [(context.run / name).read_text().splitlines() for name in ("logps.jsonl", "undisturbed.jsonl")]
    assert sorted(lines[0]) == sorted(lines[1])


@pytest.mark.parametrize("lockstep, passes", [(True, 1), (False, 0)])
def test_a_process_without_a_batch_runs_a_pass_if_the_others_need_its_weights(
    lockstep: bool, passes: int, trainer: Any, monkeypatch: pytest.MonkeyPatch
):
    _, alone = run_stage(logps(trainer, 100, "alone.jsonl"))
    of_first = dict(enumerate(alone))

    class Second(ProcessGroup):
        def gather(self, value: Any) -> list[Any]:
            return [of_first if isinstance(value, dict) else value, value]

    read = record_batch_sizes(monkeypatch)
    _, computed = run_stage(logps(trainer, 100, group=Second(1, 2), lockstep=lockstep))
    assert len(read) == passes
    assert computed == alone


def test_cached_values_are_not_computed_again(trainer: Any, monkeypatch: pytest.MonkeyPatch):
    _, expected = run_stage(logps(trainer, 2))
    read = record_batch_sizes(monkeypatch)
    assert run_stage(logps(trainer, 4))[1] == expected
    assert read == []


def test_values_of_another_policy_are_not_used(trainer: Any, monkeypatch: pytest.MonkeyPatch):
    run_stage(logps(trainer, 2))
    read = record_batch_sizes(monkeypatch)
    run_stage(logps(trainer, 2, policy="another"))
    assert sum(read) == 22


def test_only_a_changed_pair_is_computed_again(trainer: Any, monkeypatch: pytest.MonkeyPatch):
    run_stage(logps(trainer, 2))
    trainer[2][3]["chosen_ids"] = trainer[2][3]["chosen_ids"][::-1]
    read = record_batch_sizes(monkeypatch)
    run_stage(logps(trainer, 2))
    assert read == [1]


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"key": 3}', '{"value": [1.0, 2.0]}', "half a pair", "text"],
)
def test_a_damaged_line_of_the_cache_is_computed_again(damage: str, trainer: Any, monkeypatch: pytest.MonkeyPatch):
    context, *_ = trainer
    _, expected = run_stage(logps(trainer, 2))
    path = context.run / "logps.jsonl"
    first, *others = path.read_text().splitlines()
    key = json.loads(first)["key"]
    line = {"half a pair": {"key": key, "value": [1.0]}, "text": {"key": key, "value": "x"}}.get(damage)
    path.write_text("\n".join([damage if line is None else json.dumps(line), *others]) + "\n")
    read = record_batch_sizes(monkeypatch)
    _, computed = run_stage(logps(trainer, 2))
    assert [v for pair in computed for v in pair] == pytest.approx([v for pair in expected for v in pair], abs=1e-5)
    assert sum(read) == 1


def test_a_row_with_a_value_that_is_not_finite_is_named(trainer: Any, monkeypatch: pytest.MonkeyPatch):
    _, _, tokens = trainer
    shortest = min(range(22), key=lambda row: tokens_read(tokens[row]))
    real = reference.pair_logps

    def broken(model: Any, batch: Any, *more: Any) -> Any:
        chosen, rejected = real(model, batch, *more)
        ends = tokens[shortest]["prompt_ids"] + tokens[shortest]["chosen_ids"]
        hit = [row.tolist()[: len(ends)] == ends for row in batch["input_ids"].chunk(2)[0]]
        return chosen.masked_fill(torch.tensor(hit), torch.inf), rejected

    monkeypatch.setattr(reference, "pair_logps", broken)
    with pytest.raises(NumbersError, match=rf"row {shortest} a log-probability of \(inf, -"):
        run_stage(logps(trainer, 3))


def record_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that records the number of pairs in each batch that the reference reads."""
    sizes: list[int] = []
    real = reference.pair_logps

    def recorded(model: Any, batch: Any, *more: Any) -> Any:
        sizes.append(len(batch["input_ids"]) // 2)
        return real(model, batch, *more)

    monkeypatch.setattr(reference, "pair_logps", recorded)
    return sizes
