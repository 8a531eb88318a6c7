"""Tables and paragraphs as lines of text of a known width. Pure functions from Content to Content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from textual.content import Content

EMPTY = Content("")


@dataclass(frozen=True)
class Column:
    """The layout of one column of a table; the last column takes the rest and wraps."""

    most: int = 30
    """Maximum width in cells; longer text is cut with an ellipsis."""
    right: bool = False
    """Align right, for numbers."""


def join_fitting(pieces: Iterable[Content], width: int, gap: int = 2) -> Content:
    """The pieces on one line, the most important first, up to the first one that does not fit in full."""
    line = EMPTY
    for number, piece in enumerate(pieces):
        longer = line + Content(" " * gap) + piece if number else piece.truncate(width, ellipsis=True)
        if longer.cell_length > width:
            break
        line = longer
    return line


def flow(pieces: Iterable[Content], width: int) -> list[Content]:
    """The pieces one after the other, on as many lines as needed; each piece includes its own gap."""
    lines = [EMPTY]
    for piece in pieces:
        if lines[-1] and lines[-1].cell_length + piece.rstrip().cell_length > width:
            lines.append(EMPTY)
        lines[-1] = lines[-1] + piece
    return [line.rstrip().truncate(width, ellipsis=True) for line in lines]


def leading_clauses(sentence: str, room: int) -> str:
    """The sentence, or as many of its clauses as fit; empty if even the first one does not."""
    parts = sentence.rstrip(".").split(", ")
    shorter = (", ".join(parts[:count]) + "." for count in range(len(parts), 0, -1))
    return next((one for one in shorter if len(one) <= room), "")


def stack(lines: Iterable[Content]) -> Content:
    return Content("\n").join(list(lines))


def fit(content: Content, width: int, *, right: bool = False) -> Content:
    """Exactly `width` cells: padded, or cut with an ellipsis."""
    content = content.truncate(max(width, 0), ellipsis=True)
    missing = max(width, 0) - content.cell_length
    return content.pad_left(missing) if right else content.pad_right(missing)


def shortened(value: Content, room: int) -> Content:
    """A path in at most `room` cells, cut at the start, because its end is most telling; other text is left alone."""
    if value.cell_length <= room or "/" not in value.plain:
        return value
    return Content("…") + value[-(room - 1) :]


def paragraph(content: Content, width: int, indent: int = 0) -> list[Content]:
    """The text wrapped at words, with all lines indented by `indent`."""
    room = max(width - indent, 8)
    wrapped = [piece for line in content.split("\n", allow_blank=True) for piece in line.wrap(room) or [EMPTY]]
    return [piece.rstrip().pad_left(indent) for piece in wrapped] if indent else [piece.rstrip() for piece in wrapped]


def table(rows: Sequence[Sequence[Content]], columns: Sequence[Column], width: int, gap: int = 2) -> list[Content]:
    """A table. All columns but the last are as wide as their widest cell; the last one wraps."""
    widths = [
        min(column.most, max((row[index].cell_length for row in rows), default=0))
        for index, column in enumerate(columns[:-1])
    ]
    left = sum(cells + gap for cells in widths)
    last = max(width - left, 12)
    lines = []
    for row in rows:
        head = EMPTY
        for content, cells, column in zip(row, widths, columns, strict=False):
            head = head + fit(content, cells, right=column.right).pad_right(gap)
        tail = paragraph(row[-1], last) if row[-1] else [EMPTY]
        lines.append(head + tail[0])
        lines.extend(rest.pad_left(left) for rest in tail[1:])
    return lines


def two_columns(left: Sequence[Content], right: Sequence[Content], left_width: int, gap: int = 3) -> list[Content]:
    """Two columns of lines side by side."""
    height = max(len(left), len(right))
    padded_left = [*left, *[EMPTY] * (height - len(left))]
    padded_right = [*right, *[EMPTY] * (height - len(right))]
    return [fit(one, left_width).pad_right(gap) + other for one, other in zip(padded_left, padded_right, strict=True)]


SPREAD_GAP = 2
"""Minimum cells between the two ends of a spread line."""


def spread(left: Content, right: Content, width: int) -> Content:
    """One line with its two ends at the edges; the left end is cut if there is no room for both."""
    room = width - right.cell_length - SPREAD_GAP
    if room < 4:
        return fit(left, width)
    return fit(left, room).pad_right(SPREAD_GAP) + right
