"""DPO of the Stage 2 adapter against itself, as a generator of events.

TRL's trainer runs in its own thread; its callback puts events into a queue, which the generator drains.
"""

from __future__ import annotations

import json
import math
import queue
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from engine.core import layout
from engine.core.errors import NumbersError, PreconditionError
from engine.core.events import Event, Message, TrainStep
from engine.core.layout import ADAPTER_CONFIG
from engine.dpo.planning.plan import TrainingPlan, current_plan, reduce_after_oom
from engine.dpo.training.checkpoints import adopt, by_step, newest_good, step_of
from engine.dpo.training.dataset import (
    EncodedPair,
    LongPair,
    Row,
    describe,
    drop_long_pairs,
    encoded,
    load_rows,
    require_most_pairs_fit,
    rows_with_special_text,
)
from engine.dpo.training.process_group import SINGLE_PROCESS, ProcessGroup
from engine.dpo.training.reference import (
    LN2,
    REFERENCE_ADAPTER,
    place_adapter,
    policy_key,
    reference_logps,
    require_first_loss,
    require_reference_weights,
)
from engine.dpo.training.warnings import TrainingWarnings
from engine.machine.device import resolve_device
from engine.machine.memory import MemoryPeak, free_memory, is_out_of_memory, trim_memory
from engine.machine.optimizers import require_optimizer, uses_bitsandbytes
from engine.models.adapters.source import adapter_folder
from engine.models.loading import (
    POLICY_ADAPTER,
    dtype_name,
    load_base,
    load_policy,
    load_tokenizer,
    resolve_dtype,
    restore_adapter,
)
from engine.models.tensors import adapter_tensors, hash_tensors
from engine.run.superseded import is_reusable, superseded_folders
from engine.storage.files import publish_folder, write_json
from engine.storage.keyed_cache import KeyedCache
from engine.storage.lazy import Mapped

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from engine.core.config import Stage3Config
    from engine.dpo.training.encoded_pairs import EncodedPairs
    from engine.dpo.training.trl_trainer import Stage3Trainer
    from engine.run.folder import Run
    from engine.run.stop import StopToken

WARMUP_FRACTION = 0.1
STAGE = "training"
LAST_STEPS = 10
ABOVE_LN2 = 1e-3
"""Tolerance above ln 2: at learning rate 0 the loss is ln 2 up to rounding, which is not divergence."""
TENSORBOARD_DIR = "logs/tensorboard"


@dataclass
class Trained:
    """The result of training."""

    model: PeftModel
    """With the adapters "default" (Stage 3) and "ref" (Stage 2)."""
    tokenizer: PreTrainedTokenizerBase
    collator: Any
    steps: int
    losses: list[float]
    """The loss of every optimizer step, including those before a resume."""
    margins: list[float]
    first_loss: float | None
    """The loss before the first update; None if training resumed from a checkpoint."""
    resumed_from: int | None
    pairs: int
    too_long: list[int]
    """Indices of rows that did not fit --max-length."""
    tensors_sha256: str
    stage2_sha256: str
    """The hash of the reference's tensors."""
    seconds: float
    plan: TrainingPlan
    peak_bytes: int
    """Peak memory of this process, from loading the model to the last step (see MemoryPeak)."""

    def release(self) -> None:
        """Free the model's memory, because other processes load the model next."""
        del self.model
        trim_memory()


def train(
    config: Stage3Config,
    run: Run,
    rows: Sequence[Row],
    *,
    stop: StopToken,
    token: str | None = None,
    reference_sha256: str | None = None,
    policy: PeftModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_steps: int = -1,
    plan: TrainingPlan | None = None,
) -> Generator[Event, None, Trained]:
    """Train on `rows`, resuming from the newest good checkpoint in the run folder.

    token              for the Hub
    reference_sha256   hash of the Stage 2 tensors; by default the one that stage adapter recorded
    policy             a freshly loaded, trainable PeftModel; by default the run's base model and adapter
    max_steps          optimizer steps; -1 follows --num-train-epochs
    plan               by default the current plan of the run folder

    Raises RestartNeeded if memory runs out and a reduced plan (now on disk) can continue in a fresh process,
    MemoryExhausted if there is none, Stopped (after writing a checkpoint), NumbersError (wrong reference, NaN, nothing
    learned; the last good checkpoint is kept), DataError (too many pairs longer than --max-length).
    """
    plan = plan or current_plan(run, config, dtype_name(resolve_dtype(config)))
    resolved, expected = plan.applied_to(config), reference_sha256 or expected_reference(run)
    oom_message, step = "", max(map(step_of, by_step(run / layout.CHECKPOINTS_DIR)), default=0)
    try:
        training = _train(resolved, run, rows, plan, expected, policy, tokenizer, max_steps, stop=stop, token=token)
        while True:
            event = next(training)
            if isinstance(event, TrainStep):
                step = event.step
            yield event
    except StopIteration as end:
        return cast("Trained", end.value)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        oom_message = str(error)
    finally:
        training.close()
    # Outside `except`, because the traceback keeps the tensors alive that filled the memory.
    raise reduce_after_oom(run, config, plan, step=step, error=oom_message)


