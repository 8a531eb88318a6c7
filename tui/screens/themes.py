"""Choose a theme, previewed as the cursor moves."""

from __future__ import annotations

from collections.abc import Sequence

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tui.app_protocol import wizard_of
from tui.screens.dialogs import Dialog


class ThemePicker(Dialog[str | None]):
    """Returns the chosen name. Closing the dialog restores the previous theme."""

    CLOSED_BY = ("t", "q")

    def __init__(self, themes: Sequence[str], current: str) -> None:
        super().__init__()
        self._themes, self._before = tuple(themes), current

    def compose(self) -> ComposeResult:
        with Vertical(classes="window -corner") as window:
            window.border_title = Content("Themes")  # type: ignore[assignment]
            window.border_subtitle = Content("Enter saves  Esc cancels")  # type: ignore[assignment]
            yield OptionList(*(Option(Content(f" {name} "), id=name) for name in self._themes), compact=True)

    def on_mount(self) -> None:
        themes = self.query_one(OptionList)
        themes.highlighted = self._themes.index(self._before) if self._before in self._themes else 0
        themes.focus()

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        if event.option.id is not None:
            wizard_of(self).use_theme(event.option.id)

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self._before = event.option.id or self._before
        self.dismiss(event.option.id)

    def on_unmount(self) -> None:
        wizard_of(self).use_theme(self._before)
