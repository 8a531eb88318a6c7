"""`stage3-tui browse FILE`: the wizard's application with only the pair browser."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from textual.app import SystemCommand
from textual.screen import Screen

from engine.process.environment import quiet_libraries
from tui.keys import Key
from tui.pair_browser.browser import PairBrowser
from tui.runs.pair_file import PairFile
from tui.screens.pair_file import NEEDS_RUN, PairFileScreen
from tui.wizard.app import Wizard, run_until_exit
from tui.wizard.launch import redirect_output_to_log

if TYPE_CHECKING:
    from engine.core.config import Stage3Config


def browse(file: Path, config: Stage3Config) -> int:
    """Show the pairs of a file on this terminal; returns the exit code. Raises the errors of `PairFile`."""
    quiet_libraries()
    source = PairFile(file, config)
    redirect_output_to_log(None)
    _, code = run_until_exit(PairFileBrowser(source))
    return code


class PairFileBrowser(Wizard):
    """Has the wizard's keys, themes and dialogs, but nothing to start."""

    def get_default_screen(self) -> Screen[None]:
        return PairFileScreen(cast(PairFile, self.source))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        for name in self.theme_names:
            yield SystemCommand(f"Theme: {name}", "Use this theme.", partial(self.keep_theme, name))
        yield SystemCommand("Choose a theme", "Previewed as you move.", self.action_themes)
        yield SystemCommand("Keys", "All keys and what they do.", self.action_help)

    def is_key_enabled(self, key: Key) -> bool:
        return key.action not in NEEDS_RUN and (key.place != "pairs" or super().is_key_enabled(key))

    def _may_start(self) -> bool:
        self.notify_user("There is no run here, only a file of pairs.")
        return False

    async def action_back(self) -> None:
        """Esc: leave a field, or a pair shown full screen."""
        browser = self.main.query_one(PairBrowser)
        if not browser.step_back():
            browser.pairs.focus()
