"""Verify that the reference policy is the Stage 2 adapter, by its weights and by the first loss, and compute its
log-probabilities.

Either check alone can be fooled. A fresh LoRA on the plain base model gives a first loss of ln 2 against the wrong
reference; the right weights in a reference that the loss does not use give the right hash. (Rafailov et al. 2023,
eq. 7: if policy and reference are the same, every log-ratio is 0 and the loss is -log sigmoid(0) = ln 2.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from engine.core.errors import NumbersError
from engine.core.events import Event, Progress
from engine.dpo.training.batches import batch_by_length, tokens_read
from engine.dpo.training.process_group import SINGLE_PROCESS, ProcessGroup
from engine.models.loading import POLICY_ADAPTER, dtype_name, resolve_dtype
from engine.models.tensors import adapter_tensors, hash_tensors
from engine.run.stop import StopToken
from engine.storage.files import sha256_of_json
from engine.storage.keyed_cache import KeyedCache

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor

    from engine.core.config import Stage3Config

REFERENCE_ADAPTER = "ref"
"""TRL's name for its frozen copy of the policy's adapter."""
LN2 = math.log(2.0)
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3, "float16": 5e-3}
SAVE_SECONDS = 30.0
PROGRESS_SECONDS = 0.5
WHAT_TO_DO = "Nothing was trained. Run `stage3-tui --auto --from adapter`; if it happens again, please report it."

Logps = list[tuple[float, float]]
"""Per pair, the log-probabilities of the chosen and the rejected reply in nats, summed over each reply's tokens."""


def require_reference_weights(model: PeftModel, expected_sha256: str) -> None:
    """Raises NumbersError if the reference's tensors differ from those that stage adapter recorded."""
    actual = (
        hash_tensors(adapter_tensors(model, REFERENCE_ADAPTER))
        if REFERENCE_ADAPTER in model.peft_config
        else "no adapter"
    )
    if actual != expected_sha256:
        raise NumbersError(
            "The reference is not the Stage 2 adapter.",
            f"Its tensors have the SHA-256 {actual}; stage adapter recorded {expected_sha256}.",
            WHAT_TO_DO,
        )


def require_first_loss(loss: float, dtype: torch.dtype) -> None:
    """Raises NumbersError if the loss before the first update is not ln 2."""
    tolerance = LOSS_TOLERANCE[str(dtype).removeprefix("torch.")]
    if not abs(loss - LN2) <= tolerance:  # also true for NaN
        raise NumbersError(
            f"The loss before the first step is {loss:.6f}, not ln 2 = {LN2:.6f} (±{tolerance:g}).",
            "Before the first step, policy and reference must be the same adapter, so this reference is a different one.",
            WHAT_TO_DO,
        )


def policy_key(config: Stage3Config, adapter_sha256: str) -> str:
    """A hash of base model, adapter and number format. Equal keys give equal results, up to rounding."""
    base = [config.base_model_id, config.base_model_revision, config.load_in_4bit]
    return sha256_of_json([adapter_sha256, *base, dtype_name(resolve_dtype(config))])


def place_adapter(model: PeftModel, name: str, device: torch.device | str | None = None) -> None:
    """Move the tensors of one adapter. Inactive adapters may be on another device, because no forward pass uses them.

    device   by default that of the policy's adapter in the same layer, because layers may be on different GPUs
    """
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.ModuleDict | nn.ParameterDict) and name in module:
            policy_part = module[POLICY_ADAPTER]
            tensors = [policy_part] if isinstance(module, nn.ParameterDict) else list(policy_part.parameters())
            if tensors:  # dropout has none
                module[name] = module[name].to(device or tensors[0].device)


@contextmanager
def adapter_active(model: PeftModel, name: str) -> Iterator[None]:
    """Activate the adapter `name`, not trainable; afterwards, restore the active adapter."""
    with _adapter_restored(model):
        model.set_adapter(name, inference_mode=True)
        yield


@contextmanager
def base_active(model: PeftModel) -> Iterator[None]:
    """Disable all adapters; afterwards, restore the active one."""
    with _adapter_restored(model), model.disable_adapter():
        yield


@contextmanager
def _adapter_restored(model: PeftModel) -> Iterator[None]:
    """Afterwards, restore the active adapter and whether it is trainable."""
    before = str(model.active_adapter)
    trainable = any(p.requires_grad for n, p in model.named_parameters() if f".{before}." in n)
    try:
        yield
    finally:
        model.set_adapter(before, inference_mode=not trainable)


