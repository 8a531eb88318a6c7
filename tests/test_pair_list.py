"""The list of pairs: a hundred thousand rows, the filter, and what a record may lack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from textual.app import App, ComposeResult

from tests.tui_fixtures import HOSTILE, pair_record, write_pairs
from tui.tail import JsonlTail, Line
from tui.widgets.pair_browser import PairBrowser
from tui.widgets.pair_list import PairList, matches, pair_row, row_text, terms_of
from tui.widgets.pair_text import pair_lines

MANY = 100_000


def row(number: int, **changes):
    return pair_row(Line(number, 0, 0, {**pair_record(number), **changes}))


class Holder(App):
    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def compose(self) -> ComposeResult:
        yield self.make()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        from themes.loader import default_variables

        return default_variables()


def texts(pairs: PairList, rows: int) -> list[str]:
    return ["".join(segment.text for segment in pairs.render_line(y)) for y in range(rows)]


async def test_a_hundred_thousand_rows_open_and_filter():
    app = Holder(PairList)
    async with app.run_test(size=(80, 24)) as pilot:
        pairs = app.query_one(PairList)
        prompts = [f"prompt number {n} {'needle' if n % 1000 == 7 else ''}" for n in range(MANY)]
        pairs.add([pair_row(Line(n, n, 1, {"prompt": prompt, "status": "ok"})) for n, prompt in enumerate(prompts)])
        await pilot.pause()
        assert (pairs.count, pairs.shown, pairs.cursor) == (MANY, MANY, 0)
        pairs.focus()
        await pilot.press("G")
        assert pairs.cursor == MANY - 1
        assert f"prompt number {MANY - 1}" in texts(pairs, 24)[23]
        pairs.filter("NEEDLE")
        assert pairs.shown == 100
        assert pairs.row is not None and pairs.row.line.number == 99_007
        pairs.filter("needle !99")
        assert pairs.shown == 99
        pairs.filter("")
        assert pairs.shown == MANY


async def test_at_the_last_row_new_rows_are_followed_and_elsewhere_not():
    app = Holder(lambda: PairList(from_the_end=True))
    async with app.run_test() as pilot:
        pairs = app.query_one(PairList)
        pairs.add([row(n) for n in range(10)])
        assert pairs.cursor == 9
        pairs.add([row(10)])
        assert pairs.cursor == 10
        pairs.focus()
        await pilot.press("k", "up")
        pairs.add([row(11)])
        assert pairs.cursor == 8


async def test_the_cursor_stays_on_its_pair_when_the_filter_changes():
    app = Holder(PairList)
    async with app.run_test():
        pairs = app.query_one(PairList)
        pairs.add([row(n, status="ok" if n % 2 else "meta") for n in range(100)])
        pairs.cursor = 41
        pairs.filter("!meta")
        assert pairs.row is not None and pairs.row.line.number == 41
        pairs.filter("")
        assert pairs.cursor == 41


async def test_an_empty_list_and_an_empty_filter_say_so():
    app = Holder(PairList)
    async with app.run_test():
        pairs = app.query_one(PairList)
        assert "No pairs yet" in texts(pairs, 1)[0]
        pairs.add([row(1)])
        pairs.filter("nothing has this word")
        assert "No pair matches" in texts(pairs, 1)[0]
        assert pairs.row is None


def test_a_filter_wants_every_word_and_none_after_an_exclamation_mark():
    one = row(1, prompt="A polite letter", status="ok")
    assert matches(one, terms_of("polite LETTER"))
    assert not matches(one, terms_of("polite rude"))
    assert not matches(one, terms_of("polite !letter"))
    assert matches(one, terms_of("  ! "))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"prompt": None, "status": 3, "principle_ids": "HP1", "messages": "hello", "finish": []},
        {"prompt": ["list"], "base_score": "nan", "revised_score": True, "messages": [1, None], "attempts": "many"},
        {"prompt": HOSTILE[4], "base_response": HOSTILE[2], "messages": [{"role": HOSTILE[0], "content": HOSTILE[1]}]},
        {"prompt": "x" * 1_000_000, "base_response": "y " * 300_000, "revised_response": "z " * 300_000},
    ],
)
def test_every_key_of_a_record_may_be_missing_or_of_another_type(record):
    text = row_text(pair_row(Line(0, 0, 0, record)), 0.25).plain
    lines = pair_lines(record, "Pair 1", "", 60)
    for shown in (text, *(line.plain for line in lines)):
        assert not any(raw in shown for raw in ("\x1b", "\x9b", "\u202e", "\x07"))
        assert all(line.cell_length <= 60 for line in lines)


async def test_the_browser_reads_what_is_added_and_shows_the_pair_in_full(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    app = Holder(lambda: PairBrowser(path))
    async with app.run_test(size=(120, 40)) as pilot:
        browser = app.query_one(PairBrowser)
        await pilot.pause()
        assert browser.pairs.count == 0
        write_pairs(path, 3)
        with path.open("a") as file:
            file.write('{"prompt": "torn')
        await _until(pilot, lambda: browser.pairs.count == 3)
        with path.open("a") as file:
            file.write(' no more"}\nnot json\n')
        browser.look()
        await _until(pilot, lambda: browser.pairs.count == 5)
        browser.pairs.focus()
        await pilot.press("j", "enter")
        assert browser.has_class("-zoomed")
        assert browser.back() and not browser.has_class("-zoomed")


def test_the_tail_and_the_rows_agree(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, 50)
    rows = [pair_row(line) for line in JsonlTail(path).read().lines]
    records = [json.loads(raw) for raw in path.read_text().splitlines()]
    assert [one.usable for one in rows] == [record["status"] == "ok" for record in records]


async def _until(pilot, holds) -> None:
    for _ in range(100):
        if holds():
            return
        await pilot.pause(0.05)
    raise AssertionError("it did not come about within five seconds")
