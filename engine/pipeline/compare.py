"""Runs side by side: the options that differ, figures with their intervals, curves, and answers to the same prompts.

Reads what each run has written (`run.json`, `metrics.json`, `evaluation/report.json`) and compares what is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.run.folder import Run
from engine.storage.documents import read_json_or_none

WITHOUT_EFFECT = ("output_dir", "theme", "mouse", "ascii")
"""Options that do not affect the result."""


@dataclass(frozen=True)
class Figure:
    """One figure of one run; `low` and `high` bound it with 95 % confidence, None if no interval was computed."""

    value: float | int | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PromptAnswers:
    """The runs' answers to one held-out prompt; "" for a run without one."""

    prompt: str
    stage2: str
    """The Stage 2 answer of the first run that has one; those of other runs, if different, are in `other_stage2`."""
    stage3: tuple[str, ...]
    other_stage2: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side; all tuples are in the order of the runs."""

    folders: tuple[Path, ...]
    options: Mapping[str, tuple[Any, ...]]
    """The options that differ."""
    verdicts: tuple[str, ...]
    figures: Mapping[str, tuple[Figure, ...]]
    losses: tuple[tuple[float, ...], ...]
    """The loss of each optimizer step."""
    margins: tuple[tuple[float, ...], ...]
    answers: tuple[PromptAnswers, ...]
    """For each prompt that at least two runs answered, in the first run's order."""
    notes: tuple[str, ...] = ()
    """Why the figures may not be comparable."""


@dataclass(frozen=True)
class _Run:
    run: Run
    metrics: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> _Run:
        run = Run(folder)
        return cls(run, _read(run / layout.METRICS_JSON), _read(run / layout.EVALUATION_REPORT))


def compare(folders: Sequence[Path]) -> RunComparison:
    """Raises DamagedState for a run whose `run.json` cannot be read."""
    runs = [_Run.read(folder) for folder in folders]
    return RunComparison(
        folders=tuple(one.run.folder for one in runs),
        options=_different_options([one.run.manifest["config"] for one in runs]),
        verdicts=tuple(str(one.report.get("verdict", "")) for one in runs),
        figures=_figures(runs),
        losses=tuple(_curve(one, "losses") for one in runs),
        margins=tuple(_curve(one, "margins") for one in runs),
        answers=_answers(runs),
        notes=tuple(_notes(runs)),
    )


def _read(path: Path) -> dict[str, Any]:
    """Empty if it was not written yet, or cannot be read."""
    return read_json_or_none(path, dict[str, Any]) or {}


def _different_options(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    names = [
        name for name in dict.fromkeys(name for config in configs for name in config) if name not in WITHOUT_EFFECT
    ]
    values = {name: tuple(config.get(name) for config in configs) for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


# -- figures -----------------------------------------------------------------------------------------------------------

FIGURES = {
    "pairs made": ("data", "quality", "pairs"),
    "pairs usable": ("data", "quality", "figures", "usable"),
    "pairs trained on": ("data", "pairs_trained"),
    "optimizer steps": ("train", "steps"),
    "final loss": ("train", "final_loss"),
    "final margin": ("train", "final_margin"),
    "held-out pairs": ("evaluation", "pairs"),
    "held-out accuracy": ("evaluation", "reward_accuracy"),
    "held-out margin": ("evaluation", "margin"),
    "prompts answered": ("evaluation", "prompts"),
    "judge: better": ("evaluation", "wins"),
    "judge: equal": ("evaluation", "ties"),
    "judge: worse": ("evaluation", "losses"),
    "judge: mean change": ("evaluation", "score_change"),
    "unusable, Stage 2": ("evaluation", "stage2_unusable_share"),
    "unusable, Stage 3": ("evaluation", "stage3_unusable_share"),
    "harmless refused, Stage 2": ("evaluation", "stage2_harmless_refusal_share"),
    "harmless refused, Stage 3": ("evaluation", "stage3_harmless_refusal_share"),
    "length ratio": ("evaluation", "length_ratio"),
    "log ratio, chosen": ("evaluation", "chosen_log_ratio"),
    "log ratio, rejected": ("evaluation", "rejected_log_ratio"),
    "seconds of training": ("seconds",),
}
"""The figures' titles and their keys in `metrics.json`; `NAME_low` and `NAME_high` beside them are the interval."""
SHARES = (
    "held-out accuracy",
    "unusable, Stage 2",
    "unusable, Stage 3",
    "harmless refused, Stage 2",
    "harmless refused, Stage 3",
)


def _figures(runs: Sequence[_Run]) -> dict[str, tuple[Figure, ...]]:
    found = {name: tuple(_figure(one.metrics, where) for one in runs) for name, where in FIGURES.items()}
    return {name: figures for name, figures in found.items() if any(figure.value is not None for figure in figures)}


def _figure(metrics: Mapping[str, Any], where: tuple[str, ...]) -> Figure:
    *path, name = where
    level: Any = metrics
    for key in path:
        level = level.get(key) if isinstance(level, Mapping) else None
    if not isinstance(level, Mapping):
        return Figure(None)
    return Figure(_number(level.get(name)), _number(level.get(f"{name}_low")), _number(level.get(f"{name}_high")))


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value else None


def _curve(one: _Run, name: str) -> tuple[float, ...]:
    train = one.metrics.get("train")
    values = train.get(name) if isinstance(train, Mapping) else None
    return tuple(float(value) for value in values if _number(value) is not None) if isinstance(values, list) else ()


# -- answers -----------------------------------------------------------------------------------------------------------


def _answers(runs: Sequence[_Run]) -> tuple[PromptAnswers, ...]:
    by_run = [{str(sample["prompt"]): sample for sample in _samples(one.report)} for one in runs]
    prompts = dict.fromkeys(prompt for samples in by_run for prompt in samples)
    shared = [prompt for prompt in prompts if sum(prompt in samples for samples in by_run) > 1]
    return tuple(_answered(prompt, [samples.get(prompt, {}) for samples in by_run]) for prompt in shared)


def _samples(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    samples = report.get("samples")
    return [one for one in samples if isinstance(one, dict) and "prompt" in one] if isinstance(samples, list) else []


def _answered(prompt: str, samples: Sequence[Mapping[str, Any]]) -> PromptAnswers:
    before = list(dict.fromkeys(str(sample["stage2"]) for sample in samples if "stage2" in sample))
    after = tuple(str(sample.get("stage3", "")) for sample in samples)
    return PromptAnswers(prompt, before[0] if before else "", after, tuple(before[1:]))


# -- caveats -----------------------------------------------------------------------------------------------------------


def _notes(runs: Sequence[_Run]) -> list[str]:
    quality = [one.run.results.quality for one in runs]
    evaluated = [one.report for one in runs if one.report]
    notes = []
    if len({None if each is None else each.train_sha256 for each in quality}) > 1:
        notes.append("The runs were not trained on the same pairs.")
    held_out = {
        (None if q is None else q.eval_sha256, one.report.get("part")) for q, one in zip(quality, runs, strict=True)
    }
    if len(held_out) > 1:
        notes.append("They were not evaluated on the same held-out pairs: a difference may come from the pairs.")
    if len({report.get("judge") for report in evaluated}) > 1:
        notes.append("Their answers were compared by different judges.")
    if len({json.dumps(report.get("decoding")) for report in evaluated}) > 1:
        notes.append("Their answers had different length limits (--max-new-tokens).")
    return notes
