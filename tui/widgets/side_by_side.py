"""Two texts side by side, or one above the other, with their differences marked."""

from __future__ import annotations

from textual.content import Content

from engine.security.sanitize import visible
from tui.formatting import TEXT_SHOWN
from tui.widgets.diff import word_diff
from tui.widgets.layout import EMPTY, paragraph, two_columns
from tui.widgets.stage_sections import section

SIDE_BY_SIDE = 84
"""Minimum cells to show the texts side by side; with fewer, they are stacked."""
GAP = 3


Name = str | Content


def side_by_side(
    before: str,
    after: str,
    width: int,
    names: tuple[Name, Name] = ("Draft", "Revision"),
    *,
    least_common: float = 0.0,
) -> list[Content]:
    """`before` and `after`, untrusted texts, each under its name. Differing words are marked if at least `least_common` of
    the words are the same.
    """
    old, new, common = word_diff(visible(before[:TEXT_SHOWN]).expandtabs(4), visible(after[:TEXT_SHOWN]).expandtabs(4))
    if common is not None and common < least_common:
        old, new = Content(old.plain), Content(new.plain)
    similarity = (
        "identical" if before == after else "" if common is None else f"{100 * common:.0f} % of words in common"
    )
    old = old + _omitted(before) or Content.styled("(empty)", "$muted")
    new = new + _omitted(after) or Content.styled("(empty)", "$muted")
    if width < SIDE_BY_SIDE:
        return [
            section(names[0], "", width),
            *paragraph(old, width),
            EMPTY,
            section(names[1], similarity, width),
            *paragraph(new, width),
        ]
    half = (width - GAP) // 2
    left = [section(names[0], "", half), *paragraph(old, half)]
    right = [section(names[1], similarity, width - half - GAP), *paragraph(new, width - half - GAP)]
    return two_columns(left, right, half, GAP)


def _omitted(text: str) -> Content:
    """A note on how much of a text is not shown; empty if all of it is."""
    more = len(text) - TEXT_SHOWN
    return Content.styled(f" … {more:,} more characters", "$muted") if more > 0 else Content("")
