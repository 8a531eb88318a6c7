"""Which tensors an adapter has over a base model, found on the meta device: no weight of the base is read."""

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
from engine.models.adapters.trainable import refuse_what_is_not_copied
from engine.models.loading import POLICY_ADAPTER, hub_arguments
from engine.security.sanitize import visible_line

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig

OTHER_BASE = "Give the base model of Stage 2 with --base-model-id, or the adapter for this one with --adapter-path."


@dataclass(frozen=True)
class BaseFacts:
    """The base model, as far as its configuration tells."""

    name: str
    """`--base-model-id`, as it may be shown."""
    architecture: str
    layers: int
    vocabulary: int
    """Rows of its embedding."""
    parameters: int


@dataclass(frozen=True)
class AdaptedModule:
    """One module of the base with LoRA on it."""

    name: str
    rank: int
    alpha: float
    scaling: float
    """What B·A is multiplied by: alpha/r, or alpha/√r for rsLoRA."""

    @property
    def kind(self) -> str:
        """The last part of its name: q_proj, down_proj, …"""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Expected:
    """What an adapter of these settings has over this base."""

    base: BaseFacts
    shapes: dict[str, tuple[int, ...]]
    """By the names that the file has (`base_model.model.….lora_A.weight`)."""
    modules: list[AdaptedModule]
    absent: list[str]
    """Target modules of the configuration that are nowhere in the base. PEFT says nothing of them."""

    @property
    def target_modules(self) -> list[str]:
        return sorted({module.kind for module in self.modules})


def expected_adapter(config: Stage3Config, settings: AdapterSettings, token: str | None = None) -> Expected:
    """Raises PreconditionError where the base cannot be read, has none of the target modules, or where DPO could not train
    what would be on it; UnsafeError where the base brings code of its own.
    """
    import torch
    from peft import get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    base_config = read_base_config(config, token)
    lora = copy.deepcopy(settings.lora)  # PEFT writes into it what "all-linear" came to
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with base_problems_told(config):
            model = AutoModelForCausalLM.from_config(base_config, trust_remote_code=False)
        base = _facts(config, base_config, model)
        try:
            policy = get_peft_model(model, lora, adapter_name=POLICY_ADAPTER)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, re.error) as error:
            raise _no_place(settings, base, error) from error
        refuse_what_is_not_copied(settings, policy)
        state = get_peft_model_state_dict(policy, adapter_name=POLICY_ADAPTER, save_embedding_layers=False)
    modules = _adapted(policy)
    return Expected(
        base=base,
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        modules=modules,
        absent=_absent(settings.lora.target_modules, [module.name for module in modules]),
    )


def read_base_config(config: Stage3Config, token: str | None = None) -> PretrainedConfig:
    """The base model's configuration. Raises as `base_problems_told`."""
    from transformers import AutoConfig

    with base_problems_told(config):
        return AutoConfig.from_pretrained(config.base_model_id, **hub_arguments(config, token))


@contextmanager
def base_problems_told(config: Stage3Config) -> Iterator[None]:
    """What transformers says when it cannot read the base, as PreconditionError, or UnsafeError where the base wants to bring
    code of its own. What the Hub refuses is left as it is.
    """
    from safetensors import SafetensorError

    from engine.hub import as_hub_error

    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if as_hub_error(error) is not None:
            raise
        name, said = visible_line(config.base_model_id, 200), visible_line(str(error), 300)
        if "trust_remote_code" in str(error):
            raise UnsafeError(
                f"The base model {name} brings code of its own.",
                "stage3-tui runs no code that comes with a model.",
                "Give a base model that transformers knows, with --base-model-id.",
            ) from error
        raise PreconditionError(
            f"The base model {name} cannot be read.",
            f"transformers says: {said}",
            "Give a folder that `model.save_pretrained` wrote, or a Hub id, with --base-model-id.",
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


def _no_place(settings: AdapterSettings, base: BaseFacts, error: Exception) -> PreconditionError:
    targets = settings.lora.target_modules
    wanted = ", ".join(sorted(targets)) if isinstance(targets, (set, list)) else str(targets)
    return PreconditionError(
        f"The adapter has no place in {base.name}.",
        f"It is on {visible_line(wanted, 200)}, and PEFT says of a {base.architecture}: {visible_line(str(error), 300)}",
        OTHER_BASE,
    )


def _adapted(policy: PeftModel) -> list[AdaptedModule]:
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
