"""The reference policy is the Stage 2 adapter, and nothing else: shown by its weights and by the first loss.

Either alone is fooled. A fresh LoRA over the bare base gives a first loss of ln 2 against the wrong reference; the
right weights in a reference that the loss does not use give the right hash. (Rafailov et al. 2023, eq. 7: where policy
and reference are the same, every log-ratio is 0 and the loss is -log sigmoid(0) = ln 2.)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import NumbersError
from engine.events import Event, Progress
from engine.files import write_json
from engine.models.tensors import adapter_tensors, hash_tensors
from engine.stop import StopToken

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor

REFERENCE_ADAPTER = "ref"
"""The name that TRL gives to its frozen copy of the policy's adapter."""
LN2 = math.log(2.0)
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3, "float16": 5e-3}
SAVE_SECONDS = 30.0
TELL_SECONDS = 0.5
WHAT_TO_DO = "Nothing was trained. Run `stage3-tui --auto --from adapter`; if it comes again, please report it."

Logps = list[tuple[float, float]]
"""Of each pair: log-probability of the chosen and of the rejected reply, in nats, summed over the reply's tokens."""


def require_reference_weights(model: PeftModel, expected_sha256: str) -> None:
    """Raises NumbersError where the reference's tensors are not those that the stage adapter recorded."""
    found = (
        hash_tensors(adapter_tensors(model, REFERENCE_ADAPTER))
        if REFERENCE_ADAPTER in model.peft_config
        else "no adapter"
    )
    if found != expected_sha256:
        raise NumbersError(
            "The reference is not the Stage 2 adapter.",
            f"Its tensors have the SHA-256 {found}; the stage adapter recorded {expected_sha256}.",
            WHAT_TO_DO,
        )


def require_first_loss(loss: float, dtype: torch.dtype) -> None:
    """Raises NumbersError where the loss before the first update is not ln 2."""
    tolerance = LOSS_TOLERANCE[str(dtype).removeprefix("torch.")]
    if not abs(loss - LN2) <= tolerance:  # NaN compares false, and is refused
        raise NumbersError(
            f"The loss before the first step is {loss:.6f}, not ln 2 = {LN2:.6f} (±{tolerance:g}).",
            "Policy and reference are the same adapter then, and no other loss is possible: the reference is another.",
            WHAT_TO_DO,
        )


@contextmanager
def adapter_active(model: PeftModel, name: str) -> Iterator[None]:
    """The model with adapter `name`, without making it trainable; the one before comes back, trainable as it was."""
    before = str(model.active_adapter)
    trainable = any(p.requires_grad for n, p in model.named_parameters() if f".{before}." in n)
    model.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(before, inference_mode=not trainable)


def pair_logps(model: PeftModel, batch: dict[str, Tensor], adapter: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the replies of a collated batch under one adapter: chosen (B,), rejected (B,), float32.

    The model must be one that TRL's trainer was built on: its head then gives log-probabilities without ever holding
    the (2B, T, vocabulary) logits.
    """
    import torch

    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    mixed = torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32)
    with torch.no_grad(), adapter_active(model, adapter), mixed:
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
    """The pairs in their order as padded batches on `device`."""
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
    path: Path,
    fingerprint: str,
    stop: StopToken,
) -> Generator[Event, None, Logps]:
    """The reference's log-probabilities of every pair, computed once and kept in `path`.

    What `path` holds is used again where it has the same fingerprint; a stopped pass goes on where it was.
    Raises Stopped after saving, and NumbersError for one that is not finite.
    """
    found = _stored(path, fingerprint)
    done_before, started, told, saved = len(found), time.monotonic(), 0.0, time.monotonic()
    model.eval()
    for batch in collated(pairs[done_before:], collator, batch_size, model.device):  # type: ignore[arg-type]
        chosen, rejected = pair_logps(model, batch, REFERENCE_ADAPTER, dtype)
        found.extend(zip(chosen.tolist(), rejected.tolist(), strict=True))
        _require_finite(found, batch_size)
        seconds = time.monotonic() - started
        rate = (len(found) - done_before) / max(seconds, 1e-9)
        if len(found) == len(pairs) or time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            left = (len(pairs) - len(found)) / max(rate, 1e-9)
            yield Progress("training", len(found), len(pairs), "reference pairs", rate, left)
        if stop.requested or time.monotonic() - saved > SAVE_SECONDS:
            _store(path, fingerprint, found)
            saved = time.monotonic()
            stop.raise_if_requested()
    if len(found) > done_before:
        _store(path, fingerprint, found)
    return found


def _stored(path: Path, fingerprint: str) -> Logps:
    """What is kept under this fingerprint; nothing where the file is another's, or damaged: then it is made anew."""
    if not path.is_file():
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        logps = [(float(chosen), float(rejected)) for chosen, rejected in data["logps"]]
        return logps if data["fingerprint"] == fingerprint else []
    except (ValueError, KeyError, TypeError):
        return []


def _store(path: Path, fingerprint: str, logps: Logps) -> None:
    write_json(path, {"fingerprint": fingerprint, "logps": logps})


def _require_finite(logps: Logps, last: int) -> None:
    bad = [
        index for index, pair in enumerate(logps) if index >= len(logps) - last and not all(map(math.isfinite, pair))
    ]
    if bad:
        raise NumbersError(
            f"The reference gives row {bad[0]} a log-probability of {logps[bad[0]]}.",
            "The model's numbers overflow.",
            "Use --dtype bfloat16 where the GPU has it, else --dtype float32.",
        )
