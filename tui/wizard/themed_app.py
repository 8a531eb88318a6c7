"""Base class of our applications: the chosen theme, and the terminal's colours and characters."""

from __future__ import annotations

from tui.terminal import textual_env  # noqa: F401

# isort: split

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from textual.app import App
from textual.filter import LineFilter

from themes.loader import DEFAULT, as_textual, default_variables, find_themes
from themes.saved import saved_theme
from tui.terminal import sequences
from tui.terminal.ascii_only import AsciiOnly
from tui.terminal.driver import WizardDriver
from tui.terminal.reverse_video import ReverseVideo

if TYPE_CHECKING:
    from textual.driver import Driver

    from engine.core.config import Stage3Config

PLAIN_THEME = "ansi"

Result = TypeVar("Result")


class ThemedApp(App[Result], inherit_bindings=False):
    def __init__(self, config: Stage3Config) -> None:
        # Textual chooses its filter here, before the theme: without native colours, NO_COLOR showed black on black.
        plain = bool(os.environ.get("NO_COLOR"))
        super().__init__(ansi_color=True if plain else None)
        self.themes_found, self.theme_problems = find_themes()
        saved = saved_theme()
        preferred = config.theme or (saved if saved in self.themes_found else DEFAULT)
        self._first_theme = PLAIN_THEME if plain else preferred
        self._reverse_video = ReverseVideo()
        self._charts = config.charts
        self._ascii = AsciiOnly(enabled=sequences.only_has_ascii() if config.ascii is None else config.ascii)

    @property
    def draws_ascii(self) -> bool:
        """Whether to draw with ASCII only."""
        return self._ascii.enabled

    @property
    def draws_blocks(self) -> bool:
        """Whether charts are drawn with half blocks: by request, or because the terminal's font has no braille."""
        chosen = self._charts
        return sequences.lacks_braille() if chosen == "auto" else chosen == "blocks"

    def get_driver_class(self) -> type[Driver]:
        return super().get_driver_class() if sequences.in_browser() else WizardDriver

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return default_variables()

    def get_line_filters(self) -> Sequence[LineFilter]:
        own = (self._reverse_video, *super().get_line_filters(), self._ascii)
        return [one for one in own if one.enabled]

    def apply_first_theme(self) -> None:
        for found in self.themes_found.values():
            self.register_theme(as_textual(found))
        self.use_theme(self._first_theme)
        if not self.is_headless and self.console.color_system == "standard" and not self.current_theme.ansi:
            self.use_theme(PLAIN_THEME)  # with sixteen colours, text and background too often get the same nearest one

    def use_theme(self, name: str) -> None:
        self.theme = name if name in self.themes_found else DEFAULT
