"""The Stage 2 adapter, checked tensor by tensor and then by its effect.

PEFT loads an adapter with half of its keys missing, with keys of another model, with NaN or with nothing but zeros, and
says little or nothing; each of these is refused here, with its own reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import Stage3Config
from engine.errors import PreconditionError, UnsafeError
from engine.files import sha256_of_file
from engine.models.loading import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_local
from engine.models.tensors import file_tensors, hash_tensors

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# A trainer leaves these beside an adapter. They are pickles too, but nothing here ever opens them.
NEVER_OPENED = re.compile(r"training_args\.bin|optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state.*\.pth")
LFS_POINTER = b"version https://git-lfs"
EXPORT_AGAIN = (
    "Export the Stage 2 adapter again with `model.save_pretrained(folder)`, and give that with --adapter-path."
)


@dataclass(frozen=True)
class AdapterFile:
    """What a verified adapter folder holds."""

    folder: Path
    lora: LoraConfig
    tensors: Mapping[str, Tensor]
    sha256: str
    """Of the file's bytes."""
    tensors_sha256: str
    """Of the numbers, however they are kept: what the reference is held against in training."""
    bytes: int

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def target_modules(self) -> list[str]:
        targets = self.lora.target_modules
        return sorted(targets) if isinstance(targets, (set, list, tuple)) else [str(targets)]


def refuse_pickles(folder: Path) -> list[str]:
    """Names of a trainer's leftovers, which stay unopened. Raises UnsafeError for weights in a pickle."""
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLE_SUFFIXES)
    weights = [name for name in pickles if not NEVER_OPENED.fullmatch(name)]
    if weights:
        raise UnsafeError(
            f"The adapter folder {folder} holds {', '.join(weights)}.",
            "Such a file is a Python pickle: opening it can run any program.",
            "Convert it to safetensors where you trust it, remove the pickle, and start again.",
        )
    return pickles


def read_lora_config(folder: Path) -> LoraConfig:
    """The adapter's configuration. Raises PreconditionError for one that is no LoRA, or that DPO could not train."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise PreconditionError(
            f"There is no {ADAPTER_CONFIG} in {folder}.", "Without it the weights mean nothing.", EXPORT_AGAIN
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PreconditionError(f"{path} is not JSON.", str(error), EXPORT_AGAIN) from error
    kind = data.get("peft_type") if isinstance(data, dict) else None
    if kind != "LORA":
        raise PreconditionError(
            f"{path} has peft_type {kind!r}, not 'LORA'.",
            "Stage 3 trains a LoRA adapter, and no other kind.",
            EXPORT_AGAIN,
        )
    lora = _lora_config(data, path)
    _refuse_untrainable(lora, path)
    return lora


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors. Raises PreconditionError that tells a pointer, a web page and a cut file apart."""
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise PreconditionError(
            f"There is no {ADAPTER_WEIGHTS} in {folder}.", "It holds the adapter's weights.", EXPORT_AGAIN
        )
    with path.open("rb") as file:
        head = file.read(200)
    if head.startswith(LFS_POINTER):
        raise PreconditionError(
            f"{path} is a git-lfs pointer, not the weights.",
            "The repository was cloned without git-lfs.",
            "Run `git lfs pull` in it, then start again.",
        )
    if not head or head.lstrip().startswith(b"<"):
        what = "a web page" if head else "empty"
        raise PreconditionError(f"{path} is {what}.", "A download went wrong.", "Download the adapter again.")
    try:
        return file_tensors(path)
    except Exception as error:  # safetensors has one exception class, which older versions do not export
        size = path.stat().st_size
        raise PreconditionError(
            f"{path} ({size} bytes) is damaged or cut short.",
            f"safetensors says: {error}",
            "Copy or download it again.",
        ) from error


