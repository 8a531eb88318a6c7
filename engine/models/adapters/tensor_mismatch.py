"""Why an adapter's tensors do not match the base model, from their names and shapes, with a message for each cause. PEFT silently
loads most of these adapters, and the result is the plain base model, or garbage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import prod

from engine.core.errors import PreconditionError
from engine.models.adapters.expected_tensors import OTHER_BASE, BaseFacts, ExpectedTensors
from engine.models.adapters.folder import EXPORT_AGAIN, first_few
from engine.models.adapters.settings import AdapterSettings
from engine.security.sanitize import visible_line

Shapes = Mapping[str, tuple[int, ...]]

_LAYER = re.compile(r"\.(?:layers|h|blocks?)\.(\d+)\.")
_ADAPTER_NAME = re.compile(r"(lora_[AB]|lora_magnitude_vector)\.[^.]+(\.weight)?$")
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight")
_PREFIX = "base_model.model."


def refuse_mismatch(settings: AdapterSettings, expected: ExpectedTensors, found: Shapes) -> None:
    """Raises PreconditionError with the reason if the tensors `found` in the file do not match the expected ones."""
    if settings.architecture is not None and settings.architecture != expected.base.architecture:
        made_on = visible_line(settings.architecture, 80)
        why = (
            f"According to its configuration it was trained on a {made_on}, but this is a {expected.base.architecture}."
        )
        raise _other_base(settings, expected.base, why)
    for cause in (_embedding, _renamed, _unknown_tensors, _layers, _missing_or_extra, _rank, _transposed, _widths):
        refusal = cause(settings, expected, found)
        if refusal is not None:
            raise refusal


def _embedding(settings: AdapterSettings, expected: ExpectedTensors, found: Shapes) -> PreconditionError | None:
    """The base model's embedding or head is among the tensors."""
    base = expected.base
    for name in sorted(name for name in found if name.endswith(_EMBEDDINGS) and "lora_" not in name):
        rows = found[name][0] if found[name] else 0
        if rows != base.vocabulary:
            return PreconditionError(
                f"The adapter was trained with a different vocabulary than {base.name} has.",
                f"It contains {visible_line(name, 120)} with {rows:,} rows; the base model has {base.vocabulary:,} tokens.",
                "Pass the base model with its vocabulary resized as in Stage 2 (`model.resize_token_embeddings`, then "
                "`save_pretrained`) with --base-model-id.",
            )
        if name not in expected.shapes:
            return PreconditionError(
                f"The adapter contains the base model's own {visible_line(name, 120)}.",
                "PEFT would replace the base model's tensor with it, so the base model would differ even with the adapter "
                "switched off.",
                "Export it with `model.save_pretrained(folder, save_embedding_layers=False)`, or train it in modules_to_save.",
            )
    return None


def _renamed(settings: AdapterSettings, expected: ExpectedTensors, found: Shapes) -> PreconditionError | None:
    """All names match, except for an inserted or missing part."""

    def without(pattern: Callable[[str], str]) -> bool:
        return {pattern(name) for name in found} == set(expected.shapes) != set(found)

    for wrapper in _WRAPPERS:
        if without(lambda name, wrapper=wrapper: name.replace(wrapper, "")):  # type: ignore[misc]
            return PreconditionError(
                f"The names of the adapter's tensors contain {wrapper!r}: {first_few(sorted(found), 1)}.",
                "It was saved from a wrapped model (DistributedDataParallel, FSDP, torch.compile); PEFT would ignore them all.",
                "Save the model inside the wrapper: `accelerator.unwrap_model(model).save_pretrained(folder)`.",
            )
    if without(lambda name: _ADAPTER_NAME.sub(r"\1\2", name)):
        return PreconditionError(
            f"The names of the adapter's tensors contain the adapter's own name: {first_few(sorted(found), 1)}.",
            "They were saved with `state_dict()`, not by PEFT: other programs would ignore them all.",
            EXPORT_AGAIN,
        )
    if without(lambda name: _PREFIX + name.removeprefix("base_model.").removeprefix("model.")) or without(
        lambda name: _PREFIX + name
    ):
        return PreconditionError(
            f"The names of the adapter's tensors do not begin with {_PREFIX!r}: {first_few(sorted(found), 1)}.",
            "Another program wrote or changed them; PEFT would ignore them all.",
            EXPORT_AGAIN,
        )
    return None


def _unknown_tensors(settings: AdapterSettings, expected: ExpectedTensors, found: Shapes) -> PreconditionError | None:
    if found and not expected.shapes.keys() & found.keys():
        theirs, ours = first_few(sorted(found), 1), first_few(sorted(expected.shapes), 1)
        return _other_base(
            settings, expected.base, f"None of its tensor names match: it has {theirs}, the base model needs {ours}."
        )
    return None


