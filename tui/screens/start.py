"""The first page: the run's ingredients, what they will cost, and what is missing; Enter on a line changes it there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult
from textual.content import Content

from engine.core.options import options
from engine.core.sizes import format_size
from engine.pipeline.ingredients import Costs, Ingredient, StartOverview, Status, ingredient_values
from tui.formatting import approx_duration, memory, one_line
from tui.widgets.layout import EMPTY, fit, shortened, spread
from tui.widgets.option_help import DoneStages
from tui.widgets.option_rows import OptionRows
from tui.widgets.options_editor import OptionsEditor
from tui.widgets.stage_sections import section
from tui.widgets.text_view import TextView, clickable

if TYPE_CHECKING:
    from engine.core.config import Stage3Config

MARKS: dict[Status, tuple[str, str]] = {
    "ready": ("✓", "$check-ok"),
    "fetch": ("↓", "$accent"),
    "gated": ("✗", "$check-failed"),
    "missing": ("✗", "$check-failed"),
    "decide": ("!", "$check-warning"),
    "open": ("·", "$muted"),
}
TITLE_CELLS, MIN_VALUE_CELLS = 12, 24


class StartRows(OptionRows):
    """A row per ingredient: whether it is available, its name, its value, and what is known about it."""

    ingredients: tuple[Ingredient, ...] = ()

    def __init__(self, ingredients: tuple[Ingredient, ...], *, id: str | None = None) -> None:  # noqa: A002
        super().__init__((), id=id)
        self.show(ingredients)

    def show(self, ingredients: tuple[Ingredient, ...]) -> None:
        if ingredients != self.ingredients:
            self.ingredients = ingredients
            self.rearrange()

    def _arrange(self) -> None:
        by_name = {option.name: option for option in options()}
        self.rows = tuple(by_name[one.option] for one in self.ingredients)

    def update(self, values: dict[str, Any]) -> None:
        self.values = values

    def action_rest(self) -> None:
        """Does nothing: all rows are shown."""

    def action_search(self) -> None:
        """Does nothing: there are few rows."""

    def row_content(self, index: int, width: int) -> Content:
        return ingredient_row(self.ingredients[index], max(len(one.details) for one in self.ingredients), width)


class StartEditor(OptionsEditor):
    """An editor of the ingredients instead of one stage's options."""

    DEFAULT_CSS = """
    StartEditor StartRows { height: 1fr; max-height: 8; }
    """

    def __init__(self, config: Stage3Config, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__((), fixed=("output_dir",), id=id)
        self._config = config
        self._overview: StartOverview | None = None

    def compose(self) -> ComposeResult:
        assert self._config is not None
        yield TextView(id="start-head")
        yield StartRows(ingredient_values(self._config), id="start-rows")
        yield TextView(id="start-costs")
        yield from self.panel()

    @property
    def rows(self) -> StartRows:
        return self.query_one(StartRows)

    def update(self, config: Stage3Config, read_only_reason: str = "", done: DoneStages | None = None) -> None:
        """Show the values of `config` at once; `show_findings` adds what is known about them."""
        self._config, self._read_only_reason = config, read_only_reason
        self._done = self._done if done is None else done
        known = {one.title: one for one in self._overview.ingredients} if self._overview is not None else {}
        values = ingredient_values(config)
        self.rows.show(tuple(self._unless_changed(one, known.get(one.title)) for one in values))
        self.rows.update({one.option: getattr(config, one.option) for one in values})
        self.show_option()
        self._draw_around()

    def show_findings(self, overview: StartOverview) -> None:
        """Show what was found on this machine. The first time, the cursor goes to the first missing ingredient."""
        is_first, self._overview = self._overview is None, overview
        if is_first and overview.blockers and not self.rows.cursor:
            self.rows.cursor = overview.ingredients.index(overview.blockers[0])
        if self._config is not None:
            self.update(self._config, self._read_only_reason)

    def advice(self) -> str:
        return self.rows.ingredients[self.rows.cursor].remedy

    @staticmethod
    def _unless_changed(shown: Ingredient, known: Ingredient | None) -> Ingredient:
        return known if known is not None and (known.option, known.value) == (shown.option, shown.value) else shown

    def _draw_around(self) -> None:
        overview, compact = self._overview, self.screen.has_class("-short")
        key = (overview, compact)
        self.query_one("#start-head", TextView).update(key, lambda width: head_lines(overview, width, compact=compact))
        self.query_one("#start-costs", TextView).update(key, lambda width: cost_lines(overview, width, compact=compact))


def ingredient_row(one: Ingredient, note_cells: int, width: int) -> Content:
    """One row. `note_cells` is the width of the longest note, so that the notes line up."""
    glyph, style = MARKS[one.status]
    loud = one.status in ("missing", "gated", "decide")
    room = max(width - TITLE_CELLS - note_cells - 6, MIN_VALUE_CELLS)
    cells = [
        Content.styled(f" {glyph} ", f"bold {style}") + fit(Content.styled(one.title, "$foreground"), TITLE_CELLS),
        fit(shortened(one_line(one.value, "bold $foreground", 400), room), room),
        one_line(one.details, style if loud else "$muted", 80),
    ]
    return (cells[0] + cells[1] + Content("  ") + cells[2]).truncate(width, ellipsis=True)


def head_lines(overview: StartOverview | None, width: int, *, compact: bool = False) -> list[Content]:
    """Whether something is missing, in one sentence, and the presets."""
    presets = clickable(Content.assemble(("P", "bold $key"), (" presets", "$muted")), "screen.presets")
    if overview is None:
        text = Content.styled("Checking what is available …", "$muted")
    elif overview.blockers:
        names = ", ".join(one.title.lower() for one in overview.blockers)
        text = Content.assemble(("✗ Missing: ", "bold $check-failed"), (f"{names}. ", "bold"))
        remedy = overview.blockers[0].remedy
        if text.cell_length + len(remedy) + presets.cell_length + 2 <= width:  # else only the option's panel shows it
            text = text + Content(remedy)
    else:
        text = Content.assemble(
            ("✓ Nothing is missing. ", "bold $check-ok"), ("a", "bold $key"), " runs all ten stages."
        )
    return [*([] if compact else [EMPTY]), spread(text, presets, width), *([] if compact else [EMPTY])]


def cost_lines(overview: StartOverview | None, width: int, *, compact: bool = False) -> list[Content]:
    """What the run will take: an estimate from the options, or preflight's measurements once there are any."""
    if overview is None:
        return []
    costs = overview.costs
    rows = [("Work", costs.replies, ""), ("Disk", *_disk(costs)), *_time_and_memory(costs)]
    head = [] if compact else [EMPTY, section("What it takes", "", width)]
    return [*head, *(_cost_row(label, cost, details, width) for label, cost, details in rows)]


def _cost_row(label: str, cost: str, details: str, width: int) -> Content:
    """One row; `details` are shown only if all of them fit."""
    line = Content.assemble("   ", fit(Content.styled(label, "$muted"), TITLE_CELLS), (cost, "$foreground"))
    if details and line.cell_length + 2 + len(details) <= width:
        line = line + Content.styled(f"  {details}", "$muted")
    return line.truncate(width, ellipsis=True)


def _disk(costs: Costs) -> tuple[str, str]:
    parts = sorted(((size, name) for name, size in costs.disk.items() if size >= 1 << 20), reverse=True)
    return (
        f"about {format_size(sum(costs.disk.values()))} of {format_size(costs.free_bytes)} free",
        ", ".join(f"{name} {format_size(size)}" for size, name in parts),
    )


def _time_and_memory(costs: Costs) -> list[tuple[str, str, str]]:
    forecast = costs.forecast
    if forecast is None:
        weights = f"over {format_size(costs.weights_bytes)}" if costs.weights_bytes else "not known yet"
        return [
            ("Memory", weights, "for the weights; preflight measures it"),
            ("Time", "known after preflight (stage 6)", ""),
        ]
    total = approx_duration(forecast.seconds)
    parts = f"pairs {approx_duration(forecast.seconds_pairs)}, training {approx_duration(forecast.seconds_training)}"
    parts += f", evaluation {approx_duration(forecast.seconds_evaluation)}"
    peak = max(forecast.peak_bytes, forecast.peak_bytes_pairs)
    return [("Memory", f"{memory(peak)} at the peak", "measured by preflight"), ("Time", f"about {total}", parts)]
