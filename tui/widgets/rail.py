"""The list of stages with a summary of the run, on the left; in a narrow terminal only the stages, on one line."""

from __future__ import annotations

import time

from textual import events
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from engine.core.events import Progress
from engine.core.stage_table import STAGE_TABLE, STAGES
from engine.core.wording import plural
from engine.run.state import RunState, StageState
from tui.formatting import approx_duration, duration, memory, rate
from tui.widgets.gauge import bar
from tui.widgets.layout import EMPTY, fit, spread, stack
from tui.widgets.marks import STAGE_MARKS, UNKNOWN
from tui.widgets.run_progress import percent_done, seconds_elapsed, seconds_remaining
from tui.widgets.stage_sections import section, times

SHOWN_AS_WORD = ("failed", "refused", "stopped", "skipped")
"""The outcomes that are shown instead of the stage's time."""
INDENT = 5


class Rail(Widget):
    """Shows the state of each stage, and which one is selected; a click selects another."""

    class Chosen(Message):
        def __init__(self, stage: str) -> None:
            super().__init__()
            self.stage = stage

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._key: object = None
        self._state = RunState()
        self._selected = STAGES[0]
        self._now = 0.0

    def update(self, state: RunState, selected: str, now: float) -> None:
        rows = tuple(_texts(state, stage, now) for stage in state.stages.values())
        key = (selected, rows, run_rows(state, now))
        if key != self._key:
            self._key, self._state, self._selected, self._now = key, state, selected, now
            self.refresh()

    @property
    def is_flat(self) -> bool:
        """Whether the stages are on one line."""
        return self.content_size.height < len(STAGES)

    def render(self) -> Content:
        width, height = self.content_size
        if self.is_flat:
            return fit(flat_rail(self._state, self._selected, width), width)
        lines = [line for _, line in tall_rail(self._state, self._selected, self._now, width)]
        return stack([*lines, *run_summary(self._state, self._now, width, height - len(lines))])

    def on_click(self, event: events.Click) -> None:
        place = event.get_content_offset(self)
        if place is None:
            return
        if self.is_flat:
            number = flat_number_at(self._state, self._selected, self.content_size.width, place.x)
        else:
            rows = tall_rail(self._state, self._selected, self._now, self.content_size.width)
            number = STAGES.index(rows[place.y][0]) if place.y < len(rows) else None
        if number is not None and 0 <= number < len(STAGES):
            self.post_message(self.Chosen(STAGES[number]))


def tall_rail(state: RunState, selected: str, now: float, width: int) -> list[tuple[str, Content]]:
    """(stage, line): one line per stage (state, name, time), and a second one for the running stage (bar, rate, time left)."""
    lines = []
    for number, spec in enumerate(STAGE_TABLE, start=1):
        stage, chosen = state.stages[spec.name], spec.name == selected
        edge = Content.styled("▌" if chosen else " ", "$rail-selected-edge")
        mark = STAGE_MARKS.get(stage.status, UNKNOWN)
        label = Content.assemble(
            edge,
            (f"{number:>2} ", "$muted"),
            (f"{mark.glyph} ", f"bold {mark.style}"),
            (
                spec.title,
                "bold $heading" if chosen else "$foreground" if stage.status != "waiting" else "$stage-waiting",
            ),
        )
        style = mark.style if stage.status in SHOWN_AS_WORD else "$muted"
        own = [spread(label, Content.styled(f"{_right(state, stage, now)} ", style), width)]
        if stage.status == "running" and stage.progress is not None:
            own.append(edge + _bar_line(stage.progress, width - 2))
        lines += [(spec.name, line.stylize_before("on $rail-selected") if chosen else line) for line in own]
    return lines


def _right(state: RunState, stage: StageState, now: float) -> str:
    """The right end of a stage's line: its time, or a word if there is none or something went wrong."""
    mark = STAGE_MARKS.get(stage.status, UNKNOWN)
    if stage.status in SHOWN_AS_WORD:
        return mark.word
    if stage.reused and stage.elapsed(now) is None:
        return "earlier"
    return _times(state, stage, now) or ("" if stage.status == "waiting" else mark.word)


