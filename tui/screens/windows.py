"""Small windows over the screen: a question with its answers, and the help."""

from __future__ import annotations

from typing import NamedTuple

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tui.keys import bindings, help_rows
from tui.widgets.layout import EMPTY, Column, table
from tui.widgets.paper import Paper
from tui.widgets.parts import section


class Answer(NamedTuple):
    key: str
    """One letter that chooses it at once."""
    name: str
    sentence: str


class Question(ModalScreen[str | None]):
    """Gives the key of the answer that was chosen; None when it was closed without one."""

    BINDINGS = bindings("choice")

    def __init__(self, title: str, text: str, answers: tuple[Answer, ...]) -> None:
        super().__init__()
        self._title, self._text, self._answers = title, text, answers

    def compose(self) -> ComposeResult:
        with Vertical(classes="window") as window:
            window.border_title = Content(self._title)  # type: ignore[assignment]
            yield Static(Content.styled(self._text, "$foreground"), classes="window-text")
            yield OptionList(*(Option(_prompt(answer), id=answer.key) for answer in self._answers), compact=True)

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()

    def on_key(self, event: events.Key) -> None:
        if event.key in {answer.key for answer in self._answers}:
            event.stop()  # or it would go on to the screen below, where the letter means something else
            self.dismiss(event.key)

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    def action_dismiss_window(self) -> None:
        self.dismiss(None)


class Help(ModalScreen[None]):
    """Every key and what it does."""

    BINDINGS = bindings("choice")

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="window -large") as window:
            window.border_title = Content("Keys")  # type: ignore[assignment]
            window.border_subtitle = Content("Esc closes")  # type: ignore[assignment]
            yield Paper(id="help")

    def on_mount(self) -> None:
        self.query_one("#help", Paper).put("help", help_lines)
        self.query_one(VerticalScroll).focus()

    def on_key(self, event: events.Key) -> None:
        if event.key in ("question_mark", "q"):
            event.stop()
            self.dismiss(None)

    def action_dismiss_window(self) -> None:
        self.dismiss(None)


def help_lines(width: int) -> list[Content]:
    lines: list[Content] = []
    rows = help_rows()
    for group in dict.fromkeys(group for group, _, _ in rows):
        keys = [
            (Content.styled(key, "bold $key"), Content.styled(text, "$foreground"))
            for g, key, text in rows
            if g == group
        ]
        lines += [*([EMPTY] if lines else []), section(group, "", width), *table(keys, (Column(10), Column()), width)]
    return lines


def _prompt(answer: Answer) -> Content:
    return Content.assemble(
        (f" {answer.key}  ", "bold $key"), (f"{answer.name}", "bold"), (f"   {answer.sentence}", "$muted")
    )
