"""A field for a token that reveals nothing about it: no character, no length, no copy, no message with the value."""

from __future__ import annotations

from textual import events
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from engine.security.secrets import Secret

FILLED = "••••••••"
"""Shown for a token of any length."""


class TokenField(Widget, can_focus=True):
    """Takes a typed or pasted token. The characters exist only in this object, and are handed over once, as a Secret."""

    DEFAULT_CSS = "TokenField { height: 1; width: 1fr; text-wrap: nowrap; }"

    class Submitted(Message):
        """Enter was pressed on a token."""

        def __init__(self, token: Secret) -> None:
            super().__init__()
            self.token = token

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.__characters: list[str] = []

    def __repr__(self) -> str:
        return "TokenField(***)"

    @property
    def filled(self) -> bool:
        return bool(self.__characters)

    def clear(self) -> None:
        self.__characters.clear()
        self.refresh()

    def render(self) -> Content:
        if self.filled:
            return Content.assemble((FILLED, "$heading"), ("  Enter uses it, Ctrl+U clears it", "$muted"))
        return Content.styled(
            "Type or paste the token here" if self.has_focus else "Tab, then type or paste the token", "$muted"
        )

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Characters belong to the token, not to shortcuts."""
        return character is not None and character.isprintable()

    def on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            self._submit()
        elif event.key in ("ctrl+c", "ctrl+x"):
            self.app.bell()  # a token is never copied
        elif event.key in ("backspace", "ctrl+h"):
            del self.__characters[-1:]
        elif event.key in ("ctrl+u", "ctrl+w", "delete"):
            self.__characters.clear()
        elif event.is_printable and event.character is not None:
            if not event.character.isspace():
                self.__characters.append(event.character)
        else:
            return
        event.stop()
        event.prevent_default()
        self.refresh()

    def on_paste(self, event: events.Paste) -> None:
        """Strip what often comes with a copied token: newlines, blanks and quotes."""
        event.stop()
        event.prevent_default()
        self.__characters.extend("".join(event.text.split()).strip("\"'`"))
        self.refresh()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def _submit(self) -> None:
        if self.__characters:
            token = Secret("".join(self.__characters))
            self.clear()
            self.screen.set_focus(None)  # at once, so that the next key acts on the screen again
            self.post_message(self.Submitted(token))
