"""The adapter's summary, line by line, as (name, status, detail)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePath

from engine.core.config import Stage3Config
from engine.core.events import CheckStatus
from engine.hub.references import is_local, local_path
from engine.models.adapters.expected_tensors import AdaptedModule, ExpectedTensors
from engine.models.adapters.folder import first_few
from engine.models.adapters.settings import AdapterSettings
from engine.security.sanitize import visible_line

Line = tuple[str, CheckStatus, str]
_IN_THE_CACHE = re.compile(r"models--[^/]+?--([^/]+)/snapshots/")


def settings_lines(config: Stage3Config, settings: AdapterSettings, expected: ExpectedTensors) -> Iterator[Line]:
    """The lines about the configuration, as PEFT applies it to this base model."""
    modules = expected.modules
    yield ("named base", *named_base(config, settings.named_base))
    yield "rank", "ok", _counted(Counter(str(module.rank) for module in modules))
    yield (
        "alpha",
        "ok",
        f"{_counted(Counter(f'{module.alpha:g}' for module in modules))}: {_scaling(settings, modules)}",
    )
    if settings.variant:
        yield "variant", "ok", settings.variant
    absent = f"; the base model has no {first_few(expected.absent, 6)}" if expected.absent else ""
    saved = settings.lora.modules_to_save
    saved_modules = f"; trained in full: {first_few(sorted(saved), 6)}" if saved else ""
    status: CheckStatus = "warning" if absent else "ok"
    yield "target modules", status, f"{first_few(expected.target_modules, 12)}{saved_modules}{absent}"
    if settings.unknown:
        fields = ", ".join(f"{key} = {value!r}" for key, value in settings.unknown.items())
        yield "configuration", "warning", f"the installed PEFT ignores {visible_line(fields, 200)}"


def named_base(config: Stage3Config, named: str | None) -> tuple[CheckStatus, str]:
    """The base model that the adapter's configuration names. Only a hint: shapes and effect decide."""
    if named is None:
        return "skipped", "the configuration names no base model"
    shown = visible_line(named, 200)
    model_name = _last_name(named)
    if is_local(config.base_model_id):
        # A folder may have any name: the two match if one contains all words of the other.
        our_words, named_words = _words(local_path(config.base_model_id).name), _words(model_name)
        same = our_words <= named_words or named_words <= our_words
    else:
        same = model_name == config.base_model_id.rpartition("/")[2].lower()
    if same:
        return "ok", shown
    return (
        "warning",
        f"{shown}: differs from the run's base model, {visible_line(config.base_model_id, 200)}; shapes and effect decide",
    )


def size(number: int) -> str:
    """`1,234 bytes`, or `78.5 MB`."""
    return f"{number:,} bytes" if number < 1_000_000 else f"{number / 1e6:,.1f} MB"


def share_of_base(parameters: int, base_parameters: int) -> str:
    return f"{parameters:,} ({parameters / max(base_parameters, 1):.2%} of the base model's {base_parameters:,})"


def _last_name(named: str) -> str:
    cached = _IN_THE_CACHE.search(named)
    return (cached[1] if cached else PurePath(named).name).lower()


def _words(name: str) -> set[str]:
    return set(re.split(r"[-_. ]+", name.lower()))


def _counted(values: Counter[str]) -> str:
    """`16`, or `16 in 28 modules, 32 in 4`."""
    if len(values) == 1:
        return next(iter(values))
    (first, count), *others = values.most_common()
    rest = [f"{value} in {number}" for value, number in others[:3]]
    more = ", …" if len(others) > 3 else ""
    return f"{first} in {count} modules, {', '.join(rest)}{more}"


def _scaling(settings: AdapterSettings, modules: list[AdaptedModule]) -> str:
    how = "alpha/√r" if settings.lora.use_rslora else "alpha/r"
    least, most = min(module.scaling for module in modules), max(module.scaling for module in modules)
    return f"scaling {least:.4g}" + (f" to {most:.4g}" if most > least else "") + f" ({how})"
