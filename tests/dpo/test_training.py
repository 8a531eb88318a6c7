"""DPO against the right reference, with finite values throughout, and with the same bytes after an interruption."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from trl import DPOConfig, DPOTrainer

from engine.core import layout
from engine.core.errors import DataError, NumbersError, PreconditionError, Stopped
from engine.core.events import CheckpointSaved, Message, TrainStep
from engine.dpo.training import trl_trainer
from engine.dpo.training.checkpoints import MANIFEST, by_step, checkpoint_error, newest_good, rotate, write_checkpoint
from engine.dpo.training.dataset import encode_rows, load_rows
from engine.dpo.training.reference import REFERENCE_ADAPTER, place_adapter
from engine.dpo.training.trainer import training_settings
from engine.models.chat_template import conversation_ids
from engine.models.loading import load_base, load_policy, load_tokenizer
from engine.models.tensors import adapter_tensors, hash_tensors
from engine.run.context import Context
from engine.stages import training as stage
from engine.storage.files import sha256_of_file
from tests.conftest import run_stage
from tests.support.tiny_models import build_context, pairs, write_rows
from tests.support.trainings import train

ROWS = pairs(24)
STEPS = 6  # 24 pairs in batches of 2, 2 batches per step


@pytest.fixture
def make(stage2: tuple[Path, Path], tmp_path: Path) -> Callable[..., Context]:
    return lambda **options: build_context(tmp_path / "run", *stage2, **options)


@pytest.fixture(scope="module")
def undisturbed(stage2: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Events, result and weights of an undisturbed training."""
    context = build_context(tmp_path_factory.mktemp("undisturbed") / "run", *stage2)
    return (*run_stage(train(context, ROWS)), weights(context, STEPS))


def weights(context: Context, step: int) -> bytes:
    return (context.run / f"checkpoints/checkpoint-{step}/adapter_model.safetensors").read_bytes()


def train_until(context: Context, step: int, rows: Sequence[Any] = ROWS) -> list[Any]:
    """Train, and request a stop at `step`."""
    events = []
    with pytest.raises(Stopped):
        for event in train(context, rows):
            events.append(event)
            if isinstance(event, TrainStep) and event.step == step:
                context.stop.request("the test asks")
    return events


def messages_of(events: Sequence[Any]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Message))


# -- steps and checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.fault("D16")
def test_the_first_loss_is_ln_2_and_every_step_is_reported(undisturbed: Any):
    events, trained, _ = undisturbed
    steps = [event for event in events if isinstance(event, TrainStep)]
    assert abs(trained.first_loss - math.log(2)) < 1e-6
    assert abs(steps[0].loss - math.log(2)) < 1e-6
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6]
    assert {event.total_steps for event in steps} == {STEPS}
    assert all(event.grad_norm > 0 and event.tokens_per_second > 0 for event in steps)
    assert len({event.loss for event in steps}) == STEPS


def test_the_adapter_changes_and_the_reference_does_not(undisturbed: Any, stage2: tuple[Path, Path]):
    _, trained, _ = undisturbed
    before = load_file(stage2[1] / "adapter_model.safetensors")
    after, reference = adapter_tensors(trained.model, "default"), adapter_tensors(trained.model, "ref")
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(before[name], reference[name]) for name in before)
    assert trained.tensors_sha256 == hash_tensors(after)


@pytest.mark.fault("D20")
def test_a_checkpoint_is_made_at_each_interval_and_at_the_end(undisturbed: Any, make: Callable[..., Context]):
    events, *_ = undisturbed
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [2, 4, 6]
    events, _ = run_stage(train(make(save_steps=4), ROWS[:20]))
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [4, 5]


def test_a_checkpoint_holds_what_its_manifest_says_and_nothing_else(make: Callable[..., Context]):
    context = make()
    run_stage(train(context, ROWS[:12]))
    kept = by_step(context.run / "checkpoints")
    assert [path.name for path in kept] == ["checkpoint-2", "checkpoint-3"]
    for path in kept:
        assert {p.name for p in path.iterdir()} == {
            MANIFEST, "adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt",
            "rng_state.pth", "trainer_state.json",
        }  # fmt: skip


