"""The command palette: what can be done now, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from engine.names import STAGE_TABLE

if TYPE_CHECKING:
    from tui.app import Wizard


class Command(NamedTuple):
    name: str
    help: str
    do: Callable[[], object]


class WizardCommands(Provider):
    @property
    def _wizard(self) -> Wizard:
        return cast("Wizard", self.app)

    async def discover(self) -> Hits:
        for command in commands_of(self._wizard):
            yield DiscoveryHit(command.name, command.do, help=command.help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for command in commands_of(self._wizard):
            score = matcher.match(command.name)
            if score > 0:
                yield Hit(score, matcher.highlight(command.name), command.do, text=command.name, help=command.help)


def commands_of(wizard: Wizard) -> Iterator[Command]:
    for stage in STAGE_TABLE:
        yield Command(f"Go to {stage.title}", stage.sentence, partial(wizard.main.look_at, stage.name))
    browse = partial(wizard.call_later, wizard.main.action_browse)
    yield Command("Browse the pairs", "All of them, with what speaks against each.", browse)
    for name in wizard.theme_names:
        yield Command(f"Theme: {name}", "How it looks.", partial(wizard.keep_theme, name))
    yield Command("Save a screenshot", "An SVG in the run folder's logs.", wizard.save_screenshot_file)
    yield Command("Choose a theme", "Each is worn while the cursor is on it.", wizard.action_themes)
    yield Command("Copy the run folder's path", "Through the terminal, and into logs/copied.txt.", wizard.copy_folder)
    yield Command("Open the log", "Messages, and the end of run.log.", wizard.action_log)
    yield Command("Keys", "Every key and what it does.", wizard.action_help)
