"""The trials of a sweep: every combination of some training options, each with a name and its own run folder."""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.core.config import Stage3Config, with_changes
from engine.core.errors import ConfigError
from engine.core.options import options
from engine.core.reading import read_toml
from engine.core.stage_table import STAGES
from engine.run.context import Context
from engine.run.folder import Run

MAX_NAME_CHARACTERS = 80
SHARED_FILES = (layout.TRAIN_JSONL, layout.EVAL_JSONL, layout.PAIRS_REPORT)
"""Files that a trial shares with the run."""


@dataclass(frozen=True)
class Trial:
    name: str
    options: Mapping[str, Any]
    """The options in which the trials differ."""


def options_to_try() -> tuple[str, ...]:
    """The options that a sweep may vary: those that change the training but not the pairs."""
    return tuple(option.name for option in options() if "training" in option.changes)


def trials_from_grid(grid: Mapping[str, Sequence[Any]]) -> list[Trial]:
    """Every combination, in the order of the lists."""
    names = list(grid)
    return _as_trials([dict(zip(names, values, strict=True)) for values in itertools.product(*grid.values())])


def trials_from_toml(path: Path) -> list[Trial]:
    """`[grid]` with a list for each option, or one `[[trial]]` table per trial. Raises ConfigError."""
    try:
        data = read_toml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read the sweep {path}.", str(error), "Pass a TOML file with --trials.") from error
    grid, listed = data.get("grid", {}), data.get("trial", [])
    if not isinstance(grid, dict) or not isinstance(listed, list) or not (grid or listed):
        raise ConfigError(
            f"The sweep {path} contains no trials.",
            "It has neither a table `grid` nor tables `trial`.",
            "For example: [grid] beta = [0.05, 0.1], or [[trial]] beta = 0.1.",
        )
    lists = {_option(key): value if isinstance(value, list) else [value] for key, value in grid.items()}
    written = [{_option(key): value for key, value in trial.items()} for trial in listed]
    return _as_trials([dict(trial.options) for trial in trials_from_grid(lists)] + written if lists else written)


def checked(config: Stage3Config, trials: Sequence[Trial]) -> list[Trial]:
    """The trials with their values as the configuration parses them. Raises ConfigError for an invalid one."""
    allowed, found = options_to_try(), []
    for trial in trials:
        for name in trial.options:
            if name not in allowed:
                raise ConfigError(
                    f"A sweep cannot vary {name!r}.",
                    "Trials train on the same pairs; this option changes something else.",
                    f"A sweep can vary {', '.join(allowed)}.",
                )
        changed, refused = with_changes(config, trial.options)
        if changed is None:
            name, why = next(iter(refused.items()))
            raise ConfigError(f"Invalid value for {name}: {trial.options[name]!r}.", why, "Use another value.")
        found.append(Trial(trial.name, {name: getattr(changed, name) for name in trial.options}))
    return found


def _option(key: str) -> str:
    return key.replace("-", "_")


def _as_trials(combinations: list[dict[str, Any]]) -> list[Trial]:
    named = {_name(options): Trial(_name(options), options) for options in combinations}
    return list(named.values())


def _name(options: Mapping[str, Any]) -> str:
    """The differing options as a folder name: `beta-0.1_learning-rate-5e-06`."""
    name = "_".join(f"{option.replace('_', '-')}-{_value(value)}" for option, value in options.items())
    if len(name) <= MAX_NAME_CHARACTERS:
        return name
    return f"{name[: MAX_NAME_CHARACTERS - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _value(value: Any) -> str:
    number = _as_number(value)
    return re.sub(r"[^A-Za-z0-9.+-]", "-", f"{number:g}" if isinstance(number, float) else str(value))


def _as_number(value: Any) -> float | None:
    """`5e-6`, `0.000005` and 5e-06 are the same value and get the same name."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


# -- the folder of a trial ---------------------------------------------------------------------------------------------


def trial_context(context: Context, trial: Trial) -> Context:
    """The trial as a run of its own: its folder, with the results of the stages before training."""
    folder = context.run / layout.TRIALS_DIR / trial.name
    config = context.config.model_copy(update={**trial.options, "output_dir": folder, "eval_part": "first"})
    run = Run(folder, shared_cache=context.run.cache)
    return Context(config=config, run=run, stop=context.stop, token=context.token)


def share_inputs(context: Context, trial: Context) -> None:
    """Copy the files and records that the trial builds on into its (acquired) run. Raises OSError."""
    for name in SHARED_FILES:
        (trial.run / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(context.run / name, trial.run / name)  # a hard link would prevent packing the run
    for stage in STAGES[: STAGES.index("training")]:
        trial.run.manifest["stages"][stage] = context.run.stage(stage)
    trial.run.save()
