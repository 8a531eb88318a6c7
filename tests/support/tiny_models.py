"""The smallest real things that tests can train: a two-layer Gemma, its tokenizer, an adapter, pairs, a run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from engine.core.config import Stage3Config
from engine.demo.tokenizer import train_tokenizer
from engine.models.tensors import file_tensors, hash_tensors
from engine.run.context import Context
from engine.run.folder import Run

TEXT = """Please sort the mail before noon and water the plants . I am sorry that your parcel came late , we will send
another ! Could you tell me how to fix a dripping tap ? Close the valve , replace the washer , then test it twice ."""
WORDS = TEXT.split()


def build_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of 400 tokens with Gemma's chat template."""
    return train_tokenizer([" ".join(WORDS)] * 3, 400)


FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, int]]] = {
    "gemma": (GemmaConfig, {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "head_dim": 8}),
    "llama": (LlamaConfig, {"hidden_size": 32, "intermediate_size": 56, "num_attention_heads": 4, "head_dim": 8}),
    "qwen2": (Qwen2Config, {"hidden_size": 28, "intermediate_size": 60, "num_attention_heads": 2}),
    "gemma2": (Gemma2Config, {"hidden_size": 36, "intermediate_size": 48, "num_attention_heads": 2, "head_dim": 16}),
    "gemma3": (
        Gemma3TextConfig,
        {"hidden_size": 20, "intermediate_size": 44, "num_attention_heads": 2, "head_dim": 12},
    ),
}
"""Small shapes of five families, all different, each with two layers and one key head."""


def base_config(family: str, tokenizer: PreTrainedTokenizerBase, **changes: object) -> PretrainedConfig:
    kind, sizes = FAMILIES[family]
    shared = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return kind(**{**shared, **sizes, **changes})


def build_base(folder: Path, seed: int = 11, family: str = "gemma", **changes: object) -> Path:
    """A random two-layer model with grouped keys, in float32, with a tokenizer that has Gemma's template.

    changes   fields of its configuration to override
    """
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(base_config(family, tokenizer, **changes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TARGETS = ["q_proj", "v_proj", "gate_proj", "down_proj"]


def build_adapter(
    folder: Path, base: Path, seed: int = 5, dtype: torch.dtype = torch.float32, **settings: object
) -> Path:
    """A LoRA adapter whose tensors all look trained, so that it changes the base model's output.

    dtype      of the file
    settings   fields of LoraConfig to override
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    chosen = {"r": 3, "lora_alpha": 7, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **settings}
    policy = get_peft_model(model, LoraConfig(**chosen))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if not parameter.requires_grad:
                continue
            if "lora_B" in name or not parameter.any():
                parameter.normal_(std=0.15)
            elif "lora_A" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    policy.to(dtype).save_pretrained(folder, save_embedding_layers=False)
    return folder


def pairs(count: int) -> list[dict[str, object]]:
    """Pairs of different lengths; all prompts and replies differ."""
    rows: list[dict[str, object]] = []
    for i in range(count):
        prompt = " ".join(WORDS[(i * 5 + j) % len(WORDS)] for j in range(4 + i % 5)) + f" {i}"
        good = " ".join(WORDS[(i * 3 + j + 7) % len(WORDS)] for j in range(5 + i % 4))
        bad = " ".join(WORDS[(i * 7 + j + 13) % len(WORDS)] for j in range(3 + i % 6)) + " no"
        rows.append(
            {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": good}],
                "rejected": [{"role": "assistant", "content": bad}],
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def build_context(folder: Path, base: Path, adapter: Path, **options: object) -> Context:
    """A run in `folder` that has recorded the hash of `adapter`."""
    defaults: dict[str, object] = {
        "output_dir": folder,
        "device": "cpu",
        "dtype": "float32",
        "base_model_id": str(base),
        "adapter_path": str(adapter),
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
        "max_length": 128,
        "save_steps": 2,
        "cpu_ref_model": False,
        "seed": 42,
        "eval_prompts": 4,
        "judge": "none",
        "max_new_tokens": 6,
    }
    config = Stage3Config(**{**defaults, **options})
    run = Run(folder)
    weights = adapter / "adapter_model.safetensors"
    run.record_stage(
        "adapter",
        status="done",
        result={
            "tensors_sha256": hash_tensors(file_tensors(weights)),
            "base_model_commit": None,
            "folder": str(adapter),
        },
    )
    return Context(config, run)
