"""DPO of the Stage 2 adapter against itself, as a generator of events.

TRL's trainer runs in its own thread; its callback puts events on a queue, which the generator drains.
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
    encoded,
    load_rows,
    refuse_too_many_long,
    rows_with_special_text,
    without_long,
)
from engine.dpo.training.ranks import ALONE, Ranks
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

WARMUP_SHARE = 0.1
STAGE = "training"
LAST_STEPS = 10
ABOVE_LN2 = 1e-3
"""Tolerance above ln 2: at learning rate 0 the loss is ln 2 up to rounding, which is not divergence."""
TENSORBOARD_DIR = "logs/tensorboard"


@dataclass
class Trained:
    """The result of a training."""

    model: PeftModel
    """With the adapters "default" (Stage 3) and "ref" (Stage 2)."""
    tokenizer: PreTrainedTokenizerBase
    collator: Any
    steps: int
    losses: list[float]
    """Of every optimizer step, including those before a resume."""
    margins: list[float]
    first_loss: float | None
    """Before the first update; None if training resumed from a checkpoint."""
    resumed_from: int | None
    pairs: int
    too_long: list[int]
    """Indices of rows that did not fit --max-length."""
    tensors_sha256: str
    stage2_sha256: str
    """Of the reference's tensors."""
    seconds: float
    plan: TrainingPlan
    peak_bytes: int
    """Peak memory of this process, from loading the model to the last step (see MemoryPeak)."""

    def release(self) -> None:
        """Give back the model's memory, because other processes have the model from here on."""
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

    token              of the Hub
    reference_sha256   of the Stage 2 tensors; by default what stage adapter recorded
    policy             a freshly loaded, trainable PeftModel; by default the run's base model and adapter
    max_steps          optimizer steps; -1 follows --num-train-epochs
    plan               by default the current plan of the run folder

    Raises RestartNeeded if memory runs out and a reduced plan (now on disk) can continue in a fresh process, MemoryExhausted if
    there is none, Stopped (after writing a checkpoint), NumbersError (wrong reference, NaN, nothing learned; the last good
    checkpoint is kept), DataError (too many pairs longer than --max-length).
    """
    plan = plan or current_plan(run, config, dtype_name(resolve_dtype(config)))
    resolved, expected = plan.applied_to(config), reference_sha256 or expected_reference(run)
    said, step = "", max(map(step_of, by_step(run / layout.CHECKPOINTS_DIR)), default=0)
    try:
        working = _train(resolved, run, rows, plan, expected, policy, tokenizer, max_steps, stop=stop, token=token)
        while True:
            event = next(working)
            if isinstance(event, TrainStep):
                step = event.step
            yield event
    except StopIteration as end:
        return cast("Trained", end.value)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = str(error)
    finally:
        working.close()
    # Outside `except`, because the traceback keeps alive the tensors that filled memory.
    raise reduce_after_oom(run, config, plan, step=step, error=said)


def train_share(
    config: Stage3Config,
    run: Run,
    plan: TrainingPlan,
    reference_sha256: str,
    ranks: Ranks,
    *,
    stop: StopToken,
    max_steps: int = -1,
) -> Generator[Event, None, Trained]:
    """`train` on the run's training pairs, as one of several processes. Each yields the same events.

    Raises as `train` does, but of memory that ran out what the allocator raised.
    """
    rows = load_rows(run / layout.TRAIN_JSONL)
    return _train(plan.applied_to(config), run, rows, plan, reference_sha256, None, None, max_steps, ranks, stop=stop)


@dataclass
class _Prepared:
    """Everything needed to start the steps: the trainer over its pairs."""

    policy: PeftModel
    tokenizer: PreTrainedTokenizerBase
    trainer: Stage3Trainer
    pairs: EncodedPairs
    too_long: list[LongPair]
    dtype: torch.dtype
    fingerprint: str
    """A hash of everything the trained numbers depend on, but not of how a batch is split."""
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
    ranks: Ranks = ALONE,
    *,
    stop: StopToken,
    token: str | None = None,
) -> Generator[Event, None, Trained]:
    """`train` under one plan, which is already applied to the configuration."""
    from engine.dpo.training.callbacks import WarningsCallback

    require_optimizer(config)
    started, peak = time.monotonic(), MemoryPeak(resolve_device(config))
    callbacks = _reporting_callbacks(config, run)
    prepared = yield from _prepare(config, run, token, rows, expected, policy, tokenizer, max_steps, ranks)
    reference_cache = KeyedCache(run.cache / layout.REFERENCE_LOGPS)
    yield from _place_reference(config, prepared, expected, reference_cache, stop)
    others = partial(earlier_trainings, run)
    checkpoint = yield from _checkpoint_to_resume(run, others, prepared.fingerprint, ranks)
    first_loss = yield from _begin(prepared, checkpoint)
    watch = TrainingWarnings(_discard, _mean_reply_tokens(prepared.pairs), plan.effective_batch)
    for callback in [WarningsCallback(watch), *callbacks]:
        prepared.trainer.add_callback(callback)
    if checkpoint is not None and step_of(checkpoint) >= prepared.steps:
        prepared.trainer.take_back(checkpoint)
    else:
        yield from _drive(prepared.trainer, stop, checkpoint, watch)
    final = yield from _prove_it_learned(prepared, expected, config.learning_rate)
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
    del prepared  # and with it the optimizer
    ready_to_answer(trained.model)
    return trained


def ready_to_answer(model: PeftModel) -> None:
    model.eval()
    model.config.use_cache = True  # gradient checkpointing switched it off; the evaluation generates next
    free_memory()


def _reporting_callbacks(config: Stage3Config, run: Run) -> list[TrainerCallback]:
    """Raises PreconditionError if tensorboard is requested but not installed, before anything is loaded."""
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
    ranks: Ranks,
) -> Generator[Event, None, _Prepared]:
    from engine.dpo.training.encoded_pairs import as_plain, fingerprint_of
    from engine.dpo.training.trl_trainer import build_trainer

    tokenizer = tokenizer or load_tokenizer(config, token)
    pairs, too_long = yield from _encode_and_filter(config, run.folder, rows, tokenizer)
    sharded = config.sharding == "fsdp" and ranks.count > 1
    if policy is None:  # one that is to be spread begins on the CPU
        base = load_base(config, token, device="cpu" if sharded else None)
        policy = load_policy(base, adapter_folder(config, run, token), trainable=True)
    dtype = resolve_dtype(config)
    settings = training_settings(config, len(pairs), max_steps)
    fingerprint = fingerprint_of(
        map(as_plain, pairs),
        {"settings": split_invariant_settings(settings), "reference": expected, "dtype": str(dtype)},
    )
    folder = run / layout.CHECKPOINTS_DIR
    kind = _sharded() if sharded else None
    trainer = build_trainer(config, folder, policy, tokenizer, pairs, settings, dtype, fingerprint, ranks, kind)
    if trainer.placement:
        yield Message("info", trainer.placement)
    if trainer.why_head:
        yield Message("warning" if config.head != "auto" else "info", f"{trainer.why_head}.")
    steps = max_steps if max_steps > 0 else steps_of(config, len(pairs))
    return _Prepared(policy, tokenizer, trainer, pairs, too_long, dtype, fingerprint, steps)


def _sharded() -> type[Stage3Trainer]:
    from engine.dpo.training.sharded_trainer import ShardedTrainer

    return ShardedTrainer


def _place_reference(
    config: Stage3Config, prepared: _Prepared, expected: str, cache: KeyedCache, stop: StopToken
) -> Generator[Event, None, None]:
    """Verify that the reference is the Stage 2 adapter and, if configured, compute its log-probabilities up front."""
    from engine.dpo.training.encoded_pairs import as_plain

    policy, trainer = prepared.policy, prepared.trainer
    require_reference_weights(policy, expected)
    if config.load_in_4bit:
        restore_adapter(policy, REFERENCE_ADAPTER)
    if not config.cpu_ref_model:
        return
    logps = yield from reference_logps(
        policy,
        Mapped(prepared.pairs, as_plain),
        trainer.data_collator,
        batch_size=config.per_device_train_batch_size,
        dtype=prepared.dtype,
        cache=cache,
        policy=policy_key(config, expected),
        stop=stop,
        ranks=trainer.ranks,
        together=trainer.passes_together,
    )
    trainer.use_reference_logps(logps)


def _checkpoint_to_resume(
    run: Run, others: Callable[[], list[Path]], fingerprint: str, ranks: Ranks
) -> Generator[Event, None, Path | None]:
    """What the first process finds: others may not look while it renames."""
    found = (
        (yield from _newest_checkpoint(run / layout.CHECKPOINTS_DIR, others, fingerprint)) if ranks.is_first else None
    )
    return ranks.from_first(found)


def _newest_checkpoint(
    folder: Path, others: Callable[[], list[Path]], fingerprint: str
) -> Generator[Event, None, Path | None]:
    """The newest good checkpoint of this training: in its own folder, else one of the same training among the others."""
    checkpoint, told = newest_good(folder, fingerprint)
    yield from told
    if checkpoint is not None:
        return checkpoint
    elsewhere = adopt(folder, others(), fingerprint)
    if elsewhere is None:
        return None
    yield Message("info", f"Found the same training in {elsewhere}; continuing from its checkpoint.")
    return folder / elsewhere.name


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
    if prepared.trainer.precompute_ref_logps and prepared.trainer.ranks.count == 1:  # DDP wants one device
        place_adapter(prepared.policy, REFERENCE_ADAPTER, "cpu")  # its log-probabilities are known, so no step uses it
    return first_loss


def _prove_it_learned(prepared: _Prepared, expected: str, learning_rate: float) -> Generator[Event, None, str]:
    """The hash of the trained tensors. Raises NumbersError if the reference changed, or if the adapter did not."""
    policy = prepared.policy
    place_adapter(policy, REFERENCE_ADAPTER)
    require_reference_weights(policy, expected)
    final = hash_tensors(adapter_tensors(policy, POLICY_ADAPTER))
    if final == expected and learning_rate == 0:
        yield Message("warning", "--learning-rate is 0: nothing was trained, so the adapter equals Stage 2's.")
    elif final == expected:
        raise NumbersError(
            "The training did not change the adapter.",
            f"Its tensors still equal Stage 2's ({final}).",
            f"Check --learning-rate (now {learning_rate}) and the pairs.",
        )
    return final


def _mean_reply_tokens(pairs: Sequence[EncodedPair]) -> float:
    return sum(len(pair.chosen_ids) for pair in pairs) / len(pairs)


def earlier_trainings(run: Run) -> list[Path]:
    """Other checkpoint folders: those of the run's trials, of the run that this one is a trial of, and superseded ones."""
    # A trial shares the caches of its sweep, which lie inside the run that it is a trial of.
    folders = [run.folder] if run.shared_cache is None else [run.folder, run.shared_cache.parent]
    found: list[Path] = []
    for folder in folders:
        found += [folder / layout.CHECKPOINTS_DIR] if folder != run.folder else []
        found += sorted((folder / layout.TRIALS_DIR).glob(f"*/{layout.CHECKPOINTS_DIR}"))
        found += [old / layout.CHECKPOINTS_DIR for old in superseded_folders(folder) if is_reusable(old)]
    return found


