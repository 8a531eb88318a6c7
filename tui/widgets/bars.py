"""The three single lines of the screen: title, machine, keys."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from engine.names import STAGE, STAGES
from engine.state import RunState
from tui.keys import Key
from tui.widgets.gauge import short_memory
from tui.widgets.layout import EMPTY, fit, spread
from tui.widgets.marks import STAGE_MARKS
from tui.widgets.rail import share_done
from tui.widgets.words import duration, line


def title_line(state: RunState, run_name: str, standing: str, now: float, width: int) -> Content:
    """What this is, which run, and how it stands."""
    left = Content.assemble((" stage3-tui ", "bold $accent"), (" ", ""), line(run_name, "$foreground", 60))
    return spread(left, _standing(state, standing, now) + Content(" "), width)


def status_line(state: RunState, host: str, folder: str, width: int) -> Content:
    """The machine: its GPU or why there is none, its memory, and where the run is."""
    machine = Content.assemble((f" {host}  " if width >= 100 else " ", "$muted"))
    reading = state.telemetry[-1] if state.telemetry else None
    if reading is not None:
        machine = machine + short_memory(reading, 16 if width >= 120 else 10)
    else:
        machine = machine + Content.styled("no readings yet", "$muted")
    room = width - machine.cell_length - 4
    place = line(folder)
    if place.cell_length > room > 12:
        place = Content("…") + place[-(room - 1) :]
    return spread(machine, place.stylize("$muted") + Content(" "), width) if room > 12 else fit(machine, width)


def keys_line(keys: Sequence[Key], width: int) -> Content:
    """As many keys as there is room for, and always the last one: help."""
    *first, last = [Content.assemble((f" {key.shown}", "bold $key"), (f" {key.label} ", "$muted")) for key in keys]
    shown = EMPTY
    for piece in first:
        if shown.cell_length + piece.cell_length + last.cell_length <= width - 1:
            shown = shown + piece
    return spread(shown, last, width)


def _standing(state: RunState, standing: str, now: float) -> Content:
    if standing:
        rest = _standing(state, "", now)
        return Content.assemble(line(standing, "$check-warning"), ("  ·  ", "$muted"), rest)
    current = state.current
    if current is not None:
        number = STAGES.index(current.name) + 1
        share = share_done(current)
        text = f"▶ running {number}/10 {STAGE[current.name].title}{' ' + share if share else ''}"
        elapsed = duration(current.elapsed(now))
        return Content.assemble((text, "$stage-running"), (f"  {elapsed}", "$muted"))
    finished = state.finished
    if finished is None:
        return Content.styled("nothing runs", "$muted")
    if finished.exit_code == 0:
        return Content.styled("✓ finished", "$stage-done")
    broken = next((stage for stage in state.stages.values() if stage.failure is not None), None)
    if broken is None:
        return Content.styled(f"ended with exit code {finished.exit_code}", "$stage-failed")
    mark = STAGE_MARKS[broken.status]
    return Content.assemble((f"{mark.glyph} {mark.word} in {STAGE[broken.name].title}", mark.style))
