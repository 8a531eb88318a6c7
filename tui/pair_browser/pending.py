"""Decisions that stage quality has not read: they count only in the next run, and the screen shows a note about them."""

from __future__ import annotations

from engine.core import layout
from engine.core.stage_table import STAGES
from engine.core.wording import plural
from engine.pairs.data.edits import count_edits_after
from engine.run.state import RunState
from tui.runs.run_source import RunSource

ALREADY_READ = "Stage quality has already read the decisions: new ones count for the next run."


def pending_note(source: RunSource, state: RunState) -> str:
    """A sentence about pending decisions; empty if there are none, or if their file cannot be read. Raises nothing."""
    quality, running, current = state.stages["quality"], source.running, state.current
    if running and current is not None and STAGES.index(current.name) < STAGES.index("quality"):
        return ""  # stage quality will read them in this run
    if quality.status == "running":
        return ALREADY_READ if running else ""
    read = quality.facts.get("edits_bytes")
    if not isinstance(read, int):
        return ""
    try:
        count = count_edits_after(source.run / layout.EDITS_JSONL, read)
    except OSError:
        return ""
    if not count:
        return ALREADY_READ if running and quality.status == "done" else ""
    pending = f"{plural(count, 'decision')} {'waits' if count == 1 else 'wait'} for the next run"
    if running or source.read_only:
        return f"{pending}."
    return f"{pending}: press r on stage quality to run it again, or a to run the later stages, too."
