"""Events of this version, of older ones and of newer ones, through the journal."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.events import KINDS, Event, RunFinished, event_from_dict
from engine.core.stage_table import STAGES
from engine.run.journal import Entry, Journal, entry_from_dict, read_entries
from engine.run.state import fold
from engine.storage.jsonl import dumps
from tests.properties.values import NUMBER, PLAIN, RECORD, TEXT


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Anything that a field of this type may hold."""
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: TEXT, int: st.integers(-(2**53), 2**53), float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(), NoneType: st.none(), Any: PLAIN,
    }  # fmt: skip
    if hint in plain:
        return plain[hint]
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return st.sampled_from(inner)
    if kind in (Union, UnionType):
        return st.one_of(*map(values, inner))
    if kind is tuple:
        return st.lists(values(inner[0]), max_size=2).map(tuple)
    if kind is Mapping:
        return st.dictionaries(TEXT, values(inner[1]), max_size=2)
    assert is_dataclass(hint), hint
    return built(hint)


def built(cls: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    strategies = {field.name: values(hints[field.name]) for field in fields(cls)}
    if "stage" in strategies:
        strategies["stage"] = st.sampled_from(STAGES)
    return st.builds(cls, **strategies)


EVENT: st.SearchStrategy[Event] = st.sampled_from(sorted(KINDS)).flatmap(lambda kind: built(KINDS[kind]))


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=4)
@given(st.data())
def test_any_event_survives_the_journal_and_can_be_folded(kind: str, data: st.DataObject):
    """Earlier lines may be missing: the one that began its stage or its trial may be damaged."""
    events = data.draw(st.lists(built(KINDS[kind]), min_size=1, max_size=2))
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "events.jsonl")
        for event in events:
            journal.append(event)
        journal.close()
        entries = list(read_entries(Path(folder) / "events.jsonl"))
    assert [entry.event for entry in entries] == events
    assert [entry.seq for entry in entries] == list(range(len(events)))
    fold(entries)


@pytest.mark.fault("A15")
@example(RunFinished(0, ""), {"\ud800": None})
@given(EVENT, RECORD)
def test_fields_of_a_newer_version_are_dropped(event: Event, more: dict[str, Any]):
    newer = {f"new {name}": value for name, value in more.items()}
    assert event_from_dict({**newer, **event.as_dict()}) == event


@pytest.mark.fault("A15")
@given(EVENT, st.data())
def test_fields_that_an_older_version_lacks_take_their_defaults(event: Event, data: st.DataObject):
    optional = {
        field.name: field
        for field in fields(event)
        if field.name != "stage" and (field.default is not MISSING or field.default_factory is not MISSING)
    }  # every version writes the stage
    missing = data.draw(st.sets(st.sampled_from(sorted(optional)))) if optional else set()
    older = {name: value for name, value in event.as_dict().items() if name not in missing}
    read = event_from_dict(older)
    assert type(read) is type(event)
    for field in fields(event):
        if field.name in missing:
            default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
            assert getattr(read, field.name) == default
        else:
            assert getattr(read, field.name) == getattr(event, field.name)


@pytest.mark.fault("A15")
@given(
    EVENT,
    st.dictionaries(
        st.sampled_from(["kind", "seq", "time", "stage", "gpus", "total", "done", "facts"]), PLAIN | NUMBER
    ),
)
def test_a_line_of_any_other_version_is_read_or_skipped(event: Event, other: dict[str, Any]):
    read = entry_from_dict({"seq": 1, "time": 2.0, **event.as_dict(), **other})
    assert read is None or isinstance(read, Entry)
    dumps({**event.as_dict(), **other})