def _layers(settings: AdapterSettings, expected: ExpectedTensors, found: Shapes) -> PreconditionError | None:
    """There are more layers than the base model has, or some layers are missing entirely."""
    wanted, present = _by_layer(expected.shapes), _by_layer(found)
    if not wanted or not present:
        return None
    if max(present) > max(wanted):
        why = f"It has tensors of layer {max(present)}, but the base model's last layer is {max(wanted)}."
        return _other_base(settings, expected.base, why)
    gone = sorted(layer for layer in wanted if layer not in present)
    known = [name for name in found if name in expected.shapes]
    if gone and min(gone) > max(present) and any(found[name] != expected.shapes[name] for name in known):
        why = f"Its last layer is {max(present)}, the base model's is {max(wanted)}, and the shapes differ."
        return _other_base(settings, expected.base, why)
    if gone:
        return _incomplete(expected, [name for layer in gone for name in wanted[layer]], f"all of layer {gone[0]}")
    return None


def _missing_or_extra(settings: AdapterSettings, expected: ExpectedTensors, found: Shapes) -> PreconditionError | None:
    missing = sorted(expected.shapes.keys() - found.keys())
    extra = sorted(found.keys() - expected.shapes.keys())
    if missing:
        return _incomplete(expected, missing, first_few(missing))
    if extra:
        return PreconditionError(
            f"The adapter has {len(extra)} more tensors than its configuration and the base model need.",
            f"They are {first_few(extra)}. PEFT would silently ignore them.",
            f"The configuration belongs to another adapter, or was edited. {EXPORT_AGAIN}",
        )
    return None


def _rank(settings: AdapterSettings, expected: ExpectedTensors, found: Shapes) -> PreconditionError | None:
    """lora_A (rank, in) and lora_B (out, rank) differ only in their rank."""
    for name, wanted in sorted(expected.shapes.items()):
        actual, rank_dimension = found[name], 0 if ".lora_A." in name else 1
        if "lora_" not in name or len(actual) != 2 or len(wanted) != 2:
            continue
        if (
            actual[rank_dimension] != wanted[rank_dimension]
            and actual[1 - rank_dimension] == wanted[1 - rank_dimension]
        ):
            return PreconditionError(
                f"The adapter's tensors have rank {actual[rank_dimension]}, but its configuration has {wanted[rank_dimension]}.",
                f"{visible_line(name, 120)} is {actual}; {wanted} was expected.",
                f"The configuration belongs to another adapter, or was edited (r, rank_pattern). {EXPORT_AGAIN}",
            )
    return None


def _transposed(settings: AdapterSettings, expected: ExpectedTensors, found: Shapes) -> PreconditionError | None:
    for name, wanted in sorted(expected.shapes.items()):
        if found[name] != wanted and found[name] == wanted[::-1]:
            return PreconditionError(
                f"The adapter's {visible_line(name, 120)} is transposed: {found[name]} instead of {wanted}.",
                "Another program wrote it in the layout of Conv1D or MLX.",
                EXPORT_AGAIN,
            )
    return None


def _widths(settings: AdapterSettings, expected: ExpectedTensors, found: Shapes) -> PreconditionError | None:
    wrong = sorted(name for name, wanted in expected.shapes.items() if found[name] != wanted)
    if not wrong:
        return None
    name = wrong[0]
    why = (
        f"{len(wrong)} of {len(found)} tensors have the wrong shape: {visible_line(name, 120)} is {found[name]}, the base model "
        f"needs {expected.shapes[name]}."
    )
    return _other_base(settings, expected.base, why)


def _incomplete(expected: ExpectedTensors, missing: list[str], which: str) -> PreconditionError:
    numbers = sum(prod(expected.shapes[name]) for name in missing)
    return PreconditionError(
        f"The adapter is incomplete: {len(missing)} of its {len(expected.shapes)} tensors are missing ({which}).",
        f"PEFT would initialise them afresh, and {numbers:,} numbers would be untrained.",
        EXPORT_AGAIN,
    )


def _other_base(settings: AdapterSettings, base: BaseFacts, why: str) -> PreconditionError:
    """The error for an adapter of another base model, with the one that its configuration names as a hint."""
    named = f" Its configuration names {visible_line(settings.named_base, 200)}." if settings.named_base else ""
    return PreconditionError(f"The adapter does not fit {base.name}.", f"{why}{named}", OTHER_BASE)


def _by_layer(shapes: Shapes) -> dict[int, list[str]]:
    layers: dict[int, list[str]] = {}
    for name in sorted(shapes):
        found = _LAYER.search(name)
        if found:
            layers.setdefault(int(found[1]), []).append(name)
    return layers
