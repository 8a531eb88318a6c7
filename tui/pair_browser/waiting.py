"""Decisions that stage quality has not read: they count for the next run, and the screen says so."""

from __future__ import annotations

from engine.core import layout
from engine.core.stage_table import STAGES
from engine.pairs.data.edits import count_edits_after
from engine.run.state import RunState
from tui.formatting import plural
from tui.runs.run_source import RunSource

READS_NOW = "Stage quality has read the decisions: new ones count for the next run."


def waiting_note(source: RunSource, state: RunState) -> str:
    """A sentence about the decisions that wait; empty if none does. Raises nothing: what cannot be read says nothing."""
    quality, running, current = state.stages["quality"], source.running, state.current
    if running and current is not None and STAGES.index(current.name) < STAGES.index("quality"):
        return ""  # stage quality will read them in this run
    if quality.status == "running":
        return READS_NOW if running else ""
    read = quality.facts.get("edits_bytes")
    if not isinstance(read, int):
        return ""
    try:
        count = count_edits_after(source.run / layout.EDITS_JSONL, read)
    except OSError:
        return ""
    if not count:
        return READS_NOW if running and quality.status == "done" else ""
    waits = f"{plural(count, 'decision')} {'waits' if count == 1 else 'wait'} for the next run"
    if running or source.read_only:
        return f"{waits}."
    return f"{waits}: r on stage quality runs it again, a also the later ones."
