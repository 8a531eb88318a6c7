"""Stage 10: the archive, its contents, and the commands to fetch and load it."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from engine.core.events import Check
from engine.run.state import RunState, StageState
from tui.app_protocol import wizard_of
from tui.formatting import memory, one_line
from tui.screens.base import StageView
from tui.screens.verdict import word_lines
from tui.widgets.layout import EMPTY, Column, table
from tui.widgets.stage_sections import card, section
from tui.widgets.text_view import clickable

ON_THE_CARD = ("archive", "size", "sha256", "loads")
COMMANDS = ("fetch it", "bring it home", "check and unpack", "unpack", "load the base", "load the adapter", "load")
"""Checks whose detail is a command for another machine; "bring it home", "unpack" and "load" are names of earlier versions."""
COPY_HINT = "c copies the first command, a click another"


class PackagingView(StageView):
    STAGE = "packaging"

    def checks_shown(self, stage: StageState) -> tuple[Check, ...]:
        return tuple(check for check in stage.checks if check.name not in (*ON_THE_CARD, *COMMANDS))

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        by_name = {check.name: check.detail for check in stage.checks}
        facts = tuple((name, by_name[name]) for name in ON_THE_CARD if name in by_name)
        commands = commands_of(stage)
        contents = contents_of(stage)

        evaluation, plain = state.evaluation, wizard_of(self).draws_ascii

        gap = self.gap

        def draw(width: int) -> list[Content]:
            hero = [] if evaluation is None else [*gap, *word_lines(evaluation, width, plain=plain)]
            archive = [*gap, *card("The archive", [(name, one_line(detail, "bold")) for name, detail in facts], width)]
            next_steps = command_lines(commands, width)
            # On a short screen, the next steps go before the facts.
            parts = [hero, archive, next_steps] if gap else [hero, next_steps, archive]
            return [*(line for part in parts for line in part), *content_lines(contents, width)]

        self.text_view("extra").update((facts, commands, contents, evaluation, len(gap)), draw if facts else None)

    def copy_text(self, state: RunState) -> tuple[str, str]:
        commands = commands_of(state.stages[self.STAGE])
        return (commands[0][1], "the scp command") if commands else (str(self.source.run.archive), "the archive's path")

    def command_at(self, number: int, state: RunState) -> tuple[str, str]:
        """(the clicked command, its name)."""
        name, command = commands_of(state.stages[self.STAGE])[number]
        return command, f"the command: {name}"


def commands_of(stage: StageState) -> tuple[tuple[str, str], ...]:
    """(purpose, command); the one that fetches the archive is first."""
    by_name = {check.name: check.detail for check in stage.checks}
    return tuple((name, by_name[name]) for name in COMMANDS if name in by_name)


def contents_of(stage: StageState) -> tuple[tuple[str, int], ...]:
    """(name, bytes) of the files in the archive; empty if unknown."""
    contents = stage.facts.get("contents")
    return tuple((str(name), int(size)) for name, size in contents) if isinstance(contents, (list, tuple)) else ()


def command_lines(commands: Sequence[tuple[str, str]], width: int) -> list[Content]:
    """Each command in full, however long, so that it can be selected; a click copies it."""
    if not commands:
        return []
    lines = [
        EMPTY,
        section("On your own machine", COPY_HINT, width),
    ]
    for number, (name, command) in enumerate(commands):
        lines.append(Content.styled(name, "$muted"))
        shown = one_line(command, "bold $accent" if number == 0 else "$foreground", 4_000)
        lines += [clickable(piece, f"screen.copy_line({number})") for piece in shown.fold(width)]
    return lines


def content_lines(contents: Sequence[tuple[str, int]], width: int) -> list[Content]:
    if not contents:
        return []
    rows = [(Content.styled(memory(size), "$muted"), one_line(name, "$foreground", 200)) for name, size in contents]
    return [
        EMPTY,
        section("Contents", f"{len(contents)} files", width),
        *table(rows, (Column(10, right=True), Column()), width),
    ]
