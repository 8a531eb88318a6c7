"""Read `adapter_config.json`. It is untrusted: anything that makes PEFT import or load code is refused."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.core.errors import PreconditionError, UnsafeError
from engine.core.layout import ADAPTER_CONFIG
from engine.core.nesting import parse_untrusted_json
from engine.machine.memory import freeze_libraries
from engine.models.adapters.folder import EXPORT_AGAIN, first_few, open_adapter_file, safe_path
from engine.security.sanitize import visible_line

if TYPE_CHECKING:
    from peft import LoraConfig

MAX_CONFIG_BYTES = 16 << 20
"""Bytes; PEFT writes a few thousand."""
NOT_FOR_PEFT = ("auto_mapping", "base_model_name_or_path", "revision", "runtime_config")
"""Provenance and machine settings, which are not taken from the file."""
TRANSFORMERS = "transformers"


class _FieldTypes(BaseModel):
    """The types that PEFT expects but does not check."""

    model_config = ConfigDict(strict=True, extra="ignore")

    r: int = Field(8, ge=1)
    lora_alpha: float = Field(8, allow_inf_nan=False)
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    target_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    auto_mapping: dict[str, Any] | None = None


@dataclass(frozen=True)
class AdapterSettings:
    """A LoRA's configuration, and what it records about its base model."""

    path: Path
    lora: LoraConfig
    named_base: str | None
    """Only a hint: PEFT writes a Hub id or a path on the training machine."""
    architecture: str | None
    """The base model's class, if PEFT recorded it; it does so if there is no task_type."""
    unknown: dict[str, Any]
    """Fields of another PEFT version, which the installed one ignores."""

    @property
    def variant(self) -> str:
        """rsLoRA, DoRA, or both; empty for plain LoRA."""
        names = [name for name, used in (("DoRA", self.lora.use_dora), ("rsLoRA", self.lora.use_rslora)) if used]
        return ", ".join(names)


def read_settings(folder: Path) -> AdapterSettings:
    """The adapter's configuration. Raises PreconditionError if it is missing, not JSON, or not a LoRA's; UnsafeError if it names
    code."""
    path = folder / ADAPTER_CONFIG
    data = _read_object(folder)
    kind = data.get("peft_type")
    if kind != "LORA":
        description = "no peft_type" if kind is None else f"peft_type {visible_line(repr(kind), 60)}, not 'LORA'"
        raise PreconditionError(
            f"{safe_path(path)} has {description}.",
            "Stage 3 trains only LoRA adapters." + _spelling(kind),
            EXPORT_AGAIN if kind is None else "Train Stage 2 with `peft.LoraConfig`, and pass that adapter.",
        )
    _refuse_code(data, path)
    try:
        types = _FieldTypes.model_validate(data)
    except ValidationError as error:
        raise _peft_error(path, _first_problem(error)) from None
    if types.task_type not in (None, "CAUSAL_LM"):
        raise PreconditionError(
            f"{safe_path(path)} has task_type {visible_line(repr(types.task_type), 60)}.",
            "Stage 3 needs an adapter of a causal language model: CAUSAL_LM.",
            "Pass the Stage 2 adapter; this one was trained for another task.",
        )
    return AdapterSettings(
        path=path,
        lora=_lora_config(data, path),
        named_base=types.base_model_name_or_path or None,
        architecture=_text((types.auto_mapping or {}).get("base_model_class")),
        unknown=_unknown(data),
    )


def _read_object(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    with open_adapter_file(folder, ADAPTER_CONFIG) as file:
        text = file.read(MAX_CONFIG_BYTES + 1)
    try:
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"it is longer than {MAX_CONFIG_BYTES:,} bytes")
        data = parse_untrusted_json(text)
    except ValueError as error:
        raise PreconditionError(
            f"{safe_path(path)} is not JSON.", visible_line(f"{type(error).__name__}: {error}", 300), EXPORT_AGAIN
        ) from error
    if not isinstance(data, dict):
        raise PreconditionError(
            f"{safe_path(path)} is not a JSON object, but a {type(data).__name__}.",
            "PEFT writes an object with peft_type, r and target_modules.",
            EXPORT_AGAIN,
        )
    return data


def _spelling(kind: object) -> str:
    return " PEFT writes it in capitals." if isinstance(kind, str) and kind.upper() == "LORA" else ""


def _refuse_code(data: dict[str, Any], path: Path) -> None:
    """Refuse fields that would make a library import a module named in the file."""
    named = data.get("auto_map")
    if named:
        beside = sorted(script.name for script in path.parent.glob("*.py"))
        script_note = f" {first_few(beside)} is beside it." if beside else ""
        raise _code_error(path, f"auto_map {visible_line(repr(named), 200)}", script_note)
    mapping = data.get("auto_mapping")
    if isinstance(mapping, dict):
        library = mapping.get("parent_library")
        if library is not None and str(library).partition(".")[0] != TRANSFORMERS:
            raise _code_error(path, f"a model class of {visible_line(repr(library), 200)} in auto_mapping", "")
    if data.get("megatron_config"):
        raise _code_error(path, f"megatron_core {visible_line(repr(data.get('megatron_core')), 200)}", "")


def _code_error(path: Path, what: str, script_note: str) -> UnsafeError:
    return UnsafeError(
        f"{safe_path(path)} names code to run: {what}.{script_note}",
        "stage3-tui never runs code that comes with a model or an adapter.",
        "Train Stage 2 on a model that transformers supports itself, and pass that adapter.",
    )


def _lora_config(data: dict[str, Any], path: Path) -> LoraConfig:
    freeze_libraries()  # here a run first imports them
    from peft import LoraConfig

    safe = {key: value for key, value in data.items() if key not in NOT_FOR_PEFT}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fields of another PEFT version; the stage reports them
            return LoraConfig.from_peft_type(**safe)  # type: ignore[no-any-return]
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise _peft_error(path, str(error)) from error


def _unknown(data: dict[str, Any]) -> dict[str, Any]:
    """Fields with a value that the installed PEFT version does not have."""
    from dataclasses import fields

    from peft import LoraConfig

    known = {field.name for field in fields(LoraConfig)} | set(NOT_FOR_PEFT) | {"auto_map"}
    return {key: value for key, value in sorted(data.items()) if key not in known and value}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where} = {first['input']!r}: {first['msg']}"


def _peft_error(path: Path, why: str) -> PreconditionError:
    return PreconditionError(f"PEFT cannot use {safe_path(path)}.", visible_line(why, 300), EXPORT_AGAIN)