def _warn_of_divergence(losses: list[float]) -> Iterator[Message]:
    """An untrained policy has a loss of ln 2; ending above it means that training learned the opposite, or diverged."""
    last = losses[-LAST_STEPS:]
    if len(losses) >= 2 * LAST_STEPS and sum(last) / len(last) > LN2 + ABOVE_LN2:
        text = f"The mean loss of the last {len(last)} steps is {sum(last) / len(last):.3f}, above ln 2 = {LN2:.3f}"
        yield Message("warning", f"{text}: worse than untrained. Check --learning-rate and the pairs.")


def expected_reference(run: Run) -> str:
    """The hash of the reference's tensors that stage adapter recorded. Raises PreconditionError without one."""
    adapter = run.results.adapter
    if adapter is None:
        raise PreconditionError(
            "The run has no record of the reference adapter.",
            "Stage adapter verifies it and records the hash of its tensors.",
            "Run `stage3-tui --auto --until adapter` first.",
        )
    return adapter.tensors_sha256


def planned_steps(pairs: int, epochs: float, batch_size: int, accumulation: int) -> int:
    """Optimizer steps of a training. The last batch and the last accumulation of an epoch may be partial."""
    per_epoch = max(math.ceil(math.ceil(pairs / batch_size) / accumulation), 1)
    return math.ceil(epochs * per_epoch)


