"""Reads rows as prompts or pairs, by the form that matches their columns or the one set with --form and --columns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, DataError
from engine.core.events import Message
from engine.models.chat import Conversation
from engine.pairs.data.record import Pair
from engine.pairs.formats.containers import NumberedRow, rows_of
from engine.pairs.formats.form import Form, column, matching_form, with_plain_names
from engine.pairs.formats.pair_forms import PAIR_FORMS, NotPaired
from engine.pairs.formats.prompt_forms import PAIR_PROMPT_FORMS, PROMPT_FORMS
from engine.pairs.formats.values import Row, refuse_pictures
from engine.security.sanitize import visible_line
from engine.storage.jsonl import BadLine

Read = TypeVar("Read")
BAD_ROWS_KEPT = 100
BAD_ROWS_SHOWN = 5
DEFAULT_MAX_BAD_SHARE = 0.5
"""Without --max-bad-rows. A file with a larger share of bad rows is probably the wrong file."""
NO_PAIR = "not a pair: "
INSIDE = ("fields", "data", "row", "record", "body")
"""Columns that hold a whole row: Argilla's records, Label Studio's tasks, the Hub's viewer, OpenAI's batches."""
NOT_A_PAIR = "not_a_pair"
"""The column with the reason why a row was not a pair when it was first read."""


@dataclass(frozen=True)
class RowReader:
    """How to read a file's rows; by default, by their columns."""

    form: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Maps the form's column names to the file's."""

    @classmethod
    def of(cls, config: Stage3Config) -> RowReader:
        """Raises ConfigError for an unknown form or malformed --columns."""
        names = [form.name for form in (*PAIR_FORMS, *PROMPT_FORMS)]
        if config.form is not None and config.form not in names:
            nearest = difflib.get_close_matches(config.form, names, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"--form {config.form}: unknown form.",
                f"The nearest is {nearest}. Pairs: {_names(PAIR_FORMS)}. Prompts: {_names(PROMPT_FORMS)}.",
                "Use one of them, or map the columns with --columns prompt=…,chosen=…,rejected=….",
            )
        return cls(config.form, parse_columns(config.columns))

    def prompt(self, row: Row) -> Conversation:
        """Raises ValueError with the reason if the row is not a prompt."""
        if self.form in {form.name for form in PAIR_FORMS} - {form.name for form in PROMPT_FORMS}:
            return self.pair(row).messages
        refuse_pictures(row)
        forms = self._named(PROMPT_FORMS)
        try:
            return _read(self._rows(row), forms, "prompt")
        except NoForm as none:
            if self.form is not None or matching_form(row, PAIR_FORMS) is None:
                raise none
            return self.pair(row).messages

    def pair(self, row: Row) -> Pair:
        """Raises ValueError with the reason if the row is not a pair; NotPaired for a KTO row."""
        if NOT_A_PAIR in row:
            raise ValueError(str(row[NOT_A_PAIR]))
        refuse_pictures(row)
        return _read(self._rows(row), self._named(PAIR_FORMS), "pair")

    def _named(self, forms: Sequence[Form[Read]]) -> Sequence[Form[Read]]:
        if self.form is None:
            return forms
        found = [form for form in forms if form.name == self.form]
        if not found:
            raise ValueError(f"the form {self.form} holds prompts, not pairs")
        return found

    def _rows(self, row: Row) -> list[Row]:
        """Candidate readings of the row's columns, most likely first."""
        if not self.columns:
            inside = [row[name] for name in INSIDE if isinstance(row.get(name), dict)]
            outside = [row, with_plain_names(row)]
            return [*inside, *outside] if "fields" in row else [*outside, *inside]
        mapped = {to: column(row, source) for to, source in self.columns.items()}
        missing = [source for to, source in self.columns.items() if mapped[to] is None]
        if missing:
            raise ValueError(f"the column {missing[0][:60]!a} of --columns is missing")
        replaced = set(self.columns.values())
        if "prompt" in mapped:  # replaces every other prompt column of the row
            replaced |= {name for form in PAIR_PROMPT_FORMS for name in form.required_columns[0]}
        return [mapped, {key: value for key, value in row.items() if key not in replaced} | mapped]


class NoForm(ValueError):
    """Raised when no form matches the row's columns."""


def _read(rows: Sequence[Row], forms: Sequence[Form[Read]], what: str) -> Read:
    for candidates in ([form for form in forms if not form.refuses], [form for form in forms if form.refuses]):
        for row in rows:
            form = matching_form(row, candidates)
            if form is not None:
                return _read_as(form, row)
    if len(forms) == 1:
        return _read_as(forms[0], rows[0])  # selected by name, so the error says what is missing
    known = ", ".join(sorted(str(name)[:40] for name in rows[0])[:12]) or "none"
    wanted = "base_response and revised_response nor chosen and rejected" if what == "pair" else "prompt nor messages"
    raise NoForm(f"it has neither {wanted}, nor the columns of any other form (its columns: {known})")


