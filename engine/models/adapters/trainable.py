"""What of PEFT's LoRA cannot be trained with DPO, or only against a reference that is silently another.

TRL copies the parameters whose names hold ".default." into an adapter "ref" beside it, which PEFT builds anew from the same
configuration. Whatever either of the two does otherwise is refused here, before pairs are made: some of it would end in a
traceback after hours, some of it in a training without a fault to be seen (tests/dpo/test_trained_variants.py shows which).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.core.errors import PreconditionError
from engine.models.adapters.folder import EXPORT_AGAIN, shown
from engine.models.adapters.settings import AdapterSettings
from engine.models.loading import POLICY_ADAPTER
from engine.security.sanitize import visible_line

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Ways to begin an adapter that leave the base as it is."""
OF_ANOTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways that take the adapter's first values out of the base's weights. PEFT does so again when such an adapter is loaded, and
again for TRL's copy: with PiSSA and OLoRA the base's own logits moved, while first loss and hash stayed what they should be."""
VARIANTS = (
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config",
)  # fmt: skip
CONVERT_BACK = (
    "Where it was trained, save it again with `model.save_pretrained(folder, path_initial_model_for_weight_conversion=…)`: "
    "that makes a plain LoRA of it."
)


def refuse_untrainable(settings: AdapterSettings) -> None:
    """What the configuration alone tells. Raises PreconditionError."""
    lora = settings.lora
    _refuse_other_base(settings)
    reasons = {
        f"bias {lora.bias!r}: PEFT allows it for one adapter only, and the reference is a second": lora.bias != "none",
        "trainable_token_indices: TRL cannot copy them for the reference": bool(lora.trainable_token_indices),
        "layer_replication: PEFT repeats the layers again for the reference": bool(lora.layer_replication),
        "lora_bias: PEFT cannot merge it into a layer that has no bias, and pairs are made by a merged model": bool(
            lora.lora_bias
        ),
    } | {
        f"{name}: a kind of LoRA whose reference was not shown to be right (plain, rsLoRA and DoRA are)": bool(
            getattr(lora, name, None)
        )
        for name in VARIANTS
    }
    for reason, applies in reasons.items():
        if applies:
            raise cannot_train(settings, reason)


def refuse_what_is_not_copied(settings: AdapterSettings, policy: PeftModel) -> None:
    """What only the base's structure tells: LoRA on its embedding or head, and parameters that TRL would not copy. `policy` may
    be on the meta device. Raises PreconditionError.
    """
    from peft.tuners.lora import LoraLayer
    from torch import nn

    head = policy.get_base_model().get_output_embeddings()
    for module in policy.modules():
        if not isinstance(module, LoraLayer):
            continue
        if isinstance(module.get_base_layer(), nn.Embedding):
            raise cannot_train(settings, "LoRA on the embedding: TRL's copy of the reference leaves it out")
        if module is head:
            raise cannot_train(settings, "LoRA on the head: TRL computes log-probabilities past it")
    for name, _ in policy.named_parameters():
        if POLICY_ADAPTER in name.split(".") and f".{POLICY_ADAPTER}." not in name:
            raise cannot_train(settings, f"{visible_line(name, 120)}: TRL's copy of the reference leaves it out")


def cannot_train(settings: AdapterSettings, reason: str) -> PreconditionError:
    return PreconditionError(
        f"The adapter {shown(settings.path.parent)} cannot be trained with DPO.",
        f"It has {reason}.",
        f"Train Stage 2 without it. {EXPORT_AGAIN}",
    )


def _refuse_other_base(settings: AdapterSettings) -> None:
    way = _initialisation(settings.lora)
    if way in INITIALISATIONS:
        return
    if str(way).lower().startswith(OF_ANOTHER_BASE):
        raise PreconditionError(
            f"The adapter {shown(settings.path.parent)} is not one of the base model as it is.",
            f"It began with init_lora_weights {way!r}, which takes its first values out of the base's weights: it belongs to "
            "what is left of them, and PEFT would take them out again each time it is loaded.",
            CONVERT_BACK,
        )
    raise PreconditionError(
        f"The adapter {shown(settings.path.parent)} has init_lora_weights {visible_line(repr(way), 60)}.",
        "This version of PEFT does not know it, so that it is not known whether it changes the base.",
        CONVERT_BACK,
    )


def _initialisation(lora: LoraConfig) -> bool | str:
    way: bool | str | None = lora.init_lora_weights
    return True if way is None else way
