"""List the runs below a folder: the model, the current stage and the outcome of each. Only reads, without the lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.core import layout
from engine.core.errors import DamagedState, UnsafeError
from engine.core.reading import open_file
from engine.core.stage_table import STAGES
from engine.run.folder import Run
from engine.storage.documents import read_json_or_none
from engine.storage.files import size_of_folder

State = Literal["running", "done", "failed", "refused", "stopped", "interrupted", "unfinished", "damaged"]

MAX_DEPTH = 6
"""How many levels of folders are searched."""
FINISHED_STATUSES = ("done", "skipped")


@dataclass(frozen=True)
class RunSummary:
    """One row in a list of runs."""

    folder: Path
    state: State
    """`interrupted`: its process died. `unfinished`: all requested stages are done, but not all stages."""
    stage: str = ""
    """The current stage, or the one that ended the run; empty once all are done."""
    when: float | None = None
    """When it last wrote something, in seconds since the epoch; None if unknown."""
    model: str = ""
    pairs: int | None = None
    """Usable pairs; while stage pairs runs, the records so far. None before the first."""
    verdict: str = ""
    bytes: int = 0
    """Size on disk, including trials and the archive."""
    trials: tuple[RunSummary, ...] = ()

    @property
    def state_label(self) -> str:
        if self.trials and self.stage == "training" and self.state == "unfinished":
            return "no trial picked"
        if self.trials and self.state == "running" and not self.stage:
            return "running, trials"
        if self.state == "unfinished":
            return f"next: {self.stage}"
        return f"{self.state}, {self.stage}" if self.stage else self.state


def find_runs(folder: Path, depth: int = MAX_DEPTH) -> list[RunSummary]:
    """Every run in `folder` and below it, newest first; trials are listed under the run of their sweep. Links are not
    followed.
    """
    found = [summarize_run(path) for path in find_run_folders(folder, depth)]
    return sorted(found, key=lambda run: (-(run.when or 0.0), str(run.folder)))


def find_run_folders(folder: Path, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """Run folders, without those inside another run. Unreadable folders are skipped."""
    if is_run(folder):
        yield folder
    elif depth:
        for inner in _folders_in(folder):
            yield from find_run_folders(inner, depth - 1)


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run folder. Other programs also write files named `run.json`."""
    try:
        manifest = read_json_or_none(folder / layout.RUN_JSON, dict[str, Any])
    except UnsafeError:
        return False
    return (folder / layout.EVENTS_JSONL).is_file() if manifest is None else "stages" in manifest


def summarize_run(folder: Path) -> RunSummary:
    size = size_of_folder(folder)
    try:
        run = Run(folder)
        state, stage = state_of(run)
    except (DamagedState, UnsafeError):
        return RunSummary(folder, "damaged", when=_changed(folder / layout.RUN_JSON), bytes=size)
    training = run.results.training
    return RunSummary(
        folder,
        state,
        stage,
        when=_last_activity(run, state),
        model=Path(str(run.manifest["config"].get("base_model_id", ""))).name,
        pairs=_pairs(run),
        verdict="" if training is None else training.verdict,
        bytes=size + (run.archive.stat().st_size if run.archive.is_file() else 0),
        trials=tuple(summarize_run(trial) for trial in _folders_in(run / layout.TRIALS_DIR) if is_run(trial)),
    )


def state_of(run: Run) -> tuple[State, str]:
    """The state of a run, and the stage it is in."""
    recorded = {name: str(run.stage(name).get("status", "")) for name in _stages_of(run)}
    if run.owner() is not None:
        return "running", next((name for name, status in recorded.items() if status == "running"), "")
    undone = next((name for name, status in recorded.items() if status not in FINISHED_STATUSES), None)
    if undone is None:
        return "done", ""
    states: dict[str, State] = {
        "running": "interrupted", "failed": "failed", "refused": "refused", "stopped": "stopped",
    }  # fmt: skip
    return states.get(recorded[undone], "unfinished"), undone


def _stages_of(run: Run) -> tuple[str, ...]:
    """The stages of this run: a trial ends after training."""
    is_trial = run.folder.parent.name == layout.TRIALS_DIR
    return STAGES[: STAGES.index("training") + 1] if is_trial else STAGES


def _last_activity(run: Run, state: State) -> float | None:
    """The time of the last activity, preferably as recorded: the files in a copied folder are as new as the copy."""
    ended = [
        stage["started"] + (stage.get("seconds") or 0.0)
        for stage in run.manifest["stages"].values()
        if isinstance(stage.get("started"), (int, float))
    ]
    if ended and state != "running":
        return float(max(ended))
    return _changed(run / layout.EVENTS_JSONL) or _changed(run / layout.RUN_JSON)


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _pairs(run: Run) -> int | None:
    result: Any = run.results.pairs
    if result is not None:
        return int(result.ok)
    try:
        with open_file(run / layout.PAIRS_JSONL) as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except (OSError, UnsafeError):
        return None


def _folders_in(folder: Path) -> list[Path]:
    """Subfolders sorted by name, without links and hidden folders."""
    try:
        with os.scandir(folder) as entries:
            found = [
                entry.path
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            ]
    except OSError:
        return []
    return [Path(path) for path in sorted(found)]
