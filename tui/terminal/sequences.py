"""Escape sequences that Textual has no method for, and questions about the terminal."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

from engine.security.sanitize import visible_line

HANG_UP_EVENTS = select.POLLHUP | select.POLLERR | select.POLLNVAL
PUSH_TITLE, POP_TITLE = "\x1b[22;0t", "\x1b[23;0t"
"""XTWINOPS sequences that save and restore the terminal's title."""


def title(text: str) -> str:
    """The sequence that sets the window's title (OSC 0)."""
    return f"\x1b]0;{visible_line(text, 120)}\x07"


def notification(text: str) -> str:
    """A bell (which tmux shows as a flag), and a desktop notification if the terminal supports them (OSC 9)."""
    return f"\x07\x1b]9;{visible_line(text, 200)}\x07"


def only_has_ascii() -> bool:
    """Whether the terminal, according to its type or the locale, has only ASCII. An unset locale, as in most containers,
    is no evidence about the terminal.
    """
    if os.environ.get("TERM") == "linux":
        return True
    locale = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := os.environ.get(name))), "")
    return bool(locale) and "utf" not in locale.lower()


def in_browser() -> bool:
    """Whether textual-serve shows this process's screen."""
    return os.environ.get("TEXTUAL_DRIVER", "").endswith(":WebDriver")


def lacks_braille() -> bool:
    """Whether the terminal's font is known to lack braille, as on the Linux console (512 characters at most)."""
    return os.environ.get("TERM") == "linux"


def terminal_is_gone(input_file: int, parent: int) -> bool:
    """Whether the terminal hung up, or the parent process is gone.

    If SIGHUP is ignored (nohup), nothing else reveals it, and reading from a dead terminal takes half a core.
    """
    if os.getppid() != parent:
        return True
    try:
        poll = select.poll()
        poll.register(input_file, select.POLLIN)
        hung_up = any(event & HANG_UP_EVENTS for _, event in poll.poll(0))
        return hung_up or not os.isatty(input_file)
    except (OSError, ValueError):
        return True


def standard_input() -> int | None:
    """The file number of standard input, or None if it is closed."""
    try:
        return None if sys.__stdin__ is None else sys.__stdin__.fileno()
    except (OSError, ValueError):
        return None


def saved_copy(folder: Path, text: str) -> Path:
    """Also write the text to a file in the run folder: over SSH and tmux the clipboard often stays empty."""
    path = folder / "logs" / "copied.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    return path
