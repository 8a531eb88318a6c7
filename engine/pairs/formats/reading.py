"""Rows to prompts and pairs: the form that the columns tell, or the one that --form names, after --columns gave them its names."""

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
from engine.pairs.formats.form import Form, column, plain_names, told
from engine.pairs.formats.pair_forms import PAIR_FORMS, NotPaired
from engine.pairs.formats.prompt_forms import ASKED_FORMS, PROMPT_FORMS
from engine.pairs.formats.values import Row
from engine.security.sanitize import visible_line
from engine.storage.jsonl import BadLine

Read = TypeVar("Read")
BAD_ROWS_KEPT = 100
BAD_ROWS_SHOWN = 5
MOST_BAD_IN_A_RUN = 0.5
"""Without --max-bad-rows. A file of which more is no prompt, or no pair, is another file than somebody meant."""
NO_PAIR = "no pair: "
NOT_A_PAIR = "not_a_pair"
"""The column that says why a row was no pair when it was read the first time."""


@dataclass(frozen=True)
class Reading:
    """What a person said of a file's rows: nothing, mostly."""

    form: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """By the name that a form knows: the name that the file has."""

    @classmethod
    def of(cls, config: Stage3Config) -> Reading:
        """Raises ConfigError for a form that there is not, and for what names no columns."""
        names = [form.name for form in (*PAIR_FORMS, *PROMPT_FORMS)]
        if config.form is not None and config.form not in names:
            nearest = difflib.get_close_matches(config.form, names, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"--form {config.form}: there is no such form.",
                f"The nearest is {nearest}. Pairs: {_names(PAIR_FORMS)}. Prompts: {_names(PROMPT_FORMS)}.",
                "Give one of them, or name the columns with --columns prompt=…,chosen=…,rejected=….",
            )
        return cls(config.form, parse_columns(config.columns))

    def prompt(self, row: Row) -> Conversation:
        """Raises ValueError with the reason why the row is no prompt."""
        if self.form in {form.name for form in PAIR_FORMS} - {form.name for form in PROMPT_FORMS}:
            return self.pair(row).messages
        forms = self._named(PROMPT_FORMS)
        try:
            return _read(self._rows(row), forms, "prompt")
        except NoForm as none:
            if self.form is not None or told(row, PAIR_FORMS) is None:
                raise none
            return self.pair(row).messages

    def pair(self, row: Row) -> Pair:
        """Raises ValueError with the reason why the row is no pair, NotPaired if that is since it is one of KTO."""
        if NOT_A_PAIR in row:
            raise ValueError(str(row[NOT_A_PAIR]))
        return _read(self._rows(row), self._named(PAIR_FORMS), "pair")

    def _named(self, forms: Sequence[Form[Read]]) -> Sequence[Form[Read]]:
        if self.form is None:
            return forms
        found = [form for form in forms if form.name == self.form]
        if not found:
            raise ValueError(f"the form {self.form} says no pair, only a prompt")
        return found

    def _rows(self, row: Row) -> list[Row]:
        """The row as its columns may be meant, the likeliest first."""
        if not self.columns:
            return [row, plain_names(row)]
        named = {to: column(row, source) for to, source in self.columns.items()}
        lacking = [source for to, source in self.columns.items() if named[to] is None]
        if lacking:
            raise ValueError(f"there is no column {lacking[0][:60]!a}, which --columns names")
        taken = set(self.columns.values())
        if "prompt" in named:  # it stands for whatever else the row says of a prompt
            taken |= {name for form in ASKED_FORMS for name in form.told_by[0]}
        return [named, {key: value for key, value in row.items() if key not in taken} | named]


class NoForm(ValueError):
    """No form is told by the columns of the row."""


def _read(rows: Sequence[Row], forms: Sequence[Form[Read]], what: str) -> Read:
    for row in rows:
        form = told(row, forms)
        if form is not None:
            return _read_as(form, row)
    if len(forms) == 1:
        return _read_as(forms[0], rows[0])  # it was asked for by name: what lacks is named
    known = ", ".join(sorted(str(name)[:40] for name in rows[-1])[:12]) or "none"
    wanted = "base_response and revised_response nor chosen and rejected" if what == "pair" else "prompt nor messages"
    raise NoForm(f"it has neither {wanted}, nor the columns of another form (its columns: {known})")


def _read_as(form: Form[Read], row: Row) -> Read:
    try:
        return form.read(row)
    except KeyError as error:
        raise ValueError(f"the key {error} is missing") from None
    except TypeError as error:
        raise ValueError(str(error)) from None


