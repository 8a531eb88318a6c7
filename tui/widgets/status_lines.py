"""The three status lines: title, machine, keys."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from engine.core.stage_table import STAGE, STAGES
from engine.run.state import RunState
from tui.formatting import approx_duration, duration, one_line
from tui.keys import Key
from tui.widgets.gauge import short_memory
from tui.widgets.layout import EMPTY, fit, spread
from tui.widgets.marks import STAGE_MARKS
from tui.widgets.progress_of import seconds_to_go, share_done
from tui.widgets.text_view import clickable

ALWAYS = ("leave", "help")
ROOM_FOR_HOST, ROOM_FOR_MORE = 100, 130
"""Width from which the machine's name and longer bars are shown."""


def title_line(state: RunState, run_name: str, standing: str, now: float, width: int) -> Content:
    """Program, run, and its state."""
    left = Content.assemble((" stage3-tui ", "bold $accent"), (" ", ""), one_line(run_name, "$foreground", 60))
    return spread(left, _standing(state, standing, now, in_full=width >= ROOM_FOR_HOST) + Content(" "), width)


def status_line(state: RunState, host: str, folder: str, width: int) -> Content:
    """The machine: GPU or why there is none, memory, and the run folder."""
    machine = Content.assemble((f" {host}  " if width >= ROOM_FOR_HOST else " ", "$muted"))
    reading = state.telemetry[-1] if state.telemetry else None
    if reading is not None:
        forecast = state.forecast
        machine = machine + short_memory(reading, forecast, 16 if width >= ROOM_FOR_MORE else 6)
    else:
        machine = machine + Content.styled("GPU and RAM are read while it runs", "$muted")
    room = width - machine.cell_length - 4
    place = one_line(folder)
    if place.cell_length > room > 12:
        place = Content("…") + place[-(room - 1) :]
    return spread(machine, place.stylize("$muted") + Content(" "), width) if room > 12 else fit(machine, width)


def keys_line(keys: Sequence[Key], width: int) -> Content:
    """As many keys as fit. Permanent keys are on the right, so that changing ones do not move them under the mouse."""
    pieces = {
        key: clickable(
            Content.assemble((f" {key.shown}", "bold $key"), (f" {key.label} ", "$muted")),
            f"screen.press('{key.keys}')",
        )
        for key in keys
    }
    right = EMPTY.join([pieces[key] for key in keys if key.action in ALWAYS])
    shown = EMPTY
    for key, piece in pieces.items():
        if key.action not in ALWAYS and shown.cell_length + piece.cell_length + right.cell_length <= width - 2:
            shown = shown + piece
    return spread(shown, right, width) if right else fit(shown, width)


def how_far(state: RunState) -> str:
    """How far a successful run went, in words."""
    return "finished" if state.next_stage is None else f"{STAGES.index(state.next_stage)} of {len(STAGES)} stages done"


def _standing(state: RunState, standing: str, now: float, *, in_full: bool, beside_more: bool = False) -> Content:
    """`in_full`: also the stage that runs and its share, which on few columns stand right below."""
    if standing:
        rest = _standing(state, "", now, in_full=in_full, beside_more=True)
        return Content.assemble(one_line(standing, "$check-warning"), ("  ·  ", "$muted"), rest)
    current = state.current
    if current is not None:
        number = STAGES.index(current.name) + 1
        stage = f" {STAGE[current.name].title} {share_done(current)}".rstrip() if in_full else ""
        text = f"▶ running {number}/10{stage}"
        to_go = approx_duration(seconds_to_go(state, now))
        elapsed = duration(current.elapsed(now)) if in_full or not beside_more else ""
        times = " · ".join(filter(None, (elapsed, f"~{to_go} to go" if to_go else "")))
        silent = f"silent for {duration(now - state.stalled_since)}  ·  " if state.stalled_since is not None else ""
        return Content.assemble((silent, "$check-warning"), (text, "$stage-running"), (f"  {times}", "$muted"))
    finished = state.finished
    if finished is None:
        return Content.styled("not running", "$muted")
    if finished.exit_code == 0:
        return Content.styled(f"✓ {how_far(state)}", "$stage-done")
    failures = {name: stage for name, stage in state.stages.items() if stage.failure is not None}
    broken = failures.get(state.latest) or next(iter(failures.values()), None)
    if broken is None:
        return Content.styled(f"ended with exit code {finished.exit_code}", "$stage-failed")
    mark = STAGE_MARKS[broken.status]
    return Content.assemble((f"{mark.glyph} {mark.word} in {STAGE[broken.name].title}", mark.style))
