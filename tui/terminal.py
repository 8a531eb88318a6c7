"""The few sequences that Textual has no method for. The one place that touches its private driver."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.text import visible_line

if TYPE_CHECKING:
    from textual.app import App

GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


def set_title(app: App[Any], title: str) -> None:
    """The window's title (OSC 0)."""
    _write(app, f"\x1b]0;{visible_line(title, 120)}\x07")


def notify(app: App[Any], text: str) -> None:
    """A bell (which tmux shows as a flag), and a notification of the desktop where the terminal has them (OSC 9)."""
    _write(app, f"\x07\x1b]9;{visible_line(text, 200)}\x07")


def copy(app: App[Any], text: str) -> None:
    """To the clipboard of the terminal (OSC 52). Nobody confirms it: say where else the text stands."""
    app.copy_to_clipboard(text)


def terminal_is_gone(input_file: int, parent: int) -> bool:
    """Whether the terminal hung up, or the process that this one was started from is no more.

    Where SIGHUP is ignored (nohup), nothing else says so, and reading a dead terminal costs half a core.
    """
    if os.getppid() != parent:
        return True
    try:
        poll = select.poll()
        poll.register(input_file, select.POLLIN)
        hung_up = any(event & GONE for _, event in poll.poll(0))
        return hung_up or not os.isatty(input_file)
    except (OSError, ValueError):
        return True


def standard_input() -> int | None:
    """The file number of standard input, or None where it is closed."""
    try:
        return None if sys.__stdin__ is None else sys.__stdin__.fileno()
    except (OSError, ValueError):
        return None


def saved_copy(folder: Path, text: str) -> Path:
    """Put a text beside the run as well: over SSH and tmux a clipboard often stays empty."""
    path = folder / "logs" / "copied.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    return path


def _write(app: App[Any], sequence: str) -> None:
    driver = app._driver
    if driver is not None and not app.is_headless:
        driver.write(sequence)
