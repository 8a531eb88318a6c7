"""One event as one line of plain text: for `--auto`, `status`, `validate` and `push`."""

from __future__ import annotations

from engine.core.events import (
    Check,
    CheckpointSaved,
    EvalDone,
    Message,
    Progress,
    StageFinished,
    StageStarted,
    TrainStep,
    TrialFinished,
    TrialStarted,
    TrialStep,
)
from engine.core.stage_table import STAGES
from engine.run.journal import Entry
from engine.security.sanitize import visible_line

GLYPH = {
    "waiting": "·",
    "running": "▶",
    "done": "✓",
    "skipped": "↷",
    "failed": "✗",
    "refused": "⊘",
    "stopped": "■",
    "ok": "✓",
    "warning": "!",
}
COLOUR = {
    "running": "cyan",
    "done": "green",
    "failed": "red",
    "refused": "red",
    "stopped": "yellow",
    "warning": "yellow",
}
NAME_WIDTH = 20
TEXT_COLUMN = 6
DETAIL_COLUMN = TEXT_COLUMN + NAME_WIDTH + 1


def event_line(entry: Entry) -> str:
    """One event as a line of text; empty for minor ones. Untrusted text is sanitized."""
    match entry.event:
        case StageStarted(stage=stage, sentence=sentence):
            return f"▶ {stage_number(stage)} {stage}: {sentence}"
        case StageFinished(stage=stage, outcome=outcome, summary=summary, reused=reused):
            word = "reused" if reused else outcome
            return f"{GLYPH[outcome if not reused else 'done']} {stage_number(stage)} {stage} {word}: {visible_line(summary)}"
        case Check(status=status, name=name, detail=detail):
            return f"    {GLYPH[status]} {visible_line(name):{NAME_WIDTH}} {visible_line(detail)}".rstrip()
        case Progress() as progress:
            return "    " + progress_text(progress)
        case TrainStep() as step:
            return "    " + step_text(step)
        case CheckpointSaved(step=step, path=path):
            return f"    checkpoint at step {step}: {visible_line(path)}"
        case EvalDone(verdict=verdict, reasons=reasons):
            return f"    verdict: {verdict.upper()}. {visible_line(' '.join(reasons))}"
        case Message(level=level, text=text) if level != "debug":
            mark = {"warning": "!", "error": "✗"}.get(level, " ")
            return f"    {mark} {visible_line(text)}"
        case TrialStarted(name=name, number=number, total=total):
            return f"  ▷ trial {number}/{total}  {name}"
        case TrialStep(trial=trial, step=step, total_steps=total, loss=loss, margin=margin):
            return f"    {trial}  step {step}/{total}  loss {loss:.4f}  margin {margin:+.4f}"
        case TrialFinished(name=name, outcome=outcome, summary=summary, reused=reused):
            return f"  {GLYPH[outcome]} trial {name} {'reused' if reused else outcome}: {visible_line(summary)}"
        case _:
            return ""


def progress_text(progress: Progress) -> str:
    parts = [f"{progress.done}/{progress.total} {progress.unit}"]
    if progress.rate:
        parts.append(f"{progress.rate:.1f}/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    if progress.note:
        parts.append(visible_line(progress.note))
    return "  ".join(parts)


def step_text(step: TrainStep) -> str:
    return f"step {step.step}/{step.total_steps}  {step_figures(step)}"


def step_figures(step: TrainStep) -> str:
    figures = {
        "loss": f"{step.loss:.4f}",
        "margin": f"{step.margin:+.4f}",
        "accuracy": f"{step.accuracy:.2f}",
        "gradient": f"{step.grad_norm:.2f}",
        "tokens/s": f"{step.tokens_per_second:.0f}",
    }
    return "  ".join(f"{name} {figure}" for name, figure in figures.items())


def duration(seconds: float) -> str:
    """`75` is `1:15`, `4000` is `1:06:40`."""
    minutes, second = divmod(int(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def stage_number(stage: str) -> str:
    return f"{STAGES.index(stage) + 1:2}"
