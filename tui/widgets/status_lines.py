"""The three status lines: title, machine and keys."""

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
from tui.widgets.run_progress import percent_done, seconds_remaining
from tui.widgets.text_view import clickable

ALWAYS = ("leave", "help")
ROOM_FOR_HOST, ROOM_FOR_MORE = 100, 130
"""Width from which the machine's name and longer bars are shown."""


def title_line(state: RunState, run_name: str, note: str, now: float, width: int) -> Content:
    """The program, the run, and the run's status; `note` is a warning to show before the status."""
    left = Content.assemble((" stage3-tui ", "bold $accent"), (" ", ""), one_line(run_name, "$foreground", 60))
    return spread(left, _status(state, note, now, in_full=width >= ROOM_FOR_HOST) + Content(" "), width)


def status_line(state: RunState, host: str, folder: str, width: int) -> Content:
    """The machine (GPU or why there is none, and memory), and the run folder."""
    machine = Content.assemble((f" {host}  " if width >= ROOM_FOR_HOST else " ", "$muted"))
    reading = state.telemetry[-1] if state.telemetry else None
    if reading is not None:
        forecast = state.forecast
        machine = machine + short_memory(reading, forecast, 16 if width >= ROOM_FOR_MORE else 6)
    else:
        machine = machine + Content.styled("GPU and RAM are shown during a run", "$muted")
    room = width - machine.cell_length - 4
    path = one_line(folder)
    if path.cell_length > room > 12:
        path = Content("…") + path[-(room - 1) :]
    return spread(machine, path.stylize("$muted") + Content(" "), width) if room > 12 else fit(machine, width)


def keys_line(keys: Sequence[Key], width: int) -> Content:
    """As many keys as fit. Permanent keys are on the right, so that the others do not move them under the mouse."""
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


def outcome_of(state: RunState) -> str:
    """The outcome of a successful run: whether it is finished, or how many stages are done."""
    return "finished" if state.next_stage is None else f"{STAGES.index(state.next_stage)} of {len(STAGES)} stages done"


def _status(state: RunState, note: str, now: float, *, in_full: bool, after_note: bool = False) -> Content:
    """The run's status; `in_full` with the running stage and its percentage, which a narrow screen shows in the next line."""
    if note:
        status = _status(state, "", now, in_full=in_full, after_note=True)
        return Content.assemble(one_line(note, "$check-warning"), ("  ·  ", "$muted"), status)
    current = state.current
    if current is not None:
        number = STAGES.index(current.name) + 1
        stage = f" {STAGE[current.name].title} {percent_done(current)}".rstrip() if in_full else ""
        text = f"▶ running {number}/10{stage}"
        left = approx_duration(seconds_remaining(state, now))
        elapsed = duration(current.elapsed(now)) if in_full or not after_note else ""
        times = " · ".join(filter(None, (elapsed, f"~{left} to go" if left else "")))
        silent = f"silent for {duration(now - state.stalled_since)}  ·  " if state.stalled_since is not None else ""
        return Content.assemble((silent, "$check-warning"), (text, "$stage-running"), (f"  {times}", "$muted"))
    finished = state.finished
    if finished is None:
        return Content.styled("not running", "$muted")
    if finished.exit_code == 0:
        return Content.styled(f"✓ {outcome_of(state)}", "$stage-done")
    failures = {name: stage for name, stage in state.stages.items() if stage.failure is not None}
    failed = failures.get(state.latest) or next(iter(failures.values()), None)
    if failed is None:
        return Content.styled(f"ended with exit code {finished.exit_code}", "$stage-failed")
    mark = STAGE_MARKS[failed.status]
    return Content.assemble((f"{mark.glyph} {mark.word} in {STAGE[failed.name].title}", mark.style))
