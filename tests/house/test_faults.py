"""docs/faults.md matches the catalogue and the tests."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def faults() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "faults.py"))


def test_the_page_is_up_to_date(faults: dict[str, Any]):
    assert faults["PAGE"].read_text(encoding="utf-8") == faults["page"](), "run `python docs/faults.py`"


def test_the_catalogue_has_every_row_of_both_lists(faults: dict[str, Any]):
    rows = Counter(fault.kind for fault in faults["catalogue"]())
    assert rows == {"A": 20, "B": 12, "C": 17, "D": 23, "E": 6, "F": 14, "G": 10, "H": 8, "F2-": 20}


def test_every_mark_names_a_row_of_the_catalogue(faults: dict[str, Any]):
    known = {fault.id for fault in faults["catalogue"]()}
    assert [mark for mark in faults["all_marks"]() if mark.id not in known] == []
