"""The command palette: stages, keys, options and themes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from textual.app import SystemCommand

from engine.core.options import Option, options
from engine.core.stage_table import STAGE_TABLE
from engine.security.sanitize import visible_line
from tui.keys import KEYS, Key
from tui.widgets.option_help import shown_value

if TYPE_CHECKING:
    from tui.runs.run_source import RunSource
    from tui.screens.main import MainScreen

LEFT_OUT = ("go(", "move(", "scroll(", "turn(-", "command_palette", "back", "press")
"""Actions that the palette offers in another way, or that make no sense in it."""


class PaletteApp(Protocol):
    """The part of the application that its commands use."""

    source: RunSource

    @property
    def main(self) -> MainScreen: ...

    @property
    def theme_names(self) -> list[str]: ...

    def is_key_enabled(self, key: Key) -> bool: ...

    def save_screenshot_file(self) -> None: ...

    def copy_folder(self) -> None: ...

    def keep_theme(self, name: str) -> None: ...

    def simulate_key(self, key: str) -> None: ...

    def call_later(self, callback: Any, *arguments: Any) -> bool: ...

    def notify_user(self, text: str, severity: Any = "information") -> None: ...


def commands(wizard: PaletteApp) -> Iterable[SystemCommand]:
    """All commands, except those whose key does nothing now."""
    for stage in STAGE_TABLE:
        yield SystemCommand(f"Go to {stage.title}", stage.sentence, partial(wizard.main.select_stage, stage.name))
    for key in KEYS:
        if key.place in ("app", "stage") and not key.action.startswith(LEFT_OUT) and wizard.is_key_enabled(key):
            yield SystemCommand(_title(key), f"Key {key.shown}", partial(_press, wizard, key))
    yield SystemCommand("Save a screenshot", "As an SVG in the run folder's logs.", wizard.save_screenshot_file)
    yield SystemCommand("Copy the run folder's path", "To the clipboard.", wizard.copy_folder)
    for name in wizard.theme_names:
        yield SystemCommand(f"Theme: {name}", "Use this theme.", partial(wizard.keep_theme, name))
    config = wizard.source.config
    for option in options():
        value = visible_line(shown_value(option, getattr(config, option.name)) or "none", 40)
        title = f"{option.label} ({option.flag}): {value}"
        yield SystemCommand(title, option.sentence, partial(_show_option, wizard, option))


def _title(key: Key) -> str:
    """The key's sentence, up to the first semicolon."""
    return key.sentence.partition(";")[0].removesuffix(".")


def _press(wizard: PaletteApp, key: Key) -> None:
    wizard.simulate_key(key.keys.partition(",")[0])


def _show_option(wizard: PaletteApp, option: Option) -> None:
    if option.form_stage:
        wizard.call_later(wizard.main.show_option, option)
    else:
        wizard.notify_user(f"{option.flag} can only be set on the command line. {option.sentence}")