@pytest.mark.fault("D19")
def test_one_pair_and_one_step_are_enough_to_learn_from(make: Callable[..., Context]):
    events, trained = run_stage(train(make(per_device_train_batch_size=1), ROWS[:1], max_steps=1))
    assert (trained.steps, trained.pairs) == (1, 1)
    assert any(isinstance(event, CheckpointSaved) and event.step == 1 for event in events)


@pytest.fixture(scope="module")
def plain_trl(
    stage2: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[float], dict[str, Any]]:
    """Losses and adapter of plain TRL as in the notebook: 20 steps of 4 pairs, one at a time. There are 21 pairs, so that the
    last step of each epoch has one.
    """
    folder = tmp_path_factory.mktemp("plain")
    context = build_context(folder / "run", *stage2, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    trainer = DPOTrainer(
        model=load_policy(load_base(context.config), stage2[1], trainable=True),
        args=DPOConfig(
            output_dir=str(folder / "plain"), **training_settings(context.config, 21, 20), use_cpu=True, bf16=False,
            gradient_checkpointing=True, logging_steps=1, save_strategy="no", disable_tqdm=True, report_to="none",
        ),
        train_dataset=Dataset.from_list(ROWS[:21]),
        processing_class=load_tokenizer(context.config),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 20 and max(losses) - min(losses) > 0.1
    return losses, adapter_tensors(trainer.model, "default")


@pytest.mark.parametrize("pairs_per_pass", [1, 2, 4])
@pytest.mark.parametrize("once", [False, True], ids=["live reference", "reference computed once"])
def test_training_equals_plain_trl_to_the_fifth_decimal(
    once: bool, pairs_per_pass: int, make: Callable[..., Context], plain_trl: tuple[list[float], dict[str, Any]]
):
    """Regardless of how a step is split, and with the prompt read once for both replies."""
    context = make(
        cpu_ref_model=once,
        per_device_train_batch_size=pairs_per_pass,
        gradient_accumulation_steps=4 // pairs_per_pass,
        save_steps=50,
    )
    _, trained = run_stage(train(context, ROWS[:21], max_steps=20))
    losses, theirs = plain_trl
    assert trained.losses == pytest.approx(losses, abs=1e-5)
    ours = adapter_tensors(trained.model, "default")
    assert max((theirs[name] - ours[name]).abs().max().item() for name in theirs) < 1e-5


# -- the reference -----------------------------------------------------------------------------------------------------


def test_an_adapter_other_than_the_recorded_one_is_refused(make: Callable[..., Context]):
    with pytest.raises(NumbersError, match=r"not the Stage 2 adapter.*recorded 0123"):
        run_stage(train(make(), ROWS[:4], reference_sha256="0123"))


@pytest.mark.fault("D16")
def test_a_fresh_lora_on_the_base_passes_ln_2_and_is_refused_by_its_hash(make: Callable[..., Context]):
    context = make()
    fresh = LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"])
    policy = get_peft_model(load_base(context.config), fresh)
    events = []
    with pytest.raises(NumbersError, match="not the Stage 2 adapter"):
        events.extend(train(context, ROWS[:4], policy=policy))
    assert not events and not by_step(context.run / "checkpoints")  # before the first step


@pytest.mark.fault("D16")
def test_a_reference_that_the_loss_does_not_use_is_refused_by_the_first_loss(
    make: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    """The right weights are in "ref", but the loss uses the bare base model."""
    import trl.trainer.dpo_trainer as dpo

    monkeypatch.setattr(dpo, "use_adapter", lambda model, adapter_name: model.disable_adapter())
    with pytest.raises(NumbersError, match=r"not ln 2 = 0\.693147"):
        run_stage(train(make(), ROWS[:4]))


def test_cached_log_probabilities_of_another_reference_are_refused_by_the_first_loss(make: Callable[..., Context]):
    context = make(cpu_ref_model=True)
    path = context.run.cache / layout.REFERENCE_LOGPS
    run_stage(train(context, ROWS[:4]))
    shutil.rmtree(context.run / layout.CHECKPOINTS_DIR)
    cached = [json.loads(line) for line in path.read_text().splitlines()]
    shifted = [{**line, "value": [line["value"][0] - 1.5, line["value"][1]]} for line in cached]
    path.write_text("".join(json.dumps(line) + "\n" for line in shifted))
    with pytest.raises(NumbersError, match="not ln 2"):
        run_stage(train(context, ROWS[:4]))


def test_a_run_without_a_record_of_stage_adapter_is_refused(make: Callable[..., Context]):
    context = make()
    context.run.forget_stage("adapter")
    with pytest.raises(PreconditionError, match="no record of the reference"):
        run_stage(train(context, ROWS[:4]))


@pytest.mark.parametrize("once", [False, True], ids=["live reference", "reference computed once"])
def test_in_bfloat16_the_first_loss_is_ln_2_as_well(once: bool, make: Callable[..., Context]):
    """The reference is computed in the mixed precision of the steps; in another one, the loss would be off by 2e-3 here."""
    _, trained = run_stage(train(make(dtype="bfloat16", cpu_ref_model=once, gradient_checkpointing=True), ROWS[:4]))
    assert abs(trained.first_loss - math.log(2)) < 1e-4


# -- values that are not finite ------------------------------------------------------------------------------------------


@pytest.mark.fault("D1")
def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
    make: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    real = trl_trainer.Stage3Trainer.compute_loss

    def broken(self: Any, model: Any, inputs: Any, **more: Any) -> Any:
        return real(self, model, inputs, **more) * (math.nan if self.state.global_step == 3 else 1.0)

    monkeypatch.setattr(trl_trainer.Stage3Trainer, "compute_loss", broken)
    context = make()
    with pytest.raises(NumbersError, match="The loss is nan at step 4") as stopped:
        run_stage(train(context, ROWS))
    assert stopped.value.exit_code == 8
    assert [path.name for path in by_step(context.run / "checkpoints")] == ["checkpoint-2"]


@pytest.mark.fault("D1")
def test_a_nan_gradient_under_a_finite_loss_stops_the_run(make: Callable[..., Context], stage2: tuple[Path, Path]):
    context, calls = make(), 0
    policy = load_policy(load_base(context.config), stage2[1], trainable=True)

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return gradient * math.nan if calls == 3 else gradient

    next(p for n, p in policy.named_parameters() if "lora_B" in n).register_hook(poison)
    with pytest.raises(NumbersError, match="The gradient norm is nan at step 2"):
        run_stage(train(context, ROWS, policy=policy))
    assert by_step(context.run / "checkpoints") == []


@pytest.mark.fault("D17")
def test_a_training_that_changes_nothing_is_refused(make: Callable[..., Context]):
    with pytest.raises(NumbersError, match="did not change the adapter"):
        run_stage(train(make(learning_rate=1e-30), ROWS[:4]))


# -- stopped, killed, resumed ------------------------------------------------------------------------------------------


@pytest.mark.fault("D15")
@pytest.mark.parametrize(("stop_at", "options"), [(1, {}), (3, {}), (2, {"cpu_ref_model": True})])
def test_stopped_and_resumed_gives_the_bytes_of_an_undisturbed_run(
    stop_at: int, options: dict[str, Any], undisturbed: Any, make: Callable[..., Context]
):
    options["save_steps"] = 50  # so that the stop causes the only checkpoint before the end
    context = make(**options)
    if "cpu_ref_model" in options:
        run_stage(train(context, ROWS))
        expected = weights(context, STEPS)
        shutil.rmtree(context.run / layout.CHECKPOINTS_DIR)
    else:
        expected = undisturbed[2]
    before = train_until(context, stop_at)
    stopped_at = max(event.step for event in before if isinstance(event, CheckpointSaved))
    assert stop_at <= stopped_at <= stop_at + 1  # the current step is finished first
    events, trained = run_stage(train(make(**options), ROWS))
    assert trained.resumed_from == stopped_at
    assert [event.step for event in events if isinstance(event, TrainStep)] == list(range(stopped_at + 1, STEPS + 1))
    assert weights(context, STEPS) == expected
    assert len(trained.losses) == STEPS


KILLED = """
import json, sys
from pathlib import Path
from engine.process.environment import quiet_libraries
quiet_libraries()
from tests.support.trainings import train
from engine.core.events import TrainStep
from tests.support.tiny_models import build_context, pairs
context = build_context(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
for event in train(context, pairs(24)):
    if isinstance(event, TrainStep):
        print(event.step, flush=True)
        if event.step == 3:
            sys.stdin.read()
"""


@pytest.mark.fault("A2", "D15")
def test_killed_and_resumed_gives_the_bytes_of_an_undisturbed_run(
    undisturbed: Any, make: Callable[..., Context], stage2: tuple[Path, Path]
):
    context = make()
    arguments = [str(context.run.folder), *map(str, stage2)]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as child:  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip() == "3":
                break
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    _, trained = run_stage(train(context, ROWS))
    assert trained.resumed_from is not None and trained.resumed_from >= 2
    assert weights(context, STEPS) == undisturbed[2]


AT_WORK = """
import sys
from pathlib import Path
from engine.process.environment import quiet_libraries
quiet_libraries()
from tests.support.trainings import train
from engine.core.events import TrainStep
from tests.support.tiny_models import build_context, pairs
context = build_context(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), num_train_epochs=4.0)
for event in train(context, pairs(24)):
    if isinstance(event, TrainStep):
        print(event.step, flush=True)
"""


@pytest.mark.fault("A2")
@pytest.mark.slow
def test_killed_five_times_at_random_steps_gives_the_bytes_of_an_undisturbed_run(
    make: Callable[..., Context], stage2: tuple[Path, Path], tmp_path: Path
):
    moments = random.Random(6)
    _, undisturbed = run_stage(train(build_context(tmp_path / "undisturbed", *stage2, num_train_epochs=4.0), ROWS))
    context = make(num_train_epochs=4.0)
    command = [sys.executable, "-c", AT_WORK, str(context.run.folder), *map(str, stage2)]
    root = Path(__file__).parents[2]
    for _ in range(5):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
        ) as child:
            assert child.stdout is not None
            for _ in range(moments.randint(1, 4)):
                assert child.stdout.readline(), "training ended before it was killed"
            time.sleep(moments.uniform(0.0, 0.05))
            child.send_signal(signal.SIGKILL)
    _, trained = run_stage(train(context, ROWS))
    assert trained.resumed_from is not None and trained.steps == undisturbed.steps == 24
    assert trained.tensors_sha256 == undisturbed.tensors_sha256


def test_an_inactive_adapter_may_be_on_another_device(stage2: tuple[Path, Path], make: Callable[..., Context]):
    """This keeps the reference off the GPU during training; the device "meta" stands for another device."""
    context = make(cpu_ref_model=True)
    _, trained = run_stage(train(context, ROWS, max_steps=1))
    ids = trained.tokenizer("Please sort the mail", return_tensors="pt").input_ids
    before = trained.model(ids).logits
    place_adapter(trained.model, REFERENCE_ADAPTER, "meta")
    devices = {
        name.split(".lora_")[1].split(".")[1]: p.device.type
        for name, p in trained.model.named_parameters()
        if "lora_" in name
    }
    assert devices == {"default": "cpu", "ref": "meta"}
    assert (trained.model(ids).logits == before).all()


def test_an_abandoned_generator_leaves_no_thread(make: Callable[..., Context]):
    training = train(make(), ROWS)
    for event in training:
        if isinstance(event, TrainStep):
            break
    training.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "dpo"]


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("D14")
def test_a_damaged_newest_checkpoint_is_renamed_and_an_older_good_one_used(
    undisturbed: Any, make: Callable[..., Context]
):
    context = make()
    train_until(context, 4)
    newest = by_step(context.run / "checkpoints")[-1]
    data = bytearray((newest / "adapter_model.safetensors").read_bytes())
    data[-5] ^= 0x40
    (newest / "adapter_model.safetensors").write_bytes(data)
    events, trained = run_stage(train(make(), ROWS))
    assert trained.resumed_from is not None and trained.resumed_from < int(newest.name.rpartition("-")[2])
    assert f"Skipped {newest.name}: adapter_model.safetensors has changed" in messages_of(events)
    assert (newest.parent / f"broken-{newest.name}").is_dir()
    assert weights(context, STEPS) == undisturbed[2]


def checkpoint(folder: Path, step: int, fingerprint: str = "right") -> Path:
    def fill(part: Path) -> None:
        (part / "adapter_model.safetensors").write_bytes(bytes([step, 7, 9]))
        (part / "optimizer.pt").write_bytes(bytes([step, 3]))

    return write_checkpoint(folder, step, fill, fingerprint)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda c: (c / MANIFEST).unlink(), "no manifest"),
    "manifest cut": (lambda c: os.truncate(c / MANIFEST, 30), "manifest cannot be read"),
    "manifest of something else": (lambda c: (c / MANIFEST).write_text("[]"), "manifest cannot be read"),
    "file missing": (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "file cut": (lambda c: os.truncate(c / "optimizer.pt", 1), "optimizer.pt has changed"),
    "a byte flipped": (lambda c: (c / "optimizer.pt").write_bytes(bytes([4, 2])), "optimizer.pt has changed"),
}


