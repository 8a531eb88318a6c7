"""Stage 5: the Stage 2 adapter is complete, finite, and changes what the base says."""

from __future__ import annotations

from typing import Any

from engine.events import Check
from engine.files import sha256_of_file
from engine.models.loading import ADAPTER_WEIGHTS, adapter_folder
from engine.stages.base import Context, StageResult, StageRun

NAME = "adapter"
OUTPUTS: tuple[str, ...] = ()


def depends_on(context: Context) -> dict[str, Any] | None:
    weights = adapter_folder(context) / ADAPTER_WEIGHTS
    return {
        "adapter": sha256_of_file(weights) if weights.is_file() else None,
        "base_model_id": context.config.base_model_id,
        "base_model_revision": context.config.base_model_revision,
    }


def run(context: Context) -> StageRun:
    from engine.models import adapter as verify
    from engine.models.loading import load_base, load_policy, load_tokenizer

    config = context.config
    token = context.token_text
    folder = adapter_folder(context)
    yield Check(NAME, "folder", "ok", str(folder))
    for name in verify.refuse_pickles(folder):
        yield Check(NAME, name, "warning", "a pickle of the trainer's; it is not opened")
    adapter = verify.verified_adapter(config, folder, token)
    lora = adapter.lora
    yield Check(
        NAME,
        "configuration",
        "ok",
        f"LoRA, rank {lora.r}, alpha {lora.lora_alpha}: {', '.join(adapter.target_modules)}",
    )
    count = f"{len(adapter.tensors)} tensors, {adapter.parameters:,} numbers"
    yield Check(NAME, "tensors", "ok", f"{count}: all present, of the base's shapes, finite, not zero")
    yield Check(NAME, "sha256", "ok", adapter.sha256)

    context.stop.raise_if_requested()
    base = load_base(config, token)
    commit = getattr(base.config, "_commit_hash", None)
    base_parameters = sum(parameter.numel() for parameter in base.parameters())
    yield Check(
        NAME,
        "base model",
        "ok",
        f"{config.base_model_id} {commit or ''}, {base_parameters:,} parameters".replace(" ,", ","),
    )
    effect = verify.effect_on_logits(load_policy(base, folder), load_tokenizer(config, token))
    yield Check(NAME, "effect", "ok", f"switching it on changes a logit by up to {effect:.4g}")
    return StageResult(
        f"rank {lora.r}, {adapter.parameters:,} parameters, effect {effect:.3g}",
        {
            "folder": str(folder),
            "adapter_sha256": adapter.sha256,
            "tensors_sha256": adapter.tensors_sha256,
            "rank": lora.r,
            "alpha": lora.lora_alpha,
            "target_modules": adapter.target_modules,
            "trainable_parameters": adapter.parameters,
            "bytes": adapter.bytes,
            "effect": effect,
            "base_model_id": config.base_model_id,
            "base_model_commit": commit,
            "base_parameters": base_parameters,
        },
    )
