"""A form: how one kind of file stores a prompt or a pair in a row, and the columns that identify it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from engine.pairs.formats.values import Row

Read = TypeVar("Read", covariant=True)


@dataclass(frozen=True)
class Form(Generic[Read]):
    name: str
    """The value of --form."""
    required_columns: tuple[tuple[str, ...], ...]
    """A row has this form if it has at least one column of each group."""
    read: Callable[[Row], Read]
    """Raises KeyError, TypeError or ValueError with the reason if the row does not fit."""
    used_by: str
    """The datasets and tools that use it, for the docs."""
    refuses: bool = False
    """Rows of this form are refused. Tried last, after all other forms under any spelling of the column names."""

    def matches(self, row: Row) -> bool:
        return all(any(column(row, name) is not None for name in names) for names in self.required_columns)

    @property
    def columns(self) -> str:
        """The required columns, in words."""
        return ", ".join(" or ".join(f"`{name}`" for name in names) for names in self.required_columns)


def column(row: Row, name: str) -> Any:
    """The value of a column or a nested one (`question.full_text`); None if it is missing or pandas' NaN."""
    if name in row:
        return None if row[name] != row[name] else row[name]
    first, dot, rest = name.partition(".")
    inner = row.get(first) if dot else None
    return column(inner, rest) if isinstance(inner, dict) else None


def first_column(row: Row, names: Iterable[str]) -> tuple[str, Any]:
    """(name, value) of the first of these columns that the row has. Raises KeyError if it has none."""
    names = tuple(names)
    for name in names:
        value = column(row, name)
        if value is not None:
            return name, value
    raise KeyError(names[0])


def matching_form(row: Row, forms: Sequence[Form[Read]]) -> Form[Read] | None:
    """The first form that matches the row; None if none does."""
    return next((form for form in forms if form.matches(row)), None)


def with_plain_names(row: Row) -> Row:
    """The row with column names in lower case with underscores; columns that already have such a name win."""
    return {name.strip().casefold().replace(" ", "_").replace("-", "_"): value for name, value in row.items()} | row