def expected_shapes(config: Stage3Config, lora: LoraConfig, token: str | None = None) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that this LoRA has over this base, without loading a weight of it.

    Raises PreconditionError where the base has none of the target modules.
    """
    import torch
    from peft import get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig, AutoModelForCausalLM

    hub: dict[str, Any] = {}
    if not is_local(config.base_model_id):
        hub = {"revision": config.base_model_revision, "token": token}
    base = AutoConfig.from_pretrained(config.base_model_id, trust_remote_code=False, **hub)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(base, trust_remote_code=False)
        try:
            policy = get_peft_model(model, lora)
        except ValueError as error:
            raise _another_base(config, str(error)) from error
        state = get_peft_model_state_dict(policy, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def compare_with_base(
    config: Stage3Config, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises PreconditionError that names what is missing, unexpected, or of the wrong shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    missing = sorted(expected.keys() - shapes.keys())
    unexpected = sorted(shapes.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name])
    if missing or unexpected:
        parts = [
            f"{len(names)} {word} ({_few(names)})"
            for names, word in ((missing, "missing"), (unexpected, "unexpected"))
            if names
        ]
        raise _another_base(config, f"Of {len(expected)} tensors, {' and '.join(parts)}.")
    if wrong:
        name = wrong[0]
        raise _another_base(
            config,
            f"{len(wrong)} tensors have the wrong shape: {name} is {shapes[name]}, the base asks for {expected[name]}.",
        )


def refuse_bad_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Raises PreconditionError for NaN, infinities, or an adapter that adds nothing (every lora_B zero)."""
    bad = sorted(name for name, tensor in tensors.items() if not bool(tensor.isfinite().all()))
    if bad:
        raise PreconditionError(
            f"The adapter has NaN or infinity in {len(bad)} tensors ({_few(bad)}).",
            "Stage 2 ended with broken numbers.",
            EXPORT_AGAIN,
        )
    if not any(bool(tensor.any()) for name, tensor in tensors.items() if "lora_B" in name):
        raise PreconditionError(
            "Every lora_B of the adapter is zero.",
            "Such an adapter adds nothing to the base: it was saved before it was trained.",
            EXPORT_AGAIN,
        )


def verified_adapter(config: Stage3Config, folder: Path, token: str | None = None) -> AdapterFile:
    """All checks that need no weights of the base, in one call. Raises PreconditionError or UnsafeError."""
    refuse_pickles(folder)
    lora = read_lora_config(folder)
    tensors = read_tensors(folder)
    compare_with_base(config, tensors, expected_shapes(config, lora, token))
    refuse_bad_numbers(tensors)
    weights = folder / ADAPTER_WEIGHTS
    return AdapterFile(folder, lora, tensors, sha256_of_file(weights), hash_tensors(tensors), weights.stat().st_size)


def effect_on_logits(policy: PeftModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """The largest change of a logit when the adapter is switched on, over one prompt in the chat template.

    Raises PreconditionError where it is 0 or not finite.
    """
    import torch

    from engine.models.rendering import conversation_ids

    ids = conversation_ids(
        tokenizer, [{"role": "user", "content": "How should I apologise to a friend?"}], reply_wanted=True
    )
    inputs = torch.tensor([ids], device=policy.device)
    was_training = policy.training
    policy.eval()
    with torch.no_grad():
        on = policy(input_ids=inputs).logits.float()
        with policy.disable_adapter():
            off = policy(input_ids=inputs).logits.float()
    policy.train(was_training)
    effect: float = (on - off).abs().max().item()
    if not effect > 0 or effect == float("inf"):
        raise PreconditionError(
            f"Switching the adapter on changes the logits by {effect}.",
            "More than 0 and finite is right; this adapter does nothing, or it breaks the model.",
            EXPORT_AGAIN,
        )
    return effect


def _lora_config(data: dict[str, Any], path: Path) -> LoraConfig:
    import warnings

    from peft import LoraConfig

    # PEFT imports what auto_mapping names; and the base is the pinned one, never the one that a file names.
    safe = {
        key: value for key, value in data.items() if key not in ("auto_mapping", "base_model_name_or_path", "revision")
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fields of another PEFT version, which are left out
            return LoraConfig.from_peft_type(**safe)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise PreconditionError(f"PEFT does not accept {path}.", str(error), EXPORT_AGAIN) from error


def _refuse_untrainable(lora: LoraConfig, path: Path) -> None:
    """What TRL cannot train, or would train against a reference that is silently another."""
    targets = lora.target_modules if isinstance(lora.target_modules, (set, list, tuple)) else ()
    reasons = {
        "LoRA on the embedding: TRL's copy of the reference leaves it out": "embed_tokens" in targets,
        "LoRA on lm_head: TRL computes log-probabilities past it": "lm_head" in targets,
        f"bias {lora.bias!r}: PEFT allows it for one adapter only, and the reference is a second": lora.bias != "none",
        "trainable_token_indices: TRL cannot copy them for the reference": bool(lora.trainable_token_indices),
    }
    for reason, applies in reasons.items():
        if applies:
            raise PreconditionError(f"{path} cannot be trained with DPO.", f"It has {reason}.", EXPORT_AGAIN)


def _another_base(config: Stage3Config, why: str) -> PreconditionError:
    return PreconditionError(
        f"The adapter does not fit {config.base_model_id}.",
        why,
        "Give the base model of Stage 2 with --base-model-id, or the adapter for this one with --adapter-path.",
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
