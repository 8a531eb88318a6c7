"""The browser's filter language, applied as you type, and the columns to sort by.

heating !landlord reason:meta verdict:rejected principle:HP003 gain>0.2 draft<200 note:
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tui.pair_browser.rows import PairRow

Predicate = Callable[[PairRow], bool]

_NUMBERS: dict[str, Callable[[PairRow], float | None]] = {
    "line": lambda row: row.line.number + 1,
    "gain": lambda row: row.gain,
    "score": lambda row: row.score,
    "draft": lambda row: row.draft,
    "revision": lambda row: row.revision,
}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda one, other: one >= other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    "<": lambda one, other: one < other,
    "=": lambda one, other: one == other,
}
_VERDICTS: dict[str, Predicate] = {
    "usable": lambda row: row.usable,
    "out": lambda row: not row.usable,
    "flagged": lambda row: row.flagged,
    "decided": lambda row: row.decided,
    "accepted": lambda row: row.state == "accepted",
    "rejected": lambda row: row.state == "rejected",
    "swapped": lambda row: row.decision is not None and row.decision.flipped,
    "edited": lambda row: row.decision is not None and row.decision.edited,
    "sample": lambda row: row.sampled,
}
_NUMBER_TERM = re.compile(rf"({'|'.join(_NUMBERS)})(>=|<=|>|<|=)(.*)", re.IGNORECASE)
_WORD_TERM = re.compile(r"(reason|verdict|principle|note):(.*)", re.IGNORECASE)

HINT = "words  !word  reason:meta  verdict:flagged  principle:HP003  gain>0.2  draft<200  note:"


@dataclass(frozen=True)
class Query:
    """A filter: every part must match."""

    text: str = ""
    words: tuple[str, ...] = ()
    """Words that must occur in the pair's texts."""
    without: tuple[str, ...] = ()
    """Words that must not."""
    parts: tuple[Predicate, ...] = ()
    problem: str = ""
    """What is wrong with the first invalid part; the rest of the filter still applies."""

    def __bool__(self) -> bool:
        return bool(self.words or self.without or self.parts)

    def matches(self, row: PairRow) -> bool:
        searched = row.searched
        return (
            all(word in searched for word in self.words)
            and not any(word in searched for word in self.without)
            and all(part(row) for part in self.parts)
        )

    def among(self, rows: Sequence[PairRow], indices: Iterable[int]) -> list[int]:
        """The `indices` whose rows match, in order. Words are tested first, in separate passes, because that is cheap."""
        found: Iterable[int] = indices
        for word in self.words:
            found = [index for index in found if word in rows[index].searched]
        for word in self.without:
            found = [index for index in found if word not in rows[index].searched]
        for part in self.parts:
            found = [index for index in found if part(rows[index])]
        return list(found)

    def narrows(self, other: Query) -> bool:
        """Whether every match of this filter is a match of the other one, as after typing another letter."""
        if self.parts or other.parts or self.without != other.without:
            return False
        return all(any(word in longer for longer in self.words) for word in other.words)


def parse(text: str) -> Query:
    """Parse a filter. Never raises, because it runs after every letter: `problem` reports an invalid part."""
    words: list[str] = []
    without: list[str] = []
    parts: list[Predicate] = []
    problems: list[str] = []
    for term in text.split():
        negated, term = (True, term[1:]) if term.startswith("!") else (False, term)
        if not term:
            continue
        part, problem = _part(term)
        if problem:
            problems.append(problem)
        elif part is None:
            (without if negated else words).append(term.casefold())
        else:
            parts.append(_not(part) if negated else part)
    return Query(text, tuple(words), tuple(without), tuple(parts), problems[0] if problems else "")


def _not(part: Predicate) -> Predicate:
    return lambda row: not part(row)


def _part(term: str) -> tuple[Predicate | None, str]:
    """(the predicate of a term, what is wrong with it); both are empty for a plain word."""
    if found := _NUMBER_TERM.fullmatch(term):
        return _number_part(*found.groups())
    if not (found := _WORD_TERM.fullmatch(term)):
        return None, ""
    name, value = found[1].lower(), found[2].casefold()
    if name == "note":
        return (
            lambda row: row.decision is not None and bool(row.decision.note) and value in row.decision.note.casefold()
        ), ""
    if name == "reason":
        return (lambda row: any(one.startswith(value) for one in row.reasons)), ""
    if name == "principle":
        return (lambda row: any(one.casefold().startswith(value) for one in row.principles)), ""
    matching = [holds for word, holds in _VERDICTS.items() if value and word.startswith(value)]
    if not matching:
        return None, f"verdict: must be one of {', '.join(_VERDICTS)}"
    return matching[0], ""


def _number_part(name: str, sign: str, value: str) -> tuple[Predicate | None, str]:
    number_of, compare = _NUMBERS[name.lower()], _COMPARE[sign]
    try:
        limit = float(value)
    except ValueError:
        return None, f"{name.lower()}{sign} needs a number, as in {name.lower()}{sign}1"
    return (lambda row: (value := number_of(row)) is not None and compare(value, limit)), ""


# -- order ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """A column to sort by, and the direction."""

    column: str = "line"
    reverse: bool = False

    def next(self, by: int) -> Order:
        """Sort by the next column, in its most useful direction: worst gain first, longest text first."""
        columns = list(COLUMNS)
        column = columns[(columns.index(self.column) + by) % len(columns)]
        return Order(column, column in ("draft", "revision"))

    def turned(self) -> Order:
        return Order(self.column, not self.reverse)

    def sort(self, rows: Sequence[PairRow], indices: list[int]) -> list[int]:
        """Sort rows. Those without a value in the column come last in either direction; equal ones stay in line order."""
        key = COLUMNS[self.column]
        valued = [index for index in indices if key(rows[index]) is not None]
        unvalued = [index for index in indices if key(rows[index]) is None]
        return sorted(valued, key=lambda index: key(rows[index]), reverse=self.reverse) + unvalued


COLUMNS: dict[str, Callable[[PairRow], Any]] = {
    "line": lambda row: row.line.number,
    "verdict": lambda row: (row.state, row.reasons),
    "gain": lambda row: row.gain,
    "score": lambda row: row.score,
    "draft": lambda row: row.draft,
    "revision": lambda row: row.revision,
    "prompt": lambda row: row.prompt.casefold() or None,
}