def train_as_rank(
    config: Stage3Config,
    run: Run,
    plan: TrainingPlan,
    reference_sha256: str,
    group: ProcessGroup,
    *,
    stop: StopToken,
    max_steps: int = -1,
) -> Generator[Event, None, Trained]:
    """`train` on the run's training pairs, as one of several processes. All yield the same events.

    Raises as `train` does, except that it passes on the allocator's error if memory runs out.
    """
    rows = load_rows(run / layout.TRAIN_JSONL)
    return _train(plan.applied_to(config), run, rows, plan, reference_sha256, None, None, max_steps, group, stop=stop)


@dataclass
class _Prepared:
    """Everything needed to start training: the trainer with its pairs."""

    policy: PeftModel
    tokenizer: PreTrainedTokenizerBase
    trainer: Stage3Trainer
    pairs: EncodedPairs
    too_long: list[LongPair]
    dtype: torch.dtype
    fingerprint: str
    """A hash of everything the trained weights depend on, which excludes how a batch is split."""
    steps: int
    """Optimizer steps of the whole training."""


def _train(
    config: Stage3Config,
    run: Run,
    rows: Sequence[Row],
    plan: TrainingPlan,
    expected: str,
    policy: PeftModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    max_steps: int,
    group: ProcessGroup = SINGLE_PROCESS,
    *,
    stop: StopToken,
    token: str | None = None,
) -> Generator[Event, None, Trained]:
    """`train` under a plan that is already applied to the configuration."""
    from engine.dpo.training.callbacks import WarningsCallback

    require_optimizer(config)
    started, peak = time.monotonic(), MemoryPeak(resolve_device(config))
    callbacks = _reporting_callbacks(config, run)
    prepared = yield from _prepare(config, run, token, rows, expected, policy, tokenizer, max_steps, group)
    reference_cache = KeyedCache(run.cache / layout.REFERENCE_LOGPS)
    yield from _prepare_reference(config, prepared, expected, reference_cache, stop)
    other_folders = partial(reusable_checkpoint_folders, run)
    checkpoint = yield from _checkpoint_to_resume(run, other_folders, prepared.fingerprint, group)
    first_loss = yield from _begin(prepared, checkpoint)
    training_warnings = TrainingWarnings(_discard, _mean_reply_tokens(prepared.pairs), plan.effective_batch)
    for callback in [WarningsCallback(training_warnings), *callbacks]:
        prepared.trainer.add_callback(callback)
    if checkpoint is not None and step_of(checkpoint) >= prepared.steps:
        prepared.trainer.restore(checkpoint)
    else:
        yield from _run_trainer(prepared.trainer, stop, checkpoint, training_warnings)
    final = yield from _require_changed_adapter(prepared, expected, config.learning_rate)
    history = [entry for entry in prepared.trainer.state.log_history if "loss" in entry]
    losses = [float(entry["loss"]) for entry in history]
    yield from _warn_of_divergence(losses)
    trained = Trained(
        model=prepared.policy,
        tokenizer=prepared.tokenizer,
        collator=prepared.trainer.data_collator,
        steps=prepared.trainer.state.global_step,
        losses=losses,
        margins=[float(entry["rewards/margins"]) for entry in history],
        first_loss=first_loss,
        resumed_from=None if checkpoint is None else step_of(checkpoint),
        pairs=len(prepared.pairs),
        too_long=[pair.index for pair in prepared.too_long],
        tensors_sha256=final,
        stage2_sha256=expected,
        seconds=time.monotonic() - started,
        plan=plan,
        peak_bytes=peak.bytes(),
    )
    del prepared  # frees the optimizer, too
    prepare_for_generation(trained.model)
    return trained