def pair_logps(model: PeftModel, batch: dict[str, Tensor], adapter: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the replies in a collated batch under one adapter: chosen (B,), rejected (B,), float32.

    TRL's trainer must have been built on the model: the fused head that it installs computes log-probabilities without ever
    storing the (2B, T, V) logits.
    """
    import torch

    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    mixed_precision = torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32)
    with torch.no_grad(), adapter_active(model, adapter), mixed_precision:
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=labels,
            use_cache=False,
            fused_lm_head=True,
        )
    chosen, rejected = output.log_probs.float().sum(dim=1).chunk(2)
    return chosen, rejected


def collated(
    pairs: Sequence[dict[str, Any]], collator: Any, batch_size: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Yield the pairs, in order, as padded batches on `device`."""
    for start in range(0, len(pairs), batch_size):
        batch = collator([pairs[i] for i in range(start, min(start + batch_size, len(pairs)))])
        yield {key: value.to(device) for key, value in batch.items()}


def reference_logps(
    model: PeftModel,
    pairs: Sequence[dict[str, Any]],
    collator: Any,
    *,
    batch_size: int,
    dtype: torch.dtype,
    cache: KeyedCache,
    policy: str,
    stop: StopToken,
    group: ProcessGroup = SINGLE_PROCESS,
    lockstep: bool = False,
) -> Generator[Event, None, Logps]:
    """The reference's log-probabilities of every pair, in order; computes only those missing in `cache`.

    batch_size   pairs of maximum length per batch; batches of shorter pairs are larger
    policy       a hash of base model, adapter and number format
    group        the processes that train: each computes some of the batches, and rank 0 writes
    lockstep     whether a process that has no batch left runs a pass anyway, because the others need its weights

    Raises Stopped after saving, and NumbersError if a value is not finite.
    """
    keys = [sha256_of_json([policy, pair]) for pair in pairs]
    known = cache.read(keys)
    logps = {row: pair for row, key in enumerate(keys) if (pair := _cached_pair(known.get(key))) is not None}
    lengths = [tokens_read(pair) for pair in pairs]
    missing = _missing_batches(lengths, logps, batch_size)
    progress = _ReferenceProgress(lengths, logps)
    unsaved: dict[str, Any] = {}
    saved = time.monotonic()
    model.eval()
    for start in range(0, len(missing), group.world_size):
        batches = missing[start : start + group.world_size]  # one for each process
        rows = batches[group.rank] if group.rank < len(batches) else batches[0] if lockstep else []
        computed = _logps_of(model, pairs, rows, collator, dtype)
        new = {row: logps for of_rank in group.gather(computed) for row, logps in of_rank.items()}
        logps |= new
        _require_finite(logps, list(new))
        unsaved |= {keys[row]: logps for row, logps in new.items()}
        yield from progress.report(logps, list(new))
        if group.stop_requested(stop) or time.monotonic() - saved > SAVE_SECONDS:
            _save(cache, unsaved, group)
            unsaved, saved = {}, time.monotonic()
            stop.raise_if_requested()
    _save(cache, unsaved, group)
    return [logps[row] for row in range(len(pairs))]


def _missing_batches(lengths: Sequence[int], logps: Container[int], batch_size: int) -> list[list[int]]:
    """Batches are formed from all pairs, not only the missing ones, so that a resumed pass uses the same batches."""
    batches = batch_by_length(lengths, batch_size * max(lengths, default=0))
    missing = ([row for row in batch if row not in logps] for batch in batches)
    return list(filter(None, missing))


def _logps_of(
    model: PeftModel, pairs: Sequence[dict[str, Any]], rows: Sequence[int], collator: Any, dtype: torch.dtype
) -> dict[int, tuple[float, float]]:
    if not rows:
        return {}
    (batch,) = collated([pairs[row] for row in rows], collator, len(rows), model.device)
    chosen, rejected = pair_logps(model, batch, REFERENCE_ADAPTER, dtype)
    return dict(zip(rows, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True))


def _save(cache: KeyedCache, values: dict[str, Any], group: ProcessGroup) -> None:
    if group.is_main:
        cache.append(values)


def _cached_pair(value: Any) -> tuple[float, float] | None:
    """A pair's cached values; None if they are not two numbers, so that they are computed again."""
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(logp, float) for logp in value):
        return None
    return value[0], value[1]


class _ReferenceProgress:
    """Estimates the time left from tokens rather than pairs, because the longest pairs come first."""

    def __init__(self, lengths: Sequence[int], logps: Mapping[int, object]) -> None:
        self._lengths, self._cached_pairs = lengths, len(logps)
        self._total_tokens, self._cached_tokens = sum(lengths), sum(lengths[row] for row in logps)
        self._tokens, self._started, self._reported = self._cached_tokens, time.monotonic(), 0.0

    def report(self, logps: Mapping[int, object], rows: Sequence[int]) -> Iterator[Progress]:
        self._tokens += sum(self._lengths[row] for row in rows)
        now = time.monotonic()
        if len(logps) < len(self._lengths) and now - self._reported <= PROGRESS_SECONDS:
            return
        self._reported = now
        seconds = max(now - self._started, 1e-9)
        left = (self._total_tokens - self._tokens) * seconds / (self._tokens - self._cached_tokens)
        pairs_per_second = (len(logps) - self._cached_pairs) / seconds
        yield Progress(len(logps), len(self._lengths), "reference pairs", pairs_per_second, left)


def _require_finite(logps: dict[int, tuple[float, float]], rows: Sequence[int]) -> None:
    bad = [row for row in sorted(rows) if not all(map(math.isfinite, logps[row]))]
    if bad:
        raise NumbersError(
            f"The reference gives row {bad[0]} a log-probability of {logps[bad[0]]}.",
            "The model's values overflow.",
            "Use --dtype bfloat16 if the GPU supports it, else --dtype float32.",
        )