def _bar_line(progress: Progress, width: int) -> Content:
    """Bar, rate and time left, in `width` cells."""
    share = progress.done / progress.total if progress.total else 0.0
    left = approx_duration(progress.seconds_left) if progress.done < (progress.total or 0) else ""
    parts = [rate(progress.rate, ""), f"{left} left" if left else ""]
    text = " ".join(part.replace(" /", "/") for part in parts if part) or f"{100 * share:.0f} %"
    room = width - INDENT - len(text) - 2
    return (
        Content(" " * INDENT) + bar(share, max(room, 4), style="$stage-running") + Content.styled(f" {text}", "$muted")
    )


def run_rows(state: RunState, now: float) -> tuple[tuple[str, str], ...]:
    """The known figures of the run: (name, figure)."""
    elapsed = seconds_elapsed(state, now)
    left = seconds_remaining(state, now)
    tried = state.pairs_made + sum(state.pair_failures.values())
    rows = [
        ("elapsed", duration(elapsed) if state.run is not None else ""),
        ("left", f"~{approx_duration(left)}" if left else ""),
        ("done at", clock(now + left, now) if left else ""),
        _peak(state),
        ("usable", f"{state.pairs_made:,} of {plural(tried, 'pair')}" if tried else ""),
    ]
    return tuple((name, figure) for name, figure in rows if figure)


def run_summary(state: RunState, now: float, width: int, room: int) -> list[Content]:
    """The figures of the run below the stages, in at most `room` lines."""
    rows = run_rows(state, now)[: max(room - 2, 0)]
    if not rows:
        return []
    shown = [
        spread(Content.styled(f"    {name}", "$muted"), Content.styled(f"{figure} ", "$foreground"), width)
        for name, figure in rows
    ]
    return [EMPTY, Content.assemble("  ", section("The run", "", width - 3)), *shown]


def clock(when: float, now: float) -> str:
    """14:32, or Tue 14:32 if it is another day."""
    then, today = time.localtime(when), time.localtime(now)
    return time.strftime("%H:%M" if then[:3] == today[:3] else "%a %H:%M", then)


def _peak(state: RunState) -> tuple[str, str]:
    """The peak memory of the fullest GPU or, without one, of the process."""
    if state.peak_gpu_bytes and max(state.peak_gpu_bytes.values()):
        return "peak VRAM", memory(max(state.peak_gpu_bytes.values()))
    return "peak memory", memory(state.peak_rss_bytes) if state.peak_rss_bytes else ""


def _texts(state: RunState, stage: StageState, now: float) -> tuple[object, ...]:
    """Everything that the lines of a stage depend on."""
    progress = stage.progress if stage.status == "running" else None
    shown = None if progress is None else (percent_done(stage), approx_duration(progress.seconds_left), progress.rate)
    return stage.status, stage.reused, _right(state, stage, now), shown


def _times(state: RunState, stage: StageState, now: float) -> str:
    """The time that a stage has taken and, if it is not finished, the expected time, if known."""
    expected = state.expected_seconds(stage.name, now) if stage.status in ("running", "waiting") else None
    return times(stage.elapsed(now), expected)


def flat_rail(state: RunState, selected: str, width: int) -> Content:
    pieces = _flat_pieces(state, selected, width)
    return EMPTY.join(pieces)


def flat_number_at(state: RunState, selected: str, width: int, x: int) -> int | None:
    """The number of the stage at column `x` of the flat rail, from 0."""
    end = 0
    for number, piece in enumerate(_flat_pieces(state, selected, width)):
        end += piece.cell_length
        if x < end:
            return number
    return None


def _flat_pieces(state: RunState, selected: str, width: int) -> list[Content]:
    pieces = []
    for number, spec in enumerate(STAGE_TABLE, start=1):
        name, title = spec.name, spec.title
        stage = state.stages[name]
        mark = STAGE_MARKS.get(stage.status, UNKNOWN)
        chosen = name == selected
        text = Content.assemble(
            (f" {number % 10}", "bold $heading" if chosen else "$muted"), (mark.glyph, f"bold {mark.style}")
        )
        if chosen:
            share = percent_done(stage) if stage.status == "running" else mark.word
            text = text + Content.styled(f" {title} {share} ", "bold $heading")
            text = text.stylize_before("on $rail-selected")
        else:
            text = text + Content(" ")
        pieces.append(text)
    return pieces
