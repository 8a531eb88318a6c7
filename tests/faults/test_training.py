"""Faults in training and in its checkpoints."""

from __future__ import annotations

import json
import math
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.core.config import Stage3Config
from engine.core.errors import ExitCode, NumbersError
from engine.core.events import CheckpointSaved, Message
from engine.dpo.training import trl_trainer
from engine.dpo.training.checkpoints import MANIFEST, by_step, checkpoint_error
from engine.machine.error_mapping import as_stage3_error
from engine.models.loading import load_base, load_policy
from engine.run.context import Context
from engine.storage.files import write_json
from tests.conftest import run_stage
from tests.support.tiny_models import build_adapter, build_context, pairs
from tests.support.trainings import train

ROWS = pairs(16)  # four steps, two checkpoints


@pytest.fixture
def make(stage2: tuple[Path, Path], tmp_path: Path) -> Callable[..., Context]:
    return lambda name="run", **options: build_context(tmp_path / name, *stage2, **options)


def checkpoints(context: Context) -> list[str]:
    return [path.name for path in by_step(context.run / "checkpoints")]


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("D2")
def test_weights_that_overflow_after_a_finite_step_never_become_a_checkpoint(
    make: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    save_checkpoint = trl_trainer.Stage3Trainer._save_checkpoint

    def save_after_an_overflow(self: Any, model: Any, trial: Any) -> None:
        if self.state.global_step == 4:
            next(p for n, p in self.model.named_parameters() if "lora_B" in n and p.requires_grad).data[0, 0] = math.inf
        save_checkpoint(self, model, trial)

    monkeypatch.setattr(trl_trainer.Stage3Trainer, "_save_checkpoint", save_after_an_overflow)
    context = make()
    with pytest.raises(NumbersError, match="not finite after step 4") as stopped:
        run_stage(train(context, ROWS))
    assert stopped.value.exit_code == ExitCode.NUMBERS
    assert checkpoints(context) == ["checkpoint-2"]


@pytest.mark.fault("D2", "D14")
def test_a_checkpoint_that_contains_nan_is_skipped_for_the_one_before_it(make: Callable[..., Context]):
    context = make()
    run_stage(train(context, ROWS))
    undisturbed = (context.run / "checkpoints/checkpoint-4/adapter_model.safetensors").read_bytes()
    weights = context.run / "checkpoints/checkpoint-4/adapter_model.safetensors"
    save_file({name: tensor * math.nan for name, tensor in load_file(weights).items()}, weights)
    events, _ = run_stage(train(context, ROWS))
    assert any("Skipped checkpoint-4" in event.text for event in events if isinstance(event, Message))
    assert weights.read_bytes() == undisturbed


@pytest.mark.fault("D5")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_trained_weights_are_float32_whatever_the_base_and_the_file_contain(
    stage2: tuple[Path, Path], tmp_path: Path, dtype: str
):
    adapter = build_adapter(tmp_path / "adapter", stage2[0], dtype=getattr(torch, dtype))
    base = load_base(Stage3Config(base_model_id=str(stage2[0]), dtype=dtype, device="cpu"))
    policy = load_policy(base, adapter, trainable=True)
    trained = {str(p.dtype) for p in policy.parameters() if p.requires_grad}
    frozen = {str(p.dtype) for p in policy.parameters() if not p.requires_grad}
    assert trained == {"torch.float32"} and frozen == {f"torch.{dtype}"}


# -- the disk ----------------------------------------------------------------------------------------------------------


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Simulates a disk that fills up within a file, by a file size limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.fault("B2")
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_disk_that_fills_in_any_file_of_a_checkpoint_is_exit_6_and_the_one_before_it_stays(
    make: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, file: str
):
    fill_checkpoint = trl_trainer.Stage3Trainer._fill_checkpoint

    def fill_on_a_full_disk(self: Any, folder: Path) -> None:
        if self.state.global_step == 2:
            return fill_checkpoint(self, folder)
        size = (folder.parent / "checkpoint-2" / file).stat().st_size
        with files_no_larger_than(size // 2):
            return fill_checkpoint(self, folder)

    monkeypatch.setattr(trl_trainer.Stage3Trainer, "_fill_checkpoint", fill_on_a_full_disk)
    context = make()
    with pytest.raises(Exception) as full:  # the exception of safetensors or of torch
        run_stage(train(context, ROWS))
    mapped = as_stage3_error(full.value)
    assert mapped is not None and mapped.exit_code == ExitCode.DISK, full.value
    assert checkpoints(context) == ["checkpoint-2"]
    monkeypatch.undo()
    events, _ = run_stage(train(context, ROWS))
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [4]


# -- damage to a finished checkpoint -----------------------------------------------------------------------------------


def _keep_only_the_manifest(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != MANIFEST:
            path.unlink()


def _swap_two_files(folder: Path) -> None:
    one, other = folder / "optimizer.pt", folder / "scheduler.pt"
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def _flip_one_bit(folder: Path) -> None:
    path = folder / "optimizer.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "no scheduler": lambda folder: (folder / "scheduler.pt").unlink(),
    "no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "no random state": lambda folder: (folder / "rng_state.pth").unlink(),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "only the manifest": _keep_only_the_manifest,
    "an empty file": lambda folder: (folder / "trainer_state.json").write_bytes(b""),
    "a truncated file": lambda folder: (folder / "optimizer.pt").write_bytes(
        (folder / "optimizer.pt").read_bytes()[:-1]
    ),
    "a longer file": lambda folder: (folder / "trainer_state.json").open("ab").write(b" "),
    "one bit": _flip_one_bit,
    "two files swapped": _swap_two_files,
    "a folder in place of a file": lambda folder: (
        (folder / "scheduler.pt").unlink(),
        (folder / "scheduler.pt").mkdir(),
    ),
    "an empty manifest": lambda folder: (folder / MANIFEST).write_bytes(b""),
    "a manifest that is a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "the manifest of another step": lambda folder: write_json(
        folder / MANIFEST, {"step": 9, "fingerprint": "", "files": {}}
    ),
}


@pytest.fixture(scope="module")
def finished(stage2: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = build_context(tmp_path_factory.mktemp("finished") / "run", *stage2)
    run_stage(train(context, ROWS))
    return Path(context.run.folder) / "checkpoints" / "checkpoint-4"


@pytest.mark.fault("D14")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_no_damage_to_a_checkpoint_escapes_its_manifest(
    finished: Path, tmp_path: Path, damage: Callable[[Path], object]
):

    fingerprint = json.loads((finished / MANIFEST).read_text())["fingerprint"]
    copy = tmp_path / finished.name
    shutil.copytree(finished, copy)
    assert checkpoint_error(copy, fingerprint) == ""
    damage(copy)
    assert checkpoint_error(copy, fingerprint) != ""


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("D21")
def test_training_in_the_engines_thread_changes_no_signal_handler(make: Callable[..., Context]):
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGCHLD]
    before = {number: signal.getsignal(number) for number in signals}
    ended: list[object] = []

    def work() -> None:
        try:
            ended.append(run_stage(train(make(), ROWS[:4])))
        except BaseException as error:  # shown by the assertion
            ended.append(error)

    engine = threading.Thread(target=work)
    engine.start()
    engine.join()
    assert isinstance(ended[0], tuple), ended
    assert {number: signal.getsignal(number) for number in signals} == before
