"""Choose the number format by testing it.

The largest float16 is 65,504. Gemma's hidden states exceed it, which turns all logits into NaN (unsloth#4014).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.machine.device import gpu_has_bfloat16, resolve_device

if TYPE_CHECKING:
    from peft import PeftModel

PROBE_SCALE = 1024.0
"""float16 training scales the loss up so that small gradients do not underflow; it starts at 65,536 and backs off on overflow."""


def choose_dtype(config: Stage3Config, overflow: Callable[[], str]) -> tuple[str, str]:
    """Returns the value for --dtype and the reason for it.

    overflow   tries float16 with the run's adapter and prompts; returns what overflowed, or an empty string
    """
    if config.dtype != "auto":
        return config.dtype, f"--dtype {config.dtype}"
    device = resolve_device(config)
    if device.type != "cuda":
        return "float32", "on the CPU; --dtype bfloat16 takes half the time if the processor supports it"
    if gpu_has_bfloat16(device):
        return "bfloat16", "the GPU supports it"
    problem = overflow()
    if problem:
        return "float32", f"the GPU has no bfloat16, and in float16 {problem}"
    return (
        "float16",
        "the GPU has no bfloat16; in float16 the adapter stayed finite on real prompts, forward and backward",
    )


def overflow_in_float16(policy: PeftModel, texts: Sequence[Sequence[int]]) -> str:
    """Run a forward and a backward pass over each of `texts` (token ids) with the policy in float16. Returns what is not finite, in
    a few words; empty if everything is.
    """
    import torch

    half = [n for n, p in policy.named_parameters() if p.requires_grad and p.dtype == torch.float16]
    if half:
        return f"{len(half)} tensors of the adapter (modules_to_save) would be trained in it, which needs float32"
    device = policy.device
    for ids in texts:
        row = torch.tensor([list(ids)], device=device)
        with torch.autocast(device.type, dtype=torch.float16):
            logits = policy(input_ids=row, use_cache=False).logits
        if not bool(torch.isfinite(logits).all()):
            return f"a prompt of {len(ids)} tokens gives logits that are not finite"
        loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), row[0, 1:])
        (loss * PROBE_SCALE).backward()
        bad = [n for n, p in policy.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
        policy.zero_grad(set_to_none=True)
        if bad:
            return f"a prompt of {len(ids)} tokens gives {len(bad)} gradients that are not finite"
    return ""
