"""The part of the application that screens, widgets and helpers may use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from textual.dom import DOMNode
from textual.timer import Timer

if TYPE_CHECKING:
    from engine.core.config import Stage3Config
    from engine.run.state import RunState
    from engine.security.secrets import Secret
    from tui.keys import Key
    from tui.runs.run_source import RunSource, WizardEnd
    from tui.terminal.driver import WizardDriver


class WizardApp(Protocol):
    """The interface of `tui.wizard.app.Wizard`."""

    source: RunSource
    shown_state: RunState
    """The state shown on the screen."""

    @property
    def stage_on_screen(self) -> str:
        """The stage whose view is shown."""

    @property
    def terminal_driver(self) -> WizardDriver | None:
        """The driver of a real terminal; None without one."""

    @property
    def return_code(self) -> int | None:
        """The exit code so far, as Textual stores it."""

    @property
    def draws_ascii(self) -> bool:
        """Whether to draw with ASCII only."""

    @property
    def draws_blocks(self) -> bool:
        """Whether charts are drawn with half blocks, for a font without braille."""

    def exit(self, result: WizardEnd | None = None, return_code: int = 0) -> None:
        """End the screen."""

    def push_screen(self, screen: Any, callback: Any = None) -> Any:
        """Show a screen on top of this one."""

    def set_interval(self, interval: float, callback: Any) -> Timer:
        """Call back every `interval` seconds."""

    def write_sequence(self, sequence: str) -> None:
        """Send an escape sequence to the terminal; nothing if there is none."""

    def tick_soon(self) -> None:
        """Draw pending changes before the next poll."""

    def is_key_enabled(self, key: Key) -> bool:
        """Whether a key works now."""

    def notify_user(self, text: str, severity: Any = "information") -> None:
        """Show a notice for a few seconds."""

    def copy(self, text: str, what: str) -> None:
        """Copy a text to the terminal's clipboard, with a notice that names it."""

    def use_theme(self, name: str) -> None:
        """Apply a theme."""

    def use_config(self, config: Stage3Config) -> None:
        """Use the options of a form."""

    def choose_preset(self) -> None:
        """Let the user choose the settings to start from."""

    def use_token(self, token: Secret) -> None:
        """Pass a token to the engine, and check it."""

    def log_in(self) -> None:
        """Get a token by browser login."""


def wizard_of(node: DOMNode) -> WizardApp:
    """The wizard that a screen or widget belongs to."""
    return cast(WizardApp, node.app)