def prepare_for_generation(model: PeftModel) -> None:
    model.eval()
    model.config.use_cache = True  # gradient checkpointing disabled it; the evaluation generates next
    free_memory()


def _reporting_callbacks(config: Stage3Config, run: Run) -> list[TrainerCallback]:
    """Raises PreconditionError, before anything is loaded, if tensorboard is requested but not installed."""
    from engine.dpo.training.callbacks import tensorboard

    return [tensorboard(run / TENSORBOARD_DIR)] if config.report_to == "tensorboard" else []


def _prepare(
    config: Stage3Config,
    run: Run,
    token: str | None,
    rows: Sequence[Row],
    expected: str,
    policy: PeftModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    max_steps: int,
    group: ProcessGroup,
) -> Generator[Event, None, _Prepared]:
    from engine.dpo.training.encoded_pairs import as_dataset_row, fingerprint_of
    from engine.dpo.training.trl_trainer import build_trainer

    tokenizer = tokenizer or load_tokenizer(config, token)
    pairs, too_long = yield from _encode_and_filter(config, run.folder, rows, tokenizer)
    sharded = config.sharding == "fsdp" and group.world_size > 1
    if policy is None:  # a model that will be sharded is loaded on the CPU
        base = load_base(config, token, device="cpu" if sharded else None)
        policy = load_policy(base, adapter_folder(config, run, token), trainable=True)
    dtype = resolve_dtype(config)
    settings = training_settings(config, len(pairs), max_steps)
    fingerprint = fingerprint_of(
        map(as_dataset_row, pairs),
        {"settings": split_invariant_settings(settings), "reference": expected, "dtype": str(dtype)},
    )
    folder = run / layout.CHECKPOINTS_DIR
    trainer_class = _fsdp_trainer() if sharded else None
    trainer = build_trainer(
        config, folder, policy, tokenizer, pairs, settings, dtype, fingerprint, group, trainer_class
    )
    if trainer.placement:
        yield Message("info", trainer.placement)
    if trainer.why_head:
        yield Message("warning" if config.head != "auto" else "info", f"{trainer.why_head}.")
    steps = max_steps if max_steps > 0 else steps_of(config, len(pairs))
    return _Prepared(policy, tokenizer, trainer, pairs, too_long, dtype, fingerprint, steps)


def _fsdp_trainer() -> type[Stage3Trainer]:
    from engine.dpo.training.fsdp_trainer import FSDPTrainer

    return FSDPTrainer


def _prepare_reference(
    config: Stage3Config, prepared: _Prepared, expected: str, cache: KeyedCache, stop: StopToken
) -> Generator[Event, None, None]:
    """Verify that the reference is the Stage 2 adapter and, if configured, compute its log-probabilities up front."""
    from engine.dpo.training.encoded_pairs import as_dataset_row

    policy, trainer = prepared.policy, prepared.trainer
    require_reference_weights(policy, expected)
    if config.load_in_4bit:
        restore_adapter(policy, REFERENCE_ADAPTER)
    if not config.cpu_ref_model:
        return
    logps = yield from reference_logps(
        policy,
        Mapped(prepared.pairs, as_dataset_row),
        trainer.data_collator,
        batch_size=config.per_device_train_batch_size,
        dtype=prepared.dtype,
        cache=cache,
        policy=policy_key(config, expected),
        stop=stop,
        group=trainer.group,
        lockstep=trainer.forward_in_lockstep,
    )
    trainer.use_reference_logps(logps)


def _checkpoint_to_resume(
    run: Run, other_folders: Callable[[], list[Path]], fingerprint: str, group: ProcessGroup
) -> Generator[Event, None, Path | None]:
    """The checkpoint that rank 0 finds: the others must not look while it renames folders."""
    checkpoint = (
        (yield from _newest_checkpoint(run / layout.CHECKPOINTS_DIR, other_folders, fingerprint))
        if group.is_main
        else None
    )
    return group.broadcast(checkpoint)


def _newest_checkpoint(
    folder: Path, other_folders: Callable[[], list[Path]], fingerprint: str
) -> Generator[Event, None, Path | None]:
    """The newest good checkpoint in `folder`, else one of the same training from another folder, which is copied."""
    checkpoint, messages = newest_good(folder, fingerprint)
    yield from messages
    if checkpoint is not None:
        return checkpoint
    source = adopt(folder, other_folders(), fingerprint)
    if source is None:
        return None
    yield Message("info", f"Found the same training in {source}; continuing from its checkpoint.")
    return folder / source.name


