"""An editor for one text."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import TextArea

from engine.security.sanitize import visible
from tui.keys import bindings
from tui.widgets.text_view import TextView, clickable


class TextField(Vertical):
    """Edits a revision, draft or note. Control characters are shown escaped, to protect the terminal; they stay unchanged
    unless the text is edited.
    """

    BINDINGS = bindings("text")
    PLACE = "text"

    DEFAULT_CSS = """
    TextField { height: 1fr; min-height: 8; }
    TextField TextArea { height: 1fr; border: none; padding: 0 1; background: $panel; color: $foreground; }
    """

    class Saved(Message):
        def __init__(self, index: int, field: str, text: str) -> None:
            super().__init__()
            self.index, self.field, self.text = index, field, text

    class Discarded(Message):
        """The user discarded the changes."""

    class SwitchRequested(Message):
        """The user wants to switch between draft and revision."""

        def __init__(self, index: int, field: str) -> None:
            super().__init__()
            self.index, self.field = index, field

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._index, self._field, self._shown, self._has_other = 0, "", "", False

    def compose(self) -> ComposeResult:
        yield TextView(id="text-title")
        area = TextArea(soft_wrap=True, show_line_numbers=False, id="text-area")
        area.cursor_blink = False
        yield area

    def open(self, index: int, field: str, title: str, text: str, *, has_other: bool) -> None:
        """Show a text to edit; `index` and `field` come back with the saved text."""
        self._index, self._field, self._has_other = index, field, has_other
        self._shown = visible(text)
        escaped = self._shown != text
        self.display = True
        self.query_one("#text-title", TextView).update(
            (title, escaped, has_other), lambda width: [title_line(title, escaped, has_other, width)]
        )
        area = self.query_one(TextArea)
        area.load_text(self._shown)
        area.move_cursor(area.document.end)
        area.focus()

    def action_save(self) -> None:
        text = self.query_one(TextArea).text
        self.post_message(self.Discarded() if text == self._shown else self.Saved(self._index, self._field, text))

    def action_discard(self) -> None:
        self.post_message(self.Discarded())

    def action_switch(self) -> None:
        if self._has_other:
            self.post_message(self.SwitchRequested(self._index, self._field))


def title_line(title: str, escaped: bool, has_other: bool, width: int) -> Content:
    other = (("Ctrl+T", "bold $key"), (" draft/revision   ", "$muted")) if has_other else ()
    return Content.assemble(
        (f"{title}   ", "bold $heading"),
        clickable(Content.assemble(("Ctrl+S", "bold $key"), (" saves   ", "$muted")), "screen.press('ctrl+s')"),
        *other,
        clickable(Content.assemble(("Esc", "bold $key"), (" discards   ", "$muted")), "screen.press('escape')"),
        ("control characters are shown escaped" if escaped else "", "$check-warning"),
    ).truncate(width, ellipsis=True)
