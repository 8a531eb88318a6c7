"""The list of the ten stages: on the left, or on one line in a narrow terminal."""

from __future__ import annotations

from textual import events
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from engine.core.stage_table import STAGE_TABLE, STAGES
from engine.run.state import RunState, StageState
from tui.widgets.layout import EMPTY, fit, spread, stack
from tui.widgets.marks import STAGE_MARKS, UNKNOWN
from tui.widgets.stage_sections import times


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
        stages = tuple(state.stages.values())
        key = (
            selected,
            tuple((stage.status, stage.reused, _times(state, stage, now), share_done(stage)) for stage in stages),
        )
        if key != self._key:
            self._key, self._state, self._selected, self._now = key, state, selected, now
            self.refresh()

    @property
    def is_flat(self) -> bool:
        """On one line."""
        return self.content_size.height < len(STAGES)

    @property
    def row_height(self) -> int:
        return 2 if self.content_size.height >= 2 * len(STAGES) + 2 else 1

    def render(self) -> Content:
        width = self.content_size.width
        if self.is_flat:
            return fit(flat_rail(self._state, self._selected, width), width)
        return stack(tall_rail(self._state, self._selected, self._now, width, self.row_height))

    def on_click(self, event: events.Click) -> None:
        place = event.get_content_offset(self)
        if place is None:
            return
        if self.is_flat:
            number = flat_number_at(self._state, self._selected, self.content_size.width, place.x)
        else:
            number = place.y // self.row_height
        if number is not None and 0 <= number < len(STAGES):
            self.post_message(self.Chosen(STAGES[number]))


def tall_rail(state: RunState, selected: str, now: float, width: int, row_height: int) -> list[Content]:
    """A row per stage and, if there is room, a second one with its status in a word."""
    lines = []
    for number, spec in enumerate(STAGE_TABLE, start=1):
        name, title = spec.name, spec.title
        stage = state.stages[name]
        mark = STAGE_MARKS.get(stage.status, UNKNOWN)
        chosen = name == selected
        edge = Content.styled("▌" if chosen else " ", "$rail-selected-edge")
        label = Content.assemble(
            edge,
            (f"{number:>2} ", "$muted"),
            (f"{mark.glyph} ", f"bold {mark.style}"),
            (title, "bold $heading" if chosen else "$foreground" if stage.status != "waiting" else "$stage-waiting"),
        )
        elapsed = "earlier" if stage.reused and stage.elapsed(now) is None else _times(state, stage, now)
        if row_height == 1:
            word = elapsed if stage.status in ("running", "done", "waiting") and elapsed else mark.word
            pieces = [(label, f"{word} ")]
        else:
            share = share_done(stage)
            told = mark.word + (f" · {share}" if stage.status == "running" and share else "")
            pieces = [(label, f"{elapsed} "), (Content.assemble(edge, (f"     {told}", mark.style)), "")]
        style = "on $rail-selected" if chosen else ""
        for left, right in pieces:
            line = spread(left, Content.styled(right, "$muted"), width)
            lines.append(line.stylize_before(style) if style else line)
    return lines


def _times(state: RunState, stage: StageState, now: float) -> str:
    """How long a stage has taken or, for one still to be done, its forecast."""
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


def share_done(stage: StageState) -> str:
    progress = stage.progress
    if progress is None or not progress.total:
        return ""
    return f"{100 * min(progress.done / progress.total, 1.0):.0f} %"