def _read_as(form: Form[Read], row: Row) -> Read:
    try:
        return form.read(row)
    except KeyError as error:
        raise ValueError(f"the key {error} is missing") from None
    except TypeError as error:
        raise ValueError(str(error)) from None


def parse_columns(text: str | None) -> dict[str, str]:
    """`prompt=question,chosen=good`, as {form's name: file's name}. Raises ConfigError."""
    found: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        to, equals, source = part.partition("=")
        if not equals or not to.strip() or not source.strip():
            raise ConfigError(
                f"--columns {text}: {part.strip()!r} is not NAME=COLUMN.",
                "NAME is the form's name for a column, and COLUMN is the file's.",
                "Example: --columns prompt=question,chosen=good,rejected=bad; write a nested column as `info.text`.",
            )
        found[to.strip()] = source.strip()
    return found


def _names(forms: Iterable[Form[Any]]) -> str:
    return ", ".join(form.name for form in forms)


DEFAULT_READER = RowReader()
"""Reads rows by their columns alone."""


# -- pairs -------------------------------------------------------------------------------------------------------------


def read_pairs(
    path: Path, reading: RowReader = DEFAULT_READER, *, last_line_may_lack_newline: bool = True
) -> Iterator[tuple[int, Pair | BadLine]]:
    """Yield (row number from 0, pair or BadLine) from one file, in constant memory. Raises OSError, ConfigError."""
    return pairs_of(rows_of(path, last_line_may_lack_newline=last_line_may_lack_newline), reading)


def pairs_of(rows: Iterable[NumberedRow], reading: RowReader = DEFAULT_READER) -> Iterator[tuple[int, Pair | BadLine]]:
    """Like `read_pairs`, from rows. Raises DataError if the first row is a KTO row."""
    for number, row in rows:
        yield number, row if isinstance(row, BadLine) else pair_of(number, row, reading, first=number == 0)


def pair_of(number: int, row: Row, reading: RowReader = DEFAULT_READER, *, first: bool = False) -> Pair | BadLine:
    """The pair of one row, or a BadLine with the reason."""
    try:
        return reading.pair(row)
    except NotPaired as error:
        if first:
            raise DataError(
                "This is a KTO file: each row has one reply and a label, but no second reply to compare it with.",
                "DPO trains on pairs: a better and a worse reply to the same prompt.",
                "Generate pairs from its prompts (--dataset FILE), or use a KTO trainer.",
            ) from None
        return BadLine(number, f"{NO_PAIR}{error}")
    except ValueError as error:
        return BadLine(number, f"{NO_PAIR}{error}")


# -- prompts -----------------------------------------------------------------------------------------------------------


def prompt_of(number: int, row: Row, reading: RowReader = DEFAULT_READER) -> Conversation | BadLine:
    """The prompt of one row, or a BadLine with the reason."""
    try:
        return reading.prompt(row)
    except ValueError as error:
        return BadLine(number, f"not a prompt: {error}")


# -- bad rows ----------------------------------------------------------------------------------------------------------


class BadRows:
    """Counts the rows that are not prompts (or pairs), and keeps the first ones with number and reason."""

    def __init__(self, what: str) -> None:
        self.what = what
        """`prompt` or `pair`."""
        self.count = 0
        self.rows = 0
        """All rows read, bad ones included."""
        self.first: list[BadLine] = []

    def add(self, bad: BadLine) -> None:
        self.count += 1
        if len(self.first) < BAD_ROWS_KEPT:
            self.first.append(bad)

    @property
    def summary(self) -> str:
        """The first few bad rows, with number and reason."""
        shown = "; ".join(f"row {bad.line + 1}: {bad.reason}" for bad in self.first[:BAD_ROWS_SHOWN])
        more = self.count - min(self.count, BAD_ROWS_SHOWN)
        return f"{shown}; and {more:,} more" if more else shown

    def messages(self, source: str) -> Iterator[Message]:
        """Yield a warning if there are any."""
        if self.count:
            text = f"{self.count:,} of {self.rows:,} rows of {source} are not {self.what}s and were left out: {self.summary}."
            yield Message("warning", visible_line(text, 2000))

    def raise_if_too_many(self, source: str, max_share: float | None) -> None:
        """Raise DataError if more than the share `max_share` of the rows are bad, or all of them."""
        limit = DEFAULT_MAX_BAD_SHARE if max_share is None else max_share
        if not self.count or (self.count < self.rows and self.count <= limit * self.rows):
            return
        raise DataError(
            f"{self.count:,} of {self.rows:,} rows of {source} are not {self.what}s: {self.summary}.",
            f"--max-bad-rows allows {limit:.0%}.",
            "Set how to read the rows with --form NAME or --columns prompt=…,chosen=…,rejected=… (`stage3-tui validate "
            "--help` lists the forms), fix the rows, or raise --max-bad-rows.",
        )