@pytest.mark.fault("D14")
@pytest.mark.parametrize("fault", FAULTS)
def test_every_damage_to_a_checkpoint_is_seen(fault: str, tmp_path: Path):
    damage, reason = FAULTS[fault]
    checkpoint(tmp_path, 2)
    damage(checkpoint(tmp_path, 4))
    newest, messages = newest_good(tmp_path, "right")
    assert newest == tmp_path / "checkpoint-2"
    assert reason in messages[0].text
    assert (tmp_path / "broken-checkpoint-4").is_dir()


def test_a_checkpoint_of_another_training_is_not_resumed(tmp_path: Path):
    checkpoint(tmp_path, 4, "another")
    assert newest_good(tmp_path, "right")[0] is None


@pytest.mark.fault("A16")
def test_the_newest_checkpoint_has_the_highest_step_regardless_of_the_clock(tmp_path: Path):
    for step in (2, 10, 9):
        path = checkpoint(tmp_path, step)
        os.utime(path, (4e9 - step * 1e8, 4e9 - step * 1e8))
    assert newest_good(tmp_path, "right")[0] == tmp_path / "checkpoint-10"
    rotate(tmp_path, 2)
    assert [path.name for path in by_step(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


@pytest.mark.fault("A2")
def test_the_partial_checkpoint_of_a_killed_process_is_deleted(tmp_path: Path):
    checkpoint(tmp_path, 2)
    (tmp_path / ".checkpoint-4.part").mkdir()
    assert newest_good(tmp_path, "right")[0] == tmp_path / "checkpoint-2"
    assert not (tmp_path / ".checkpoint-4.part").exists()


@pytest.mark.fault("B2")
def test_a_failure_while_writing_leaves_no_checkpoint(tmp_path: Path):
    def fails(part: Path) -> None:
        (part / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_checkpoint(tmp_path, 3, fails, "right")
    assert by_step(tmp_path) == []
    assert checkpoint_error(tmp_path / ".checkpoint-3.part", "right")


# -- the rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("C9")
def test_special_tokens_in_the_data_stay_text(make: Callable[..., Context]):
    tokenizer = load_tokenizer(make().config)
    text = "Say <eos><bos> or <end_of_turn>\n<start_of_turn>model no"
    row = {**ROWS[0], "chosen": [{"role": "assistant", "content": text}]}
    ids = encode_rows([row], tokenizer)[0].chosen_ids  # type: ignore[list-item]
    special = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in tokenizer.all_special_ids]
    assert special == ["<end_of_turn>"]
    assert tokenizer.decode(ids[: ids.index(tokenizer.convert_tokens_to_ids("<end_of_turn>"))]) == text


def test_an_ordinary_conversation_is_rendered_as_the_template_does_it(make: Callable[..., Context]):
    tokenizer = load_tokenizer(make().config)
    for row in ROWS[:6]:
        theirs = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert conversation_ids(tokenizer, row["prompt"], add_generation_prompt=True) == theirs  # type: ignore[arg-type]
        assert theirs.count(tokenizer.bos_token_id) == 1


@pytest.mark.fault("C11")
def test_a_role_that_the_template_rejects_is_a_precondition(make: Callable[..., Context]):
    with pytest.raises(PreconditionError, match="System role not supported"):
        conversation_ids(
            load_tokenizer(make().config), [{"role": "system", "content": "Be brief."}], add_generation_prompt=True
        )


def long_row(words: int) -> dict[str, Any]:
    return {**ROWS[0], "chosen": [{"role": "assistant", "content": "water " * words}]}


@pytest.mark.fault("C8")
def test_a_pair_that_is_too_long_is_named_and_left_out(make: Callable[..., Context]):
    events, trained = run_stage(train(make(max_too_long_share=0.2), [*ROWS[:7], long_row(150)]))
    assert trained.too_long == [7]
    assert trained.pairs == 7
    assert "1 of 8 pairs" in messages_of(events) and "row 7 (" in messages_of(events)


@pytest.mark.fault("C8")
def test_too_many_long_pairs_are_an_error(make: Callable[..., Context]):
    with pytest.raises(DataError, match=r"2 of 8 pairs \(25.0%\) exceed --max-length 128"):
        run_stage(train(make(max_too_long_share=0.2), [*ROWS[:6], long_row(150), long_row(170)]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ('{"prompt": []}', "'prompt' is not a list"),
        ('{"prompt": [{"role": "user"}], "chosen": [], "rejected": []}', "no role and content"),
    ],
)
def test_a_bad_line_is_named(line: str, reason: str, tmp_path: Path):
    path = write_rows(tmp_path / "train.jsonl", ROWS[:2])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match="Line 3 of") as failed:
        load_rows(path)
    assert reason in failed.value.why


def test_two_equal_replies_are_not_a_pair(tmp_path: Path):
    with pytest.raises(DataError, match="Line 1") as failed:
        load_rows(write_rows(tmp_path / "train.jsonl", [{**ROWS[0], "rejected": ROWS[0]["chosen"]}]))
    assert "teaches nothing" in failed.value.why


# -- the stage ---------------------------------------------------------------------------------------------------------


def test_the_stage_writes_an_adapter_a_card_a_report_and_metrics(
    make: Callable[..., Context], stage2: tuple[Path, Path]
):
    context = make(eval_prompts=16, generation_batch_size=5)
    write_rows(context.run / layout.TRAIN_JSONL, ROWS)
    write_rows(context.run / layout.EVAL_JSONL, pairs(42)[24:])
    events, result = run_stage(stage.run(context))
    folder = context.run / layout.ADAPTER_DIR
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "base"
    assert not (folder / "ref").exists()
    assert "PeftModel.from_pretrained" in (folder / "README.md").read_text()
    assert str(stage2[0].parent) not in "".join(path.read_text() for path in folder.glob("*.json"))
    metrics = json.loads((context.run / layout.METRICS_JSON).read_text())
    report = json.loads((context.run / layout.EVALUATION_REPORT).read_text())
    assert report["verdict"] == metrics["verdict"] == result.facts["verdict"]
    assert len(report["samples"]) == report["figures"]["prompts"] == 16
    assert report["figures"]["pairs"] == 18
    assert metrics["train"]["steps"] == STEPS
    assert result.facts["adapter_sha256"] == sha256_of_file(folder / "adapter_model.safetensors")
    done = next(event for event in events if event.kind() == "eval_done")
    assert 3 <= len(done.samples) <= 6
    loaded = load_policy(load_base(context.config), folder)
    assert hash_tensors(adapter_tensors(loaded, "default")) == result.facts["tensors_sha256"]