def steps_of(config: Stage3Config, pairs: int) -> int:
    """Optimizer steps of a training on that many pairs."""
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
        "warmup_steps": int(steps * WARMUP_SHARE),
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "max_length": config.max_length,
        "seed": config.seed,
        # Only if it is another, so that checkpoints of earlier versions go on.
        **({"optim": config.optim} if uses_bitsandbytes(config) else {}),
    }


def split_invariant_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the effective batch instead of its split, so that checkpoints survive a change of plan."""
    of_the_split = ("per_device_train_batch_size", "gradient_accumulation_steps")
    size, steps = (settings[name] for name in of_the_split)
    return {key: value for key, value in settings.items() if key not in of_the_split} | {
        "effective_batch": size * steps
    }


def _encode_and_filter(
    config: Stage3Config, scratch: Path, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> Generator[Event, None, tuple[EncodedPairs, list[LongPair]]]:
    from engine.dpo.training.encoded_pairs import EncodedPairs

    too_long = list[LongPair]()
    inert = rows_with_special_text(rows, tokenizer)
    if inert:
        yield Message(
            "info", f"{len(inert)} pairs contain text that looks like a special token; it is trained as plain text."
        )
    pairs = EncodedPairs(without_long(encoded(rows, tokenizer), config.max_length, too_long), scratch)
    refuse_too_many_long(too_long, len(rows), config.max_length, config.max_too_long_share)
    if too_long:
        text = f"{len(too_long)} of {len(rows)} pairs exceed --max-length {config.max_length} and are left out"
        yield Message("warning", f"{text}: {describe(too_long)}.")
    return pairs, too_long


def _discard(event: Event) -> None:
    """Drop an event that has no listener."""


def _drive(
    trainer: Stage3Trainer, stop: StopToken, checkpoint: Path | None, watch: TrainingWarnings
) -> Generator[Event, None, None]:
    """Run the trainer in a thread and yield its events and those of `watch`. Raises what it raised, or Stopped."""
    import torch

    from engine.dpo.training.trl_trainer import StepEvents, without_warnings

    said: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    abandoned = threading.Event()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            if trainer.args.device.type == "cuda":
                torch.cuda.set_device(trainer.args.device)  # the current device is per thread
            with without_warnings():
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except BaseException as error:  # re-raised for the generator's caller
            failure.append(error)
        finally:
            said.put(None)

    trainer.emit = watch.emit = said.put
    trainer.add_callback(
        StepEvents(
            said.put,
            stop_wanted=lambda: trainer.ranks.stop_wanted(stop) or abandoned.is_set(),
            skipped=lambda: bool(trainer.accelerator.optimizer_step_was_skipped),
        )
    )
    worker = threading.Thread(target=work, name="dpo", daemon=True)
    worker.start()
    try:
        while (event := said.get()) is not None:
            yield event
    finally:
        abandoned.set()
        worker.join()
    if failure:
        raise failure[0]
    stop.raise_if_requested()


def save_adapter(trained: Trained, folder: Path, *, base_name: str, base_revision: str | None) -> None:
    """Save the Stage 3 adapter, its tokenizer and chat template to `folder`, atomically and without local paths.

    base_name   the value of `base_model_name_or_path`: a Hub id, or the name of a local folder
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    trained.model.save_pretrained(str(part), selected_adapters=[POLICY_ADAPTER], save_embedding_layers=False)
    trained.tokenizer.save_pretrained(str(part))
    (part / "README.md").unlink(missing_ok=True)
    settings = json.loads((part / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": base_name, "revision": base_revision, "inference_mode": True}
    if isinstance(settings["target_modules"], list):  # PEFT keeps a set, whose order differs between processes
        settings["target_modules"].sort()
    write_json(part / ADAPTER_CONFIG, settings)
    tokenizer_settings = json.loads((part / "tokenizer_config.json").read_text(encoding="utf-8"))
    for of_this_machine in ("name_or_path", "is_local", "local_files_only"):
        tokenizer_settings.pop(of_this_machine, None)
    write_json(part / "tokenizer_config.json", tokenizer_settings)
    if folder.exists():
        shutil.rmtree(folder)
    publish_folder(part, folder)
