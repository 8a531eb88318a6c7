"""Sets of options to start from: the demo's, the notebook's, and those of the last other run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.config import Stage3Config, load_config
from engine.core.errors import ConfigError, DamagedState
from engine.core.layout import RUN_JSON
from engine.demo.preset import demo_defaults
from engine.run.folder import Run
from engine.run.listing import find_run_folders

KEPT = ("output_dir", "theme", "mouse", "ascii")
"""Options that no preset changes: where the run is, and how it is shown."""
DEPTH = 2
"""How many levels below the run folder's parent are searched for other runs."""


@dataclass(frozen=True)
class Preset:
    key: str
    """The letter that chooses it."""
    name: str
    sentence: str
    config: Stage3Config


def presets(config: Stage3Config) -> tuple[Preset, ...]:
    """The available presets; each leaves the run folder and the display as they are."""
    demo, notebook = _with_options(config, demo_defaults()), _with_options(config, {})
    found = [
        Preset("d", "the demo", "Embedded model, prompts and judge; offline, a minute.", demo),
        Preset("n", "the notebook's settings", "Every option at its default.", notebook),
    ]
    last = _last_run(config)
    with suppress(ConfigError):  # another version's options, no longer valid
        if last is not None:
            found.append(Preset("l", "my last run", f"The options of {last[0].name}.", _with_options(config, last[1])))
    return tuple(found)


def _with_options(config: Stage3Config, values: Mapping[str, Any]) -> Stage3Config:
    kept = {name: getattr(config, name) for name in KEPT}
    return load_config({**values, **kept}, environment={})


def _last_run(config: Stage3Config) -> tuple[Path, dict[str, Any]] | None:
    """The newest run beside this one, with its options; None if there is none."""
    own = config.output_dir.expanduser().resolve()
    others = sorted(_other_runs(own), key=_modified_time, reverse=True)
    known = set(Stage3Config.model_fields)
    for folder in others:
        try:
            stored = Run(folder).manifest["config"]
        except DamagedState:
            continue
        if stored:
            return folder, {key: value for key, value in stored.items() if key in known}
    return None


def _other_runs(own: Path) -> Iterator[Path]:
    beside = own.parent
    return (folder for folder in find_run_folders(beside, DEPTH) if folder != own) if beside.is_dir() else iter(())


def _modified_time(folder: Path) -> float:
    try:
        return (folder / RUN_JSON).stat().st_mtime
    except OSError:
        return 0.0
