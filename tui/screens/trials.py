"""The trials of a sweep, live: the options, progress and outcome of each trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from textual.content import Content

from engine.dpo.evaluation.key_figures import with_interval
from engine.pipeline.best_trial import best_of
from engine.run.state import TrialState
from tui.formatting import bars, duration, number, one_line
from tui.screens.compare import colour
from tui.screens.verdict import READABLE, WORD_STYLES
from tui.widgets.big_word import big_word, hero
from tui.widgets.interval_bar import interval_bar
from tui.widgets.layout import EMPTY, paragraph, spread
from tui.widgets.marks import STAGE_MARKS, UNKNOWN
from tui.widgets.stage_sections import section

VERDICT_STYLES = {"better": "bold $check-ok", "worse": "bold $check-failed"}
ROOM_FOR_CURVES = 100
BAR = 36
CURVE = 48
"""Cells of the sparkline of the loss."""


def trial_lines(
    trials: Iterable[TrialState], total: int, now: float, width: int, *, plain: bool = False
) -> list[Content]:
    """The best trial's verdict once all trials have ended, then two lines per trial, in order."""
    shown = list(trials)
    ended = sum(trial.finished is not None for trial in shown)
    lines = _best_trial(shown, width, plain=plain) if ended == total and shown else []
    lines += [EMPTY, section("Trials", f"{ended} of {total} finished", width)]
    for trial in shown:
        lines += [_head(trial, now, width), _figures(trial, width)]
    waiting = total - len(shown)
    if waiting > 0:
        lines.append(Content.styled(f"· {waiting} more waiting", "$muted"))
    hint = "Half of the held-out pairs decide which trial is best. Compare trials with `stage3-tui compare`."
    return [*lines, EMPTY, *paragraph(Content.styled(hint, "$muted"), width)]


def _best_trial(trials: Sequence[TrialState], width: int, *, plain: bool) -> list[Content]:
    """The verdict of the trial to pick, in large letters."""
    best = best_of([trial.finished for trial in trials if trial.finished is not None])
    if best is None:
        return [EMPTY, Content.styled("No trial qualifies: each one failed or is worse than Stage 2.", "bold")]
    trial = next(trial for trial in trials if trial.finished is best)
    word = one_line(best.verdict, limit=40).plain
    style = WORD_STYLES.get(word, "$check-warning")
    name = Content.assemble(
        (f"Trial {trial.number} leads: ", "$foreground"), one_line(_options(trial.options), "", 120)
    )
    label = Content.styled("The best trial against Stage 2", "$muted")
    return [EMPTY, *hero(big_word(word, style, plain=plain), label, name.stylize("bold"), min(width, READABLE))]


def _head(trial: TrialState, now: float, width: int) -> Content:
    mark = STAGE_MARKS.get("running" if trial.finished is None else trial.finished.outcome, UNKNOWN)
    left = Content.assemble(
        (f"{mark.glyph} ", f"bold {mark.style}"),
        (f"{trial.number}  ", f"bold {colour(trial.number - 1)}"),
        one_line(_options(trial.options), "bold", 120),
    )
    return spread(left, _outcome(trial, now), width)


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', '-')} {_value(value)}" for name, value in options.items())


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _outcome(trial: TrialState, now: float) -> Content:
    finished = trial.finished
    if finished is None:
        elapsed = duration(None if trial.started is None else now - trial.started)
        step = f"step {trial.steps[-1].step} / {trial.steps[-1].total_steps}" if trial.steps else "starting"
        return Content.assemble((step, "bold $stage-running"), (f"  {elapsed}", "$muted"))
    word = finished.verdict or finished.outcome
    style = VERDICT_STYLES.get(word, "bold" if finished.outcome == "done" else "bold $check-failed")
    time = "earlier" if finished.reused else duration(finished.seconds)
    return Content.assemble(one_line(word, style, 20), (f"  {time}", "$muted"))


def _figures(trial: TrialState, width: int) -> Content:
    """The newest training figures, or the evaluation's results; for a failed trial, the reason."""
    finished = trial.finished
    if finished is not None and finished.outcome != "done":
        return (Content("     ") + one_line(finished.summary, "$check-failed")).truncate(width, ellipsis=True)
    figures = _of_training(trial) if finished is None else _of_evaluation(finished.final_loss, finished.figures)
    losses = [number(step.loss) for step in trial.steps]
    losses = [loss for loss in losses if loss == loss]
    curve = bars(losses, CURVE, min(losses), max(losses)) if losses and width >= ROOM_FOR_CURVES else ""
    line = Content.assemble("     ", *((f"{name} {value}  ", "$foreground") for name, value in figures))
    accuracy = with_interval("", finished.figures, "reward_accuracy", 0.5, "") if finished is not None else None
    if accuracy is not None and width >= ROOM_FOR_CURVES:
        return spread(line, Content.styled("accuracy  ", "$muted") + interval_bar(accuracy, BAR), width)
    return spread(line, Content.styled(curve, "$chart-loss"), width) if curve else line.truncate(width, ellipsis=True)


def _of_training(trial: TrialState) -> list[tuple[str, str]]:
    if not trial.steps:
        return []
    last = trial.steps[-1]
    return [
        ("loss", f"{number(last.loss):.4f}"),
        ("margin", f"{number(last.margin):+.3f}"),
        ("accuracy", f"{number(last.accuracy):.0%}"),
    ]


def _of_evaluation(loss: float | None, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    sources = {
        "loss": ("", ".4f", loss),
        "accuracy": ("reward_accuracy", ".0%", None),
        "margin": ("margin", "+.3f", None),
    }
    values = {name: (form, figures.get(key) if key else value) for name, (key, form, value) in sources.items()}
    return [
        (name, format(value, form) + _interval(figures, sources[name][0], form))
        for name, (form, value) in values.items()
        if isinstance(value, (int, float))
    ]


def _interval(figures: Mapping[str, Any], key: str, form: str) -> str:
    low, high = figures.get(f"{key}_low"), figures.get(f"{key}_high")
    if not key or not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return ""
    plain = form.removeprefix("+")
    return f" ({format(low, plain).rstrip('%')}–{format(high, plain)})"
