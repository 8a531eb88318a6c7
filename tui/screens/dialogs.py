"""Dialogs: a question with answers, and the help on keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple, TypeVar

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tui.keys import PLACES, bindings, help_rows
from tui.widgets.layout import EMPTY, Column, table
from tui.widgets.stage_sections import section
from tui.widgets.text_view import TextView

Result = TypeVar("Result")


class Dialog(ModalScreen[Result]):
    """Closed by Esc, its own keys or a click outside; the result is then None."""

    BINDINGS = bindings("window")
    CLOSED_BY: ClassVar[tuple[str, ...]] = ()

    def on_key(self, event: events.Key) -> None:
        if event.key in self.CLOSED_BY:
            event.stop()  # otherwise the letter would act on the screen below
            self.dismiss(None)

    def on_click(self, event: events.Click) -> None:
        if not self.query_one(".window").region.contains_point(event.screen_offset):
            self.dismiss(None)

    def action_dismiss_window(self) -> None:
        self.dismiss(None)


class Answer(NamedTuple):
    key: str
    """The letter that chooses this answer at once."""
    name: str
    sentence: str


class Question(Dialog[str | None]):
    """Returns the key of the chosen answer, or None if it was closed without one."""

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
            event.stop()
            self.dismiss(event.key)

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)


class Help(Dialog[None]):
    """Shows the keys of the focused part, then all others."""

    CLOSED_BY = ("question_mark", "q")

    def __init__(self, places: Iterable[str]) -> None:
        super().__init__()
        self._places = tuple(places)

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="window -large") as window:
            window.border_title = Content("Keys")  # type: ignore[assignment]
            window.border_subtitle = Content("Esc closes")  # type: ignore[assignment]
            yield TextView(id="help")

    def on_mount(self) -> None:
        places = self._places
        self.query_one("#help", TextView).update(places, lambda width: help_lines(places, width))
        self.query_one(VerticalScroll).focus()


def help_lines(places: tuple[str, ...], width: int) -> list[Content]:
    """The keys by place, those of the focused part first."""
    others = [place for place in ("stage", "app", *PLACES) if place not in places and place != "textual"]
    lines: list[Content] = []
    for place in dict.fromkeys((*places, *others, "textual")):
        rows = [
            (Content.styled(key, "bold $key"), Content.styled(text, "$foreground"))
            for _, key, text in help_rows((place,))
        ]
        here = "here" if place == places[0] and place not in ("stage", "app") else ""
        if rows:
            lines += [*([EMPTY] if lines else []), section(PLACES[place], here, width)]
            lines += table(rows, (Column(10), Column()), width)
    return lines


def _prompt(answer: Answer) -> Content:
    return Content.assemble(
        (f" {answer.key}  ", "bold $key"), (f"{answer.name}", "bold"), (f"   {answer.sentence}", "$muted")
    )
