"""The tensors that an adapter should have for a base model, found on the meta device without reading weights."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError, UnsafeError
from engine.models.adapters.settings import AdapterSettings
from engine.models.adapters.trainable import refuse_uncopied_parameters
from engine.models.loading import POLICY_ADAPTER, hub_arguments
from engine.models.oversized import refuse_oversized_model
from engine.security.sanitize import visible_line

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig

OTHER_BASE = "Pass the base model of Stage 2 with --base-model-id, or an adapter for this one with --adapter-path."


@dataclass(frozen=True)
class BaseFacts:
    """Facts about the base model, from its configuration."""

    name: str
    """`--base-model-id`, safe to show."""
    architecture: str
    layers: int
    vocabulary: int
    """Number of rows of its embedding."""
    parameters: int


@dataclass(frozen=True)
class AdaptedModule:
    """A module of the base model that has a LoRA."""

    name: str
    rank: int
    alpha: float
    scaling: float
    """The factor of B·A: alpha/r, or alpha/√r for rsLoRA."""

    @property
    def kind(self) -> str:
        """The last part of its name: q_proj, down_proj, …"""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class ExpectedTensors:
    """The tensors of an adapter with these settings on this base model."""

    base: BaseFacts
    shapes: dict[str, tuple[int, ...]]
    """By name in the file (`base_model.model.….lora_A.weight`)."""
    modules: list[AdaptedModule]
    absent: list[str]
    """Target modules that the base model lacks. PEFT silently ignores them."""

    @property
    def target_modules(self) -> list[str]:
        return sorted({module.kind for module in self.modules})


def expected_adapter(config: Stage3Config, settings: AdapterSettings, token: str | None = None) -> ExpectedTensors:
    """The tensors that the base model needs. Raises PreconditionError if the base model is unreadable or lacks the target modules,
    or if DPO cannot train the adapter; UnsafeError if the base model needs custom code.
    """
    import torch
    from peft import get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    base_config = read_base_config(config, token)
    lora = copy.deepcopy(settings.lora)  # PEFT replaces "all-linear" in it
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with base_model_errors(config):
            model = AutoModelForCausalLM.from_config(base_config, trust_remote_code=False)
        base = _facts(config, base_config, model)
        try:
            policy = get_peft_model(model, lora, adapter_name=POLICY_ADAPTER)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, re.error) as error:
            raise _targets_missing(settings, base, error) from error
        refuse_uncopied_parameters(settings, policy)
        state = get_peft_model_state_dict(policy, adapter_name=POLICY_ADAPTER, save_embedding_layers=False)
    modules = _adapted_modules(policy)
    return ExpectedTensors(
        base=base,
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        modules=modules,
        absent=_absent(settings.lora.target_modules, [module.name for module in modules]),
    )


def read_base_config(config: Stage3Config, token: str | None = None) -> PretrainedConfig:
    """The base model's configuration. Raises as `base_model_errors`, and UnsafeError for an oversized model."""
    from transformers import AutoConfig

    with base_model_errors(config):
        refuse_oversized_model(config.base_model_id, "--base-model-id", **hub_arguments(config, token))
        return AutoConfig.from_pretrained(config.base_model_id, **hub_arguments(config, token))


@contextmanager
def base_model_errors(config: Stage3Config) -> Iterator[None]:
    """Convert transformers' errors about the base model to PreconditionError, or to UnsafeError if it needs custom code. The Hub's
    errors pass through.
    """
    from safetensors import SafetensorError

    from engine.hub import as_hub_error

    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if as_hub_error(error) is not None:
            raise
        name, message = visible_line(config.base_model_id, 200), visible_line(str(error), 300)
        if "trust_remote_code" in str(error):
            raise UnsafeError(
                f"The base model {name} needs custom code.",
                "stage3-tui never runs code from a model repository.",
                "Pass a base model that transformers supports itself, with --base-model-id.",
            ) from error
        raise PreconditionError(
            f"Cannot read the base model {name}.",
            f"transformers says: {message}",
            "Pass a folder written by `model.save_pretrained`, or a Hub id, with --base-model-id.",
        ) from error


def _facts(config: Stage3Config, base_config: PretrainedConfig, model: Any) -> BaseFacts:
    text = base_config.get_text_config()
    return BaseFacts(
        name=visible_line(config.base_model_id, 200),
        architecture=type(model).__name__,
        layers=int(getattr(text, "num_hidden_layers", 0) or 0),
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _targets_missing(settings: AdapterSettings, base: BaseFacts, error: Exception) -> PreconditionError:
    targets = settings.lora.target_modules
    wanted = ", ".join(sorted(targets)) if isinstance(targets, (set, list)) else str(targets)
    return PreconditionError(
        f"The adapter does not apply to {base.name}.",
        f"It targets {visible_line(wanted, 200)}. PEFT's error for a {base.architecture}: {visible_line(str(error), 300)}",
        OTHER_BASE,
    )


def _adapted_modules(policy: PeftModel) -> list[AdaptedModule]:
    from peft.tuners.lora import LoraLayer

    return [
        AdaptedModule(
            name, layer.r[POLICY_ADAPTER], float(layer.lora_alpha[POLICY_ADAPTER]), float(layer.scaling[POLICY_ADAPTER])
        )
        for name, layer in policy.named_modules()
        if isinstance(layer, LoraLayer)
    ]


def _absent(wanted: Any, adapted: list[str]) -> list[str]:
    if not isinstance(wanted, (set, list, tuple)):
        return []
    return sorted(t for t in map(str, wanted) if not any(name == t or name.endswith(f".{t}") for name in adapted))
