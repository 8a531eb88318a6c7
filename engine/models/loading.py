"""Load the base model, the tokenizer and the adapter: safetensors only, no remote code, a resolved revision.

torch and transformers are imported inside the functions, so that nothing loads them before a stage needs them.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError
from engine.hub.references import is_local
from engine.machine.device import gpu_has_bfloat16, resolve_device
from engine.machine.memory import freeze_libraries
from engine.models.placement import gpus_needed, require_on_gpus
from engine.models.templates.option import default_template, missing_template_advice, template_from_option
from engine.models.templates.rendering import fix_date, own_template, writes_date
from engine.models.templates.termination import require_termination
from engine.run.folder import Run

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POLICY_ADAPTER = "default"
"""The adapter name that TRL expects; it raises KeyError for any other."""


def resolve_dtype(config: Stage3Config) -> torch.dtype:
    """The number format to compute in: that of --dtype, or the choice of this run's preflight (`engine.models.number_format`).
    Before preflight it is bfloat16 if the GPU supports it, else float32.
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
    """The value of --dtype, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def load_tokenizer(config: Stage3Config, token: str | None = None) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with left padding and the template of --chat-template or its own. Raises PreconditionError if
    there is no chat template, or no default among several, and ConfigError if the file of --chat-template cannot be read."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.base_model_id, **hub_arguments(config, token))
    tokenizer.chat_template = template_from_option(config, tokenizer) or default_template(
        tokenizer.chat_template, config.base_model_id
    )
    if tokenizer.chat_template is None:
        raise PreconditionError(
            f"The tokenizer of {config.base_model_id} has no chat template.",
            "Conversations are rendered with a chat template, the same for generation and training.",
            missing_template_advice(config),
        )
    require_termination(own_template(tokenizer), config.base_model_id)
    if writes_date(tokenizer):
        fix_date(tokenizer, run_date(config))
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def run_date(config: Stage3Config) -> date:
    """The date that this run's preflight recorded; before preflight, today."""
    recorded = Run(config.output_dir).result("preflight").get("date")
    return date.fromisoformat(recorded) if recorded else date.today()


def load_base(
    config: Stage3Config, token: str | None = None, *, device: torch.device | str | None = None
) -> PreTrainedModel:
    """The base model in the resolved dtype, in eval mode; in 4 bits with --load-in-4bit.

    device   by default that of --device, or several GPUs if one is too small (`engine.models.placement`)

    Raises PreconditionError if 4-bit weights are not possible, or the GPUs are too small.
    """
    freeze_libraries()
    from transformers import AutoModelForCausalLM

    dtype = resolve_dtype(config)
    arguments = hub_arguments(config, token) | (quantization_arguments(config, dtype) if config.load_in_4bit else {})
    gpus = gpus_for_base(config, token) if device is None else 1
    if gpus > 1:
        arguments |= {"device_map": "auto"}
    model = AutoModelForCausalLM.from_pretrained(config.base_model_id, dtype=dtype, use_safetensors=True, **arguments)
    if gpus > 1:
        require_on_gpus(model, gpus)
        return model.eval()
    return (model if config.load_in_4bit else model.to(device or resolve_device(config))).eval()


def gpus_for_base(config: Stage3Config, token: str | None = None) -> int:
    """How many GPUs of this machine hold the base model in one process; more than one only with `--sharding fsdp`."""
    if config.sharding != "fsdp":
        return 1  # without importing torch
    return gpus_needed(config, dtype_name(resolve_dtype(config)), hub_arguments(config, token))


def quantization_arguments(config: Stage3Config, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments for `from_pretrained` to load the weights in 4 bits (NF4, Dettmers et al. 2023) and compute in `dtype`."""
    from importlib.util import find_spec

    device = resolve_device(config)
    if device.type != "cuda":
        raise PreconditionError(
            f"--load-in-4bit: the device is {device}.",
            "4-bit weights need a CUDA GPU.",
            "Omit --load-in-4bit, or use --device cuda if there is a GPU.",
        )
    if find_spec("bitsandbytes") is None:
        raise PreconditionError(
            "--load-in-4bit: bitsandbytes is not installed.",
            "It implements the 4-bit weights.",
            "Install the extra: `pip install 'stage3-tui[bitsandbytes]'`, or omit --load-in-4bit.",
        )
    if dtype_name(dtype) == "float32":
        raise PreconditionError(
            "--load-in-4bit computes in 16 bits, but the number format is float32.",
            "Either --dtype float32 is set, or the GPU has no bfloat16 and float16 was found to overflow.",
            "Use --dtype float16 (or bfloat16), or omit --load-in-4bit.",
        )
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": quantization, "device_map": {"": device}}


def restore_adapter(policy: PeftModel, copy: str) -> None:
    """Copy the tensors of the adapter `copy` back to the policy's adapter, in their number format. With 4-bit weights TRL rounds
    the policy's adapter to bfloat16, so it would differ from the reference before the first step.
    """
    with_copy = dict(policy.named_parameters())
    for name, parameter in with_copy.items():
        twin = with_copy.get(name.replace(f".{POLICY_ADAPTER}.", f".{copy}."))
        if f".{POLICY_ADAPTER}." in name and twin is not None:
            parameter.data = twin.data.clone()


def load_policy(base: PreTrainedModel, adapter: Path, *, trainable: bool = False) -> PeftModel:
    """`base` with the LoRA adapter of the folder `adapter` in float32, under the name "default"."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(adapter), adapter_name=POLICY_ADAPTER, is_trainable=trainable)


def hub_arguments(config: Stage3Config, token: str | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {"trust_remote_code": False}
    if not is_local(config.base_model_id):
        arguments |= {"revision": config.base_model_revision, "token": token}
    return arguments