def _begin(prepared: _Prepared, checkpoint: Path | None) -> Generator[Event, None, float | None]:
    """The loss before the first step, which must be ln 2; None when resuming from a checkpoint."""
    first_loss = None
    if checkpoint is None:
        first_loss = prepared.trainer.first_loss()
        require_first_loss(first_loss, prepared.dtype)
        text = f"Before the first step: loss {first_loss:.6f} = ln 2, so the reference is the Stage 2 adapter."
        yield Message("info", text)
    elif step_of(checkpoint) < prepared.steps:
        yield Message("info", f"Resuming from {checkpoint.name}.")
    if prepared.trainer.precompute_ref_logps and prepared.trainer.group.world_size == 1:  # DDP needs one device
        place_adapter(prepared.policy, REFERENCE_ADAPTER, "cpu")  # its log-probabilities are known, so no step uses it
    return first_loss


def _require_changed_adapter(prepared: _Prepared, expected: str, learning_rate: float) -> Generator[Event, None, str]:
    """The hash of the trained tensors. Raises NumbersError if the reference changed, or if the adapter did not."""
    policy = prepared.policy
    place_adapter(policy, REFERENCE_ADAPTER)
    require_reference_weights(policy, expected)
    final = hash_tensors(adapter_tensors(policy, POLICY_ADAPTER))
    if final == expected and learning_rate == 0:
        yield Message("warning", "--learning-rate is 0: nothing was trained, so the adapter equals Stage 2's.")
    elif final == expected:
        raise NumbersError(
            "Training did not change the adapter.",
            f"Its tensors still equal Stage 2's ({final}).",
            f"Check --learning-rate (now {learning_rate}) and the pairs.",
        )
    return final


def _mean_reply_tokens(pairs: Sequence[EncodedPair]) -> float:
    return sum(len(pair.chosen_ids) for pair in pairs) / len(pairs)


def reusable_checkpoint_folders(run: Run) -> list[Path]:
    """Other checkpoint folders: of the run's trials, of the run that this one is a trial of, and superseded ones."""
    # A trial shares the caches of its sweep, which are inside the run that it is a trial of.
    folders = [run.folder] if run.shared_cache is None else [run.folder, run.shared_cache.parent]
    others: list[Path] = []
    for folder in folders:
        others += [folder / layout.CHECKPOINTS_DIR] if folder != run.folder else []
        others += sorted((folder / layout.TRIALS_DIR).glob(f"*/{layout.CHECKPOINTS_DIR}"))
        others += [old / layout.CHECKPOINTS_DIR for old in superseded_folders(folder) if is_reusable(old)]
    return others


def _warn_of_divergence(losses: list[float]) -> Iterator[Message]:
    """An untrained policy has a loss of ln 2. A higher final loss means that training learned the opposite, or diverged."""
    last = losses[-LAST_STEPS:]
    if len(losses) >= 2 * LAST_STEPS and sum(last) / len(last) > LN2 + ABOVE_LN2:
        text = f"The mean loss of the last {len(last)} steps is {sum(last) / len(last):.3f}, above ln 2 = {LN2:.3f}"
        yield Message("warning", f"{text}: worse than untrained. Check --learning-rate and the pairs.")


def expected_reference(run: Run) -> str:
    """The hash of the reference's tensors that stage adapter recorded. Raises PreconditionError if there is none."""
    adapter = run.results.adapter
    if adapter is None:
        raise PreconditionError(
            "The run has no record of the reference adapter.",
            "Stage adapter verifies it and records the hash of its tensors.",
            "Run `stage3-tui --auto --until adapter` first.",
        )
    return adapter.tensors_sha256


def planned_steps(pairs: int, epochs: float, batch_size: int, accumulation: int) -> int:
    """Number of optimizer steps. The last batch and the last accumulation of an epoch may be partial."""
    per_epoch = max(math.ceil(math.ceil(pairs / batch_size) / accumulation), 1)
    return math.ceil(epochs * per_epoch)


def steps_of(config: Stage3Config, pairs: int) -> int:
    """Number of optimizer steps for so many pairs."""
    return planned_steps(
        pairs, config.num_train_epochs, config.per_device_train_batch_size, config.gradient_accumulation_steps
    )


