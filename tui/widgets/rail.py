"""The ten stages and the run as a whole: on the left; in a narrow terminal the stages alone, on one line."""

from __future__ import annotations

import time

from textual import events
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from engine.core.events import Progress
from engine.core.stage_table import STAGE_TABLE, STAGES
from engine.run.state import RunState, StageState
from tui.formatting import approx_duration, duration, memory, plural, rate
from tui.widgets.gauge import bar
from tui.widgets.layout import EMPTY, fit, spread, stack
from tui.widgets.marks import STAGE_MARKS, UNKNOWN
from tui.widgets.progress_of import seconds_so_far, seconds_to_go, share_done
from tui.widgets.stage_sections import section, times

LOUD = ("failed", "refused", "stopped", "skipped")
"""What a stage came to, where that says more than its time."""
INDENT = 5


class Rail(Widget):
    """Shows the state of each stage and the selected one; a click selects another."""

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

    def put(self, state: RunState, selected: str, now: float) -> None:
        rows = tuple(_texts(state, stage, now) for stage in state.stages.values())
        key = (selected, rows, run_rows(state, now))
        if key != self._key:
            self._key, self._state, self._selected, self._now = key, state, selected, now
            self.refresh()

    @property
    def is_flat(self) -> bool:
        """On one line."""
        return self.content_size.height < len(STAGES)

    def render(self) -> Content:
        width, height = self.content_size
        if self.is_flat:
            return fit(flat_rail(self._state, self._selected, width), width)
        lines = [line for _, line in tall_rail(self._state, self._selected, self._now, width)]
        return stack([*lines, *whole_run(self._state, self._now, width, height - len(lines))])

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
    """(stage, line): one line a stage (state, name, time), and a second one for the stage that runs (bar, rate, time left)."""
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
        style = mark.style if stage.status in LOUD else "$muted"
        own = [spread(label, Content.styled(f"{_right(state, stage, now)} ", style), width)]
        if stage.status == "running" and stage.progress is not None:
            own.append(edge + _bar_line(stage.progress, width - 2))
        lines += [(spec.name, line.stylize_before("on $rail-selected") if chosen else line) for line in own]
    return lines


def _right(state: RunState, stage: StageState, now: float) -> str:
    """Its time; a word, where there is none or something went wrong."""
    mark = STAGE_MARKS.get(stage.status, UNKNOWN)
    if stage.status in LOUD:
        return mark.word
    if stage.reused and stage.elapsed(now) is None:
        return "earlier"
    return _times(state, stage, now) or ("" if stage.status == "waiting" else mark.word)


def _bar_line(progress: Progress, width: int) -> Content:
    """Bar, rate and time left, in `width` cells."""
    share = progress.done / progress.total if progress.total else 0.0
    left = approx_duration(progress.seconds_left) if progress.done < (progress.total or 0) else ""
    told = [rate(progress.rate, ""), f"{left} left" if left else ""]
    words = " ".join(word.replace(" /", "/") for word in told if word) or f"{100 * share:.0f} %"
    room = width - INDENT - len(words) - 2
    return (
        Content(" " * INDENT) + bar(share, max(room, 4), style="$stage-running") + Content.styled(f" {words}", "$muted")
    )


def run_rows(state: RunState, now: float) -> tuple[tuple[str, str], ...]:
    """The run as a whole: (name, figure); what is not known is left out."""
    elapsed = seconds_so_far(state, now)
    left = seconds_to_go(state, now)
    tried = state.pairs_made + sum(state.pair_failures.values())
    rows = [
        ("elapsed", duration(elapsed) if state.run is not None else ""),
        ("left", f"~{approx_duration(left)}" if left else ""),
        ("done at", clock(now + left, now) if left else ""),
        _peak(state),
        ("usable", f"{state.pairs_made:,} of {plural(tried, 'pair')}" if tried else ""),
    ]
    return tuple((name, told) for name, told in rows if told)


def whole_run(state: RunState, now: float, width: int, room: int) -> list[Content]:
    """Under the stages, in `room` lines or fewer."""
    rows = run_rows(state, now)[: max(room - 2, 0)]
    if not rows:
        return []
    shown = [
        spread(Content.styled(f"    {name}", "$muted"), Content.styled(f"{told} ", "$foreground"), width)
        for name, told in rows
    ]
    return [EMPTY, Content.assemble("  ", section("The run", "", width - 3)), *shown]


def clock(when: float, now: float) -> str:
    """14:32; with the day, if that is another one."""
    then, today = time.localtime(when), time.localtime(now)
    return time.strftime("%H:%M" if then[:3] == today[:3] else "%a %H:%M", then)


def _peak(state: RunState) -> tuple[str, str]:
    """Of the fullest GPU; without one, of the process."""
    if state.peak_gpu_bytes and max(state.peak_gpu_bytes.values()):
        return "peak VRAM", memory(max(state.peak_gpu_bytes.values()))
    return "peak memory", memory(state.peak_rss_bytes) if state.peak_rss_bytes else ""


def _texts(state: RunState, stage: StageState, now: float) -> tuple[object, ...]:
    """All that the lines of a stage depend on."""
    progress = stage.progress if stage.status == "running" else None
    shown = None if progress is None else (share_done(stage), approx_duration(progress.seconds_left), progress.rate)
    return stage.status, stage.reused, _right(state, stage, now), shown


def _times(state: RunState, stage: StageState, now: float) -> str:
    """How long a stage has taken; of what is still to be done, how long it will take, where that is known."""
    expected = state.expected_seconds(stage.name, now) if stage.status in ("running", "waiting") else None
    return times(stage.elapsed(now), expected)


def flat_rail(state: RunState, selected: str, width: int) -> Content:
    pieces = _flat_pieces(state, selected, width)
    return EMPTY.join(pieces)


def flat_number_at(state: RunState, selected: str, width: int, x: int) -> int | None:
    """Which stage is at column `x` of the flat rail."""
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
            share = share_done(stage) if stage.status == "running" else mark.word
            text = text + Content.styled(f" {title} {share} ", "bold $heading")
            text = text.stylize_before("on $rail-selected")
        else:
            text = text + Content(" ")
        pieces.append(text)
    return pieces
