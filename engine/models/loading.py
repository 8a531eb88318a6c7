"""Loading the base model, the tokenizer and the adapter: safetensors only, no remote code, a resolved revision.

Imports torch and transformers inside the functions: nothing pays for them before a stage needs them.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError
from engine.hub.references import is_local
from engine.machine.device import gpu_has_bfloat16, resolve_device
from engine.models.templates.given import given_template, no_template_mend
from engine.models.templates.rendering import fix_date, writes_date
from engine.run.folder import Run

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POLICY_ADAPTER = "default"
"""The name that TRL expects of a loaded adapter; under any other one it raises KeyError."""


def resolve_dtype(config: Stage3Config) -> torch.dtype:
    """The number format that the model computes in: as given, or as the preflight of this run found by trying
    (`engine.models.number_format`); before one, bfloat16 if the GPU has it, else float32.
    """
    import torch

    name = config.dtype
    if name == "auto":
        device = resolve_device(config)
        if device.type != "cuda":
            name = "float32"
        elif gpu_has_bfloat16(device):
            name = "bfloat16"
        else:
            name = Run(config.output_dir).result("preflight").get("dtype", "float32")
    return getattr(torch, dtype_name(name))  # type: ignore[no-any-return]


def dtype_name(dtype: torch.dtype | str) -> str:
    """`bfloat16`, as --dtype says it."""
    return str(dtype).removeprefix("torch.")


def load_tokenizer(config: Stage3Config, token: str | None = None) -> PreTrainedTokenizerBase:
    """The base model's tokenizer with the template of --chat-template or its own, padding on the left. Raises PreconditionError
    without a chat template, and ConfigError for one that cannot be read."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.base_model_id, **hub_arguments(config, token))
    tokenizer.chat_template = given_template(config, tokenizer) or tokenizer.chat_template
    if tokenizer.chat_template is None:
        raise PreconditionError(
            f"The tokenizer of {config.base_model_id} has no chat template.",
            "Conversations are rendered by a template, the same for generation and training.",
            no_template_mend(config),
        )
    if writes_date(tokenizer):
        fix_date(tokenizer, run_date(config))
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def run_date(config: Stage3Config) -> date:
    """The day that the preflight of this run has recorded; before one, today."""
    recorded = Run(config.output_dir).result("preflight").get("date")
    return date.fromisoformat(recorded) if recorded else date.today()


def load_base(config: Stage3Config, token: str | None = None) -> PreTrainedModel:
    """The base model on the resolved device and dtype, for inference; its weights in 4 bits if that is asked for.

    Raises PreconditionError if 4 bits cannot be had.
    """
    from transformers import AutoModelForCausalLM

    dtype = resolve_dtype(config)
    arguments = hub_arguments(config, token) | (in_4bit(config, dtype) if config.load_in_4bit else {})
    model = AutoModelForCausalLM.from_pretrained(config.base_model_id, dtype=dtype, use_safetensors=True, **arguments)
    return (model if config.load_in_4bit else model.to(resolve_device(config))).eval()


def in_4bit(config: Stage3Config, dtype: torch.dtype) -> dict[str, Any]:
    """What makes transformers load the base weights in 4 bits (NF4, Dettmers et al. 2023), computing in `dtype`."""
    from importlib.util import find_spec

    device = resolve_device(config)
    if device.type != "cuda":
        raise PreconditionError(
            f"--load-in-4bit: the device is {device}.",
            "4-bit weights are computed with on CUDA GPUs only.",
            "Leave --load-in-4bit out, or use --device cuda if there is a GPU.",
        )
    if find_spec("bitsandbytes") is None:
        raise PreconditionError(
            "--load-in-4bit: bitsandbytes is not installed.",
            "It holds and multiplies the 4-bit weights.",
            "Install the extra: `pip install 'stage3-tui[bitsandbytes]'`, or leave --load-in-4bit out.",
        )
    if dtype_name(dtype) == "float32":
        raise PreconditionError(
            "--load-in-4bit computes in 16 bits, and the number format is float32.",
            "Either --dtype float32 was given, or the GPU has no bfloat16 and float16 was not found to be safe.",
            "Give --dtype float16 (or bfloat16), or leave --load-in-4bit out.",
        )
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": quantization, "device_map": {"": device}}


def restore_adapter(policy: PeftModel, copy: str) -> None:
    """Give the policy's adapter the tensors of its `copy`, in their format: over 4-bit weights TRL rounds it to bfloat16, and
    the policy would not be the reference any more before a single step was done.
    """
    with_copy = dict(policy.named_parameters())
    for name, parameter in with_copy.items():
        twin = with_copy.get(name.replace(f".{POLICY_ADAPTER}.", f".{copy}."))
        if f".{POLICY_ADAPTER}." in name and twin is not None:
            parameter.data = twin.data.clone()


def load_policy(base: PreTrainedModel, adapter: Path, *, trainable: bool = False) -> PeftModel:
    """`base` with the LoRA adapter in the folder `adapter`, under the name "default"; the adapter is float32."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(adapter), adapter_name=POLICY_ADAPTER, is_trainable=trainable)


def hub_arguments(config: Stage3Config, token: str | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {"trust_remote_code": False}
    if not is_local(config.base_model_id):
        arguments |= {"revision": config.base_model_revision, "token": token}
    return arguments
