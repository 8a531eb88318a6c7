"""Decide which stages are still valid and which must be done again, each only by what its own result depends on.

A stage depends on its own options, on the results of the stages that it names (by hash, not by time), and on what else it
reads. The options (`engine.core.config`), the stage table (`engine.core.stage_table`) and the stage modules declare this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from engine.core.config import Stage3Config
from engine.core.options import options
from engine.core.stage_table import STAGE
from engine.run.context import Context
from engine.run.folder import Run
from engine.stages.base import Stage

Evidence = dict[str, Any]
_HASH = re.compile("[0-9a-f]{40,64}")


def load_stage(name: str) -> Stage:
    return cast(Stage, import_module(f"engine.stages.{name}"))


def options_of(name: str) -> dict[str, tuple[str, ...]]:
    """The options that the stage's result depends on, each with the parts of the stage that it changes."""
    parts = STAGE[name].parts
    changing = {option.name: tuple(part for part in parts if part in option.changes) for option in options()}
    return {option: changed for option, changed in changing.items() if changed}


def evidence_of(context: Context, name: str, *, stage: Stage | None = None) -> Evidence | None:
    """What the stage's result depends on, as JSON values; None for a stage that is never reused."""
    if STAGE[name].always_runs:
        return None
    stage = stage or load_stage(name)
    more = stage.evidence(context) if hasattr(stage, "evidence") else {}
    if more is None:
        return None
    values = _option_values(context.config, stage, name) | _input_values(context.run, name) | more
    return cast(Evidence, json.loads(json.dumps(values, default=str)))


def _option_values(config: Stage3Config, stage: Stage, name: str) -> Evidence:
    read_as = getattr(stage, "READ_AS", {})
    return {option: read_as.get(option, lambda c, o=option: getattr(c, o))(config) for option in options_of(name)}


def _input_values(run: Run, name: str) -> Evidence:
    """The results that the stage depends on; None for those that do not exist yet."""
    found = {}
    for key in STAGE[name].inputs:
        stage, _, field = key.partition(".")
        found[key] = run.result(stage).get(field)
    return found


@dataclass(frozen=True)
class Change:
    """An input of a stage that has changed."""

    key: str
    name: str
    """The option, or what the result is called."""
    before: Any
    now: Any

    def __str__(self) -> str:
        if any(_is_opaque(value) for value in (self.before, self.now)):
            return f"{self.name} changed"
        if self.before is None and " " in self.name:  # not an option, and it had no value before
            return f"{self.name} is {_short(self.now)}"
        return f"{self.name} changed from {_short(self.before)} to {_short(self.now)}"


def changes(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two pieces of evidence of one stage."""
    keys, called = dict.fromkeys([*before, *now]), STAGE[name].inputs
    return [
        Change(key, called.get(key, key), before.get(key), now.get(key))
        for key in keys
        if before.get(key) != now.get(key)
    ]


def outputs_to_set_aside(name: str, changed: list[Change]) -> tuple[str, ...]:
    """The files of the stage that no longer hold after these changes."""
    spec = STAGE[name]
    if spec.keeps_records:
        return ()
    declared = options_of(name)
    parts = {part for change in changed for part in declared.get(change.key, (name,))}
    if name in parts or not parts:
        return spec.outputs
    return tuple(dict.fromkeys(output for part in parts for output in spec.part_outputs[part]))


def _is_opaque(value: Any) -> bool:
    """Whether it would mean nothing to a person: a hash, or a list of them."""
    return isinstance(value, (dict, list)) or (isinstance(value, str) and _HASH.fullmatch(value) is not None)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 48 else f"{text[:45]}…"