def training_settings(config: Stage3Config, pairs: int, max_steps: int = -1) -> dict[str, Any]:
    """Everything that affects the result of training, as arguments for DPOConfig."""
    steps = max_steps if max_steps > 0 else steps_of(config, pairs)
    return {
        "num_train_epochs": config.num_train_epochs,
        "max_steps": max_steps,
        "beta": config.beta,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "linear",
        # Rounded down: one warm-up step in a run of one step would mean a learning rate of 0.
        "warmup_steps": int(steps * WARMUP_FRACTION),
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "max_length": config.max_length,
        "seed": config.seed,
        # Only if it is not the default, so that checkpoints of earlier versions can be resumed.
        **({"optim": config.optim} if uses_bitsandbytes(config) else {}),
    }


def split_invariant_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the effective batch instead of its split, so that checkpoints survive a change of plan."""
    split_settings = ("per_device_train_batch_size", "gradient_accumulation_steps")
    size, steps = (settings[name] for name in split_settings)
    return {key: value for key, value in settings.items() if key not in split_settings} | {
        "effective_batch": size * steps
    }


def _encode_and_filter(
    config: Stage3Config, scratch: Path, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> Generator[Event, None, tuple[EncodedPairs, list[LongPair]]]:
    from engine.dpo.training.encoded_pairs import EncodedPairs

    too_long = list[LongPair]()
    with_special_text = rows_with_special_text(rows, tokenizer)
    if with_special_text:
        yield Message(
            "info",
            f"{len(with_special_text)} pairs contain text that looks like a special token; it is trained as plain text.",
        )
    pairs = EncodedPairs(drop_long_pairs(encoded(rows, tokenizer), config.max_length, too_long), scratch)
    require_most_pairs_fit(too_long, len(rows), config.max_length, config.max_too_long_share)
    if too_long:
        text = f"{len(too_long)} of {len(rows)} pairs exceed --max-length {config.max_length} and are left out"
        yield Message("warning", f"{text}: {describe(too_long)}.")
    return pairs, too_long


def _discard(event: Event) -> None:
    """Drop an event that nothing listens for."""


def _run_trainer(
    trainer: Stage3Trainer, stop: StopToken, checkpoint: Path | None, training_warnings: TrainingWarnings
) -> Generator[Event, None, None]:
    """Run the trainer in a thread; yield its events and warnings. Raises the trainer's error, or Stopped."""
    import torch

    from engine.dpo.training.trl_trainer import StepEvents, without_warnings

    events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    abandoned = threading.Event()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            if trainer.args.device.type == "cuda":
                torch.cuda.set_device(trainer.args.device)  # each thread has its own current device
            with without_warnings():
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except BaseException as error:  # raised again in the generator's thread
            failure.append(error)
        finally:
            events.put(None)

    trainer.emit = training_warnings.emit = events.put
    trainer.add_callback(
        StepEvents(
            events.put,
            should_stop=lambda: trainer.group.stop_requested(stop) or abandoned.is_set(),
            skipped=lambda: bool(trainer.accelerator.optimizer_step_was_skipped),
        )
    )
    thread = threading.Thread(target=work, name="dpo", daemon=True)
    thread.start()
    try:
        while (event := events.get()) is not None:
            yield event
    finally:
        abandoned.set()
        thread.join()
    if failure:
        raise failure[0]
    stop.raise_if_requested()


def save_adapter(trained: Trained, folder: Path, *, base_name: str, base_revision: str | None) -> None:
    """Save the Stage 3 adapter, its tokenizer and chat template to `folder`, without local paths. An interruption leaves the old
    folder, none or the complete new one.

    base_name   the value of `base_model_name_or_path`: a Hub id, or the name of a local folder
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    trained.model.save_pretrained(str(part), selected_adapters=[POLICY_ADAPTER], save_embedding_layers=False)
    trained.tokenizer.save_pretrained(str(part))
    (part / "README.md").unlink(missing_ok=True)
    settings = json.loads((part / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": base_name, "revision": base_revision, "inference_mode": True}
    if isinstance(settings["target_modules"], list):  # PEFT stores a set, whose order differs between processes
        settings["target_modules"].sort()
    write_json(part / ADAPTER_CONFIG, settings)
    tokenizer_settings = json.loads((part / "tokenizer_config.json").read_text(encoding="utf-8"))
    for local_setting in ("name_or_path", "is_local", "local_files_only"):
        tokenizer_settings.pop(local_setting, None)
    write_json(part / "tokenizer_config.json", tokenizer_settings)
    if folder.exists():
        shutil.rmtree(folder)
    publish_folder(part, folder)
