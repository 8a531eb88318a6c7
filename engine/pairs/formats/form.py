"""A form: how rows of some kind of file say a prompt or a pair, and by which columns they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from engine.pairs.formats.values import Row

Read = TypeVar("Read", covariant=True)


@dataclass(frozen=True)
class Form(Generic[Read]):
    name: str
    """For --form."""
    told_by: tuple[tuple[str, ...], ...]
    """A row has this form if it has one column of each of these groups."""
    read: Callable[[Row], Read]
    """Raises KeyError, TypeError or ValueError with the reason for a row that is none."""
    who: str
    """Whose files have it."""

    def tells(self, row: Row) -> bool:
        return all(any(column(row, name) is not None for name in names) for names in self.told_by)

    @property
    def columns(self) -> str:
        """The columns that tell it, in words."""
        return ", ".join(" or ".join(f"`{name}`" for name in names) for names in self.told_by)


def column(row: Row, name: str) -> Any:
    """The value of a column, or of a part of one (`question.full_text`); None if there is none."""
    if name in row:
        return row[name]
    first, dot, rest = name.partition(".")
    inner = row.get(first) if dot else None
    return column(inner, rest) if isinstance(inner, dict) else None


def first_column(row: Row, names: Iterable[str]) -> tuple[str, Any]:
    """The first of these columns that the row has, and its value. Raises KeyError."""
    names = tuple(names)
    for name in names:
        value = column(row, name)
        if value is not None:
            return name, value
    raise KeyError(names[0])


def told(row: Row, forms: Sequence[Form[Read]]) -> Form[Read] | None:
    """The first form that the row has; its columns may be written with capitals or spaces."""
    return next((form for form in forms if form.tells(row)), None)


def plain_names(row: Row) -> Row:
    """The row with its columns in small letters and underscores; what stands under such a name already stays."""
    return {name.strip().casefold().replace(" ", "_").replace("-", "_"): value for name, value in row.items()} | row