def parse_columns(text: str | None) -> dict[str, str]:
    """`prompt=question,chosen=good`: by the name of a form the name in the file. Raises ConfigError."""
    found: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        to, equals, source = part.partition("=")
        if not equals or not to.strip() or not source.strip():
            raise ConfigError(
                f"--columns {text}: {part.strip()!r} names no column.",
                "Each part is NAME=COLUMN: what a form calls it, and what the file calls it.",
                "For example --columns prompt=question,chosen=good,rejected=bad; `info.text` is a column inside of one.",
            )
        found[to.strip()] = source.strip()
    return found


def _names(forms: Iterable[Form[Any]]) -> str:
    return ", ".join(form.name for form in forms)


AS_TOLD = Reading()
"""By the columns alone."""


# -- pairs -------------------------------------------------------------------------------------------------------------


def read_pairs(
    path: Path, reading: Reading = AS_TOLD, *, last_line_may_lack_newline: bool = True
) -> Iterator[tuple[int, Pair | BadLine]]:
    """Yield (row from 0, pair or why the row is none) of one file in constant memory. Raises OSError, ConfigError."""
    return pairs_of(rows_of(path, last_line_may_lack_newline=last_line_may_lack_newline), reading)


def pairs_of(rows: Iterable[NumberedRow], reading: Reading = AS_TOLD) -> Iterator[tuple[int, Pair | BadLine]]:
    """`read_pairs` of rows. Raises DataError if the first row is one of KTO."""
    for number, row in rows:
        yield number, row if isinstance(row, BadLine) else pair_of(number, row, reading, first=number == 0)


def pair_of(number: int, row: Row, reading: Reading = AS_TOLD, *, first: bool = False) -> Pair | BadLine:
    """The pair of one row, or why it is none."""
    try:
        return reading.pair(row)
    except NotPaired as error:
        if first:
            raise DataError(
                "This is a file for KTO: its rows have one reply and a label, and no second reply to compare it with.",
                "DPO trains on pairs: a better and a worse reply to the same prompt.",
                "Make pairs of its prompts (--dataset FILE), or train on it with a trainer for KTO.",
            ) from None
        return BadLine(number, f"{NO_PAIR}{error}")
    except ValueError as error:
        return BadLine(number, f"{NO_PAIR}{error}")


# -- prompts -----------------------------------------------------------------------------------------------------------


def prompt_of(number: int, row: Row, reading: Reading = AS_TOLD) -> Conversation | BadLine:
    """The conversation before the answer of one row, or why there is none."""
    try:
        return reading.prompt(row)
    except ValueError as error:
        return BadLine(number, f"no prompt: {error}")


# -- rows that are none ------------------------------------------------------------------------------------------------


class BadRows:
    """Rows that are no prompt, or no pair: counted, the first of them kept by number and reason."""

    def __init__(self, what: str) -> None:
        self.what = what
        """`prompt` or `pair`."""
        self.count = 0
        self.rows = 0
        """All that were read, these too."""
        self.first: list[BadLine] = []

    def add(self, bad: BadLine) -> None:
        self.count += 1
        if len(self.first) < BAD_ROWS_KEPT:
            self.first.append(bad)

    @property
    def named(self) -> str:
        """The first of them by number and reason."""
        shown = "; ".join(f"row {bad.line + 1}: {bad.reason}" for bad in self.first[:BAD_ROWS_SHOWN])
        more = self.count - min(self.count, BAD_ROWS_SHOWN)
        return f"{shown}; and {more:,} more" if more else shown

    def messages(self, source: str) -> Iterator[Message]:
        """What is to be told of them; nothing if there are none."""
        if self.count:
            told = (
                f"{self.count:,} of {self.rows:,} rows of {source} are no {self.what} and were left out: {self.named}."
            )
            yield Message("warning", visible_line(told, 2000))

    def refuse(self, source: str, most: float | None) -> None:
        """Raises DataError if more than the share `most` of the rows are none, or all are."""
        limit = MOST_BAD_IN_A_RUN if most is None else most
        if not self.count or (self.count < self.rows and self.count <= limit * self.rows):
            return
        raise DataError(
            f"{self.count:,} of {self.rows:,} rows of {source} are no {self.what}: {self.named}.",
            f"--max-bad-rows allows {limit:.0%} of them.",
            "Say how its rows are to be read with --form NAME or --columns prompt=…,chosen=…,rejected=… (`stage3-tui validate "
            "--help` names the forms), mend the rows, or allow more.",
        )
