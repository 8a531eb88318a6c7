"""Format numbers and untrusted text for people. Pure functions; all untrusted text goes through `safe_text` or `one_line`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textual.content import Content

from engine.security.sanitize import visible, visible_line

BARS = "▁▂▃▄▅▆▇█"
TEXT_SHOWN = 6_000
"""Longer untrusted text is cut on the screen, with a note: a megabyte in one widget takes seconds to lay out."""


def one_line(text: object, style: str = "", limit: int = 400) -> Content:
    """Untrusted text in one line, never parsed as markup."""
    return Content.styled(visible_line(str(text)[: 4 * limit], limit), style)


def safe_text(text: object, style: str = "", limit: int = TEXT_SHOWN) -> Content:
    """Untrusted text with its newlines, never parsed as markup."""
    full_text = str(text)
    shown = Content.styled(visible(full_text[:limit]).expandtabs(4), style)
    if len(full_text) <= limit:
        return shown
    return shown + Content.styled(f" … {len(full_text) - limit:,} more characters", "$muted")


def short_path(folder: Path) -> str:
    """A path as in a shell prompt: `~` for the home folder."""
    try:
        return str(Path("~") / folder.relative_to(Path.home()))
    except (ValueError, RuntimeError):  # outside the home folder, or no home folder
        return str(folder)


def number(value: Any) -> float:
    """A figure of an event as a float; NaN if it is not a number (a journal writes NaN and infinities as text)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def figure(value: Any, digits: int = 3) -> str:
    """A short form of a figure: 0.693, 12.4, 5.0e-05 (5e-05 with two digits or fewer), 1,250; `nan` if it is missing."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    x = number(value)
    if not math.isfinite(x):
        return str(x)
    if x != 0 and abs(x) < 10**-digits:
        return f"{x:.{int(digits > 2)}e}"
    return f"{x:,.{digits}f}" if abs(x) < 1000 else f"{x:,.0f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """4s, 3m 12s, 1h 02m, 2d 03h."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    total = max(0, int(seconds))
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m {total % 60:02d}s"
    if total < 86_400:
        return f"{total // 3600}h {total % 3600 // 60:02d}m"
    return f"{total // 86_400}d {total % 86_400 // 3600:02d}h"


def approx_duration(seconds: float | None) -> str:
    """A forecast, rounded to its precision: 40s, 12m, 3h 40m, 2d 3h."""
    if seconds is None or not math.isfinite(seconds) or seconds <= 0:
        return ""
    if seconds < 90:
        return f"{max(round(seconds), 1)}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    hours = minutes // 60
    return f"{hours}h {minutes % 60:02d}m" if hours < 24 else f"{hours // 24}d {hours % 24}h"


def rate(per_second: float | None, unit: str) -> str:
    """A rate in the unit of time that gives a readable figure: 12.5 pairs/s, 3.1 pairs/min."""
    speed = number(per_second)
    if not math.isfinite(speed) or speed <= 0:
        return ""
    if speed >= 1:
        return f"{figure(speed, 1)} {unit}/s"
    if speed * 60 >= 1:
        return f"{speed * 60:.1f} {unit}/min"
    return f"{speed * 3600:.1f} {unit}/h"


def memory(size: float | None) -> str:
    """512 MiB, 61.2 GiB."""
    if size is None:
        return "?"
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            amount = size / factor
            return f"{amount:.1f} {unit}" if amount < 100 else f"{amount:.0f} {unit}"
    return f"{size:.0f} B"


def bars(curve: Sequence[float], width: int, low: float, high: float) -> str:
    """The curve as a sparkline of at most `width` characters; each shows the mean of its steps."""
    count = min(width, len(curve))
    means = []
    for number in range(count):
        piece = curve[number * len(curve) // count : (number + 1) * len(curve) // count]
        means.append(sum(piece) / len(piece))
    span = (high - low) or 1.0
    return "".join(BARS[min(int((mean - low) / span * len(BARS)), len(BARS) - 1)] for mean in means)
