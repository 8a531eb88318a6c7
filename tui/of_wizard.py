"""The application, as the screens and widgets on it ask for it. They know this much of it and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from textual.dom import DOMNode

if TYPE_CHECKING:
    from engine.config import Stage3Config
    from engine.secrets import Secret
    from engine.state import RunState
    from tui.driver import WizardDriver
    from tui.keys import Key


class OfWizard(Protocol):
    """What `tui.app.Wizard` does for them."""

    seen: RunState
    """The state that is on the screen."""

    @property
    def own_driver(self) -> WizardDriver | None:
        """The driver of a real terminal; None without one."""

    def tick_soon(self) -> None:
        """Draw what there is to be drawn before the next poll."""

    def possible(self, key: Key) -> bool:
        """Whether a key does something now."""

    def say(self, text: str, severity: Any = "information") -> None:
        """Show a notice for a few seconds."""

    def copy(self, text: str, what: str) -> None:
        """Put a text on the terminal's clipboard, and say what it is."""

    def use_theme(self, name: str) -> None:
        """Wear a theme."""

    def use_config(self, config: Stage3Config) -> None:
        """Take the options of a form."""

    def use_token(self, token: Secret) -> None:
        """Give a token to the engine, and check it."""

    def log_in(self) -> None:
        """Fetch a token with a browser."""


def wizard_of(node: DOMNode) -> OfWizard:
    """The wizard that a screen or a widget is part of."""
    return cast(OfWizard, node.app)
