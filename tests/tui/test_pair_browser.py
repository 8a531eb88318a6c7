"""The pair browser: the list, one pair in full, decisions and edits; and a hundred thousand pairs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import TextArea

from engine.core import layout
from engine.core.events import StageFinished, StageStarted
from engine.pairs.data.edits import edit_lines, read_edits
from engine.run.folder import Run
from tests.support.good_pairs import META, row, write_rows
from tests.support.idle_wizard import Sessions, screen_text, until
from tests.support.made_up_run import HOSTILE, pair_record, write_pairs
from tui.pair_browser.browser import PairBrowser
from tui.pair_browser.pair_list import PairList, header_text, row_text
from tui.pair_browser.pair_text import pair_lines
from tui.pair_browser.query import Order
from tui.pair_browser.rows import pair_row
from tui.runs.runner import Runner
from tui.runs.tail import JsonlTail, Line
from tui.runs.watcher import Watcher
from tui.wizard.app import Wizard

MANY = 100_000


def listed(number: int, **changes):
    return pair_row(Line(number, 0, 0, {**pair_record(number), **changes}))


async def browse(pilot: Pilot, app: Wizard) -> PairBrowser:
    """The browser with all pairs read and assessed."""
    await pilot.press("b")
    await until(pilot, lambda: app.main.view is not None and app.main.view.query("#browser"), "the browser")
    browser = app.main.view.query_one(PairBrowser)
    await until(pilot, lambda: browser.query(PairList), "its parts")
    await until(pilot, lambda: browser.pairs.count and not browser.store.unchecked, "the verdicts")
    await until(pilot, lambda: browser.pairs.has_focus, "the focus")
    return browser


@pytest.fixture
def wizard(tmp_path: Path, config: Callable, sessions: Sessions) -> Wizard:
    """Twelve good pairs and four bad ones, with no run in progress."""
    folder = tmp_path / "run"
    (folder / "pairs").mkdir(parents=True)
    good = [row(number) for number in range(12)]
    bad = [row(number, revised_response=META) for number in range(12, 16)]
    write_rows(folder / layout.PAIRS_JSONL, [*good[:5], bad[0], *good[5:], *bad[1:]])
    return Wizard(Runner(config(output_dir=folder, min_pairs=11), Run(folder), session_factory=sessions))


def edits_of(app: Wizard):
    return read_edits(app.source.run / layout.EDITS_JSONL)


# -- the sample --------------------------------------------------------------------------------------------------------


async def test_the_sample_is_thirty_usable_pairs_and_stays_the_same_during_decisions(
    tmp_path: Path, config: Callable, sessions: Sessions
):
    folder = tmp_path / "run"
    (folder / "pairs").mkdir(parents=True)
    rows = [row(number, **({"revised_response": META} if number % 5 == 0 else {})) for number in range(50)]
    write_rows(folder / layout.PAIRS_JSONL, rows)
    app = Wizard(Runner(config(output_dir=folder, min_pairs=5), Run(folder), session_factory=sessions))
    async with app.run_test(size=(120, 40)) as pilot:
        browser = await browse(pilot, app)
        await pilot.press("S")
        await until(pilot, lambda: browser.pairs.row_count == 30, "the sample")
        before = {one.id for one in browser.store.rows if one.sampled}
        assert all(int(pair_id.removeprefix("id")) % 5 for pair_id in before)
        await pilot.press("x")
        await until(pilot, lambda: edits_of(app).decisions, "the decision")
        await until(pilot, lambda: not browser.store.unchecked, "the verdict")
        browser.store.mark_sample()  # as the next S does
        assert {one.id for one in browser.store.rows if one.sampled} == before


async def test_in_the_sample_one_key_decides_and_shows_the_next(tmp_path: Path, config: Callable, sessions: Sessions):
    folder = tmp_path / "run"
    (folder / "pairs").mkdir(parents=True)
    write_rows(folder / layout.PAIRS_JSONL, [row(number) for number in range(40)])
    app = Wizard(Runner(config(output_dir=folder, min_pairs=5), Run(folder), session_factory=sessions))
    async with app.run_test(size=(120, 40)) as pilot:
        browser = await browse(pilot, app)
        await pilot.press("S")
        await until(pilot, lambda: browser.pairs.row_count == 30, "the sample")
        for number in range(30):
            await until(pilot, lambda left=30 - number: f"30 of 40 pairs, {left} left to decide" in screen_text(app))
            await pilot.press("x" if number % 3 == 0 else "y")
        decisions = edits_of(app).decisions
        assert [one.accepted for one in decisions.values()].count(True) == 20 and len(decisions) == 30
        end = "The whole sample is decided: press r to continue."
        await until(pilot, lambda: any(end in notice.message for notice in app._notifications), "the notice")


# -- the list ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("B11")
def test_a_hundred_thousand_rows_are_filtered_and_sorted():
    rows = [
        pair_row(Line(n, n, 1, {"prompt": f"prompt number {n} {'needle' if n % 1000 == 7 else ''}", "status": "ok"}))
        for n in range(MANY)
    ]
    pairs = PairList(rows)
    pairs.take_new()
    assert (pairs.count, pairs.row_count, pairs.cursor) == (MANY, MANY, 0)
    pairs.cursor = MANY - 1
    pairs.filter("NEEDLE")
    assert pairs.row_count == 100
    assert pairs.row is not None and pairs.row.line.number == 99_007
    pairs.filter("needle !99")
    assert pairs.row_count == 99
    pairs.sort(Order("prompt", reverse=True))
    assert pairs.row_content(0, 80).plain.split()[0] == "98008"
    pairs.filter("")
    assert pairs.row_count == MANY


def test_the_cursor_follows_new_rows_only_from_the_last_row():
    rows = [listed(n) for n in range(10)]
    pairs = PairList(rows)
    pairs.take_new()
    pairs.cursor = 9
    rows.append(listed(10))
    pairs.take_new()
    assert pairs.cursor == 10
    pairs.cursor = 8
    rows.append(listed(11))
    pairs.take_new()
    assert (pairs.cursor, pairs.row_count) == (8, 12)


def test_the_cursor_stays_on_its_pair_when_filter_and_order_change():
    pairs = PairList([listed(n, status="ok" if n % 2 else "meta") for n in range(100)])
    pairs.take_new()
    pairs.cursor = 41
    pairs.filter("!reason:meta")
    assert pairs.row is not None and pairs.row.line.number == 41
    pairs.sort(Order("gain"))
    assert pairs.row.line.number == 41
    pairs.sort(Order())
    pairs.filter("")
    assert pairs.cursor == 41


def test_an_empty_list_shows_whether_the_filter_is_the_reason():
    rows = []
    pairs = PairList(rows)
    assert "No pairs yet" in pairs.empty_text()
    rows.append(listed(1))
    pairs.take_new()
    pairs.filter("nothing has this word")
    assert "No pair matches" in pairs.empty_text() and pairs.row is None


@pytest.mark.parametrize("width", [46, 64, 90, 140])
def test_columns_are_below_their_titles(width: int):
    title, cells = header_text(width, Order()).plain, row_text(listed(1), width).plain
    assert title.index("#↑") == 4
    assert len(cells[: title.index("prompt")].rstrip()) < title.index("prompt") <= width
    assert cells[title.index("prompt") :].startswith("What is the fast")
    assert ("draft" in title) == (width >= 60) and ("score" in title) == (width >= 90)


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
    one = pair_row(Line(0, 0, 0, record))
    shown = [row_text(one, 90), *pair_lines(record, one, 60)]
    for line in shown:
        assert not any(raw in line.plain for raw in ("\x1b", "\x9b", "\u202e", "\x07"))
    assert all(line.cell_length <= 60 for line in shown[1:])


def test_the_tail_and_the_rows_agree(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, 50)
    rows = [pair_row(line) for line in JsonlTail(path).read().lines]
    assert [one.usable for one in rows] == [pair_record(number)["status"] == "ok" for number in range(50)]


# -- browsing ----------------------------------------------------------------------------------------------------------


async def test_b_browses_the_pairs_from_any_stage_and_shows_the_gate(wizard: Wizard):
    async with wizard.run_test(size=(160, 40)) as pilot:
        browser = await browse(pilot, wizard)
        await until(pilot, lambda: "Gate ✓ open" in screen_text(wizard))
        for text in ("to train 12 ≥ 11", "16 pairs", "✗ meta", "How do I mend thing number 0?"):
            await until(pilot, lambda text=text: text in screen_text(wizard), text)
        await pilot.press("j")
        await until(pilot, lambda: "Glue thing 1" in screen_text(wizard))
        await pilot.press("enter")
        assert browser.has_class("-zoomed")
        await pilot.press("escape")
        assert not browser.has_class("-zoomed")


async def test_a_pair_shown_full_screen_is_decided_about_with_the_same_keys(wizard: Wizard):
    async with wizard.run_test(size=(160, 40)) as pilot:
        browser = await browse(pilot, wizard)
        await pilot.press("enter", "x", "n", "x")
        assert browser.has_class("-zoomed") and [row.state for row in browser.store.rows].count("rejected") == 2
        await pilot.press("m")
        await until(pilot, lambda: browser.editor.display)
        await pilot.press("escape", "y")
        assert browser.store.rows[browser.pairs.cursor].state == "accepted"
        await pilot.press("escape", "j")
        assert browser.pairs.has_focus and not browser.has_class("-zoomed")


async def test_the_filter_applies_while_typing_and_reports_invalid_parts(wizard: Wizard):
    async with wizard.run_test(size=(160, 40)) as pilot:
        browser = await browse(pilot, wizard)
        await pilot.press("slash", *"reason:me")
        await until(pilot, lambda: browser.pairs.row_count == 4)
        await until(pilot, lambda: "4 of 16 pairs" in screen_text(wizard))
        await pilot.press(*" gain>", "enter")
        await until(pilot, lambda: "gain> needs a number" in screen_text(wizard))
        await pilot.press("j")
        assert browser.pairs.cursor == 1 and wizard.main.selected == "quality"
        await pilot.press("escape")
        await until(pilot, lambda: browser.pairs.row_count == 16)


async def test_n_goes_to_the_next_flagged_pair_and_wraps_around(wizard: Wizard):
    async with wizard.run_test(size=(120, 40)) as pilot:
        browser = await browse(pilot, wizard)
        seen = []
        for _ in range(5):
            await pilot.press("n")
            seen.append(browser.pairs.cursor)
        assert seen == [5, 13, 14, 15, 5]
        await pilot.press("y", "N")
        assert browser.pairs.cursor == 15
        await pilot.press("n")
        assert browser.pairs.cursor == 13, "a decided pair is no longer flagged"


async def test_keys_sort_the_list_and_an_arrow_shows_the_order(wizard: Wizard):
    async with wizard.run_test(size=(160, 40)) as pilot:
        browser = await browse(pilot, wizard)
        await pilot.press("greater_than_sign")
        await until(pilot, lambda: "verdict↑" in screen_text(wizard))
        assert browser.pairs.row_content(0, 60).plain.split()[2] == "meta"
        await pilot.press("less_than_sign")
        await until(pilot, lambda: "verdict↓" in screen_text(wizard))
        assert browser.pairs.row_content(0, 60).plain.split()[2] == "usable"


# -- deciding ----------------------------------------------------------------------------------------------------------


async def test_decisions_are_appended_change_the_gate_and_can_be_undone(wizard: Wizard):
    async with wizard.run_test(size=(160, 40)) as pilot:
        await browse(pilot, wizard)
        await pilot.press("x")
        assert edits_of(wizard)["id0"].accepted is False
        await until(pilot, lambda: "to train 11 (-1)" in screen_text(wizard))
        await pilot.press("j", "x")
        await until(pilot, lambda: "Gate ⊘ shut" in screen_text(wizard) and "✗ to train 10 (-2)" in screen_text(wizard))
        await pilot.press("u")
        await until(pilot, lambda: "Gate ✓ open" in screen_text(wizard))
        assert set(edits_of(wizard)) == {"id0"}
        await pilot.press("k", "y", "w")
        assert edits_of(wizard)["id0"].accepted is True and edits_of(wizard)["id0"].flipped
        await until(pilot, lambda: "Draft (chosen)" in screen_text(wizard))
        await pilot.press("u", "u", "u")
        assert "id0" not in edits_of(wizard)


@pytest.mark.fault("C13")
async def test_pairs_can_be_decided_about_while_others_are_being_made(wizard: Wizard, sessions: Sessions):
    async with wizard.run_test(size=(160, 40)) as pilot:
        browser = await browse(pilot, wizard)
        wizard.source.start(until="pairs")
        await until(pilot, lambda: wizard.source.snapshot().current is not None)
        await pilot.press("x")
        assert edits_of(wizard)["id0"].accepted is False
        with (wizard.source.run / layout.PAIRS_JSONL).open("a") as file:
            file.write(
                '{"id": "new", "prompt": "Is it new?", "base_response": "No.", "revised_response": "It is new."}\n'
            )
        await until(pilot, lambda: browser.pairs.count == 17 and not browser.store.unchecked)
        assert browser.pairs.cursor == 0


async def test_decisions_during_training_are_saved_for_the_next_run_and_a_note_says_so(wizard: Wizard):
    async with wizard.run_test(size=(160, 40)) as pilot:
        await browse(pilot, wizard)
        done = StageFinished("quality", "done", "fine", facts={"edits_bytes": 0})
        wizard.source._state = wizard.source._state.apply(done, time.time())
        wizard.source.start(until="training")
        await until(pilot, lambda: wizard.source.snapshot().current is not None)
        await until(pilot, lambda: "new ones count for the next run" in screen_text(wizard))
        await pilot.press("x")
        assert edits_of(wizard)["id0"].accepted is False
        await until(pilot, lambda: "1 decision waits for the next run." in screen_text(wizard))


async def test_a_watcher_cannot_decide(tmp_path: Path, config):
    folder = tmp_path / "run"
    (folder / "pairs").mkdir(parents=True)
    write_rows(folder / layout.PAIRS_JSONL, [row(1)])
    app = Wizard(Watcher(Run(folder), config(output_dir=folder)))
    async with app.run_test(size=(160, 40)) as pilot:
        await browse(pilot, app)
        assert "accept" not in screen_text(app).splitlines()[-1]
        await pilot.press("x", "w", "e", "m")
        assert not (folder / layout.EDITS_JSONL).exists()


async def test_a_watcher_can_decide_if_allowed(tmp_path: Path, config):
    folder = tmp_path / "run"
    (folder / "pairs").mkdir(parents=True)
    write_rows(folder / layout.PAIRS_JSONL, [row(1)])
    app = Wizard(Watcher(Run(folder), config(output_dir=folder), allows_decisions=True))
    async with app.run_test(size=(160, 40)) as pilot:
        await browse(pilot, app)
        assert "accept" in screen_text(app).splitlines()[-1] and "watching, decisions allowed" in screen_text(app)
        await pilot.press("x")
        assert read_edits(folder / layout.EDITS_JSONL)["id1"].accepted is False


async def test_decisions_from_two_terminals_are_all_saved(wizard: Wizard, tmp_path: Path):
    """One person decides in the wizard, the other in a separate process, about other pairs and about the same one."""
    path = wizard.source.run / layout.EDITS_JSONL
    script = "from pathlib import Path; from engine.pairs.data.edits import write_edit\n"
    script += f"for n in range(40): write_edit(Path({str(path)!r}), f'id{{n % 12}}', 'note', f'other {{n}}')"
    async with wizard.run_test(size=(160, 40)) as pilot:
        browser = await browse(pilot, wizard)
        other = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
        mine = 0
        while other.poll() is None or mine < 5:
            await pilot.press("x", "u")
            mine += 2
            await pilot.pause(0.02)
        assert other.returncode == 0
        lines = [edit["action"] for edit in edit_lines(path)]
        assert lines.count("note") == 40 and len(lines) == 40 + mine and not read_edits(path).damaged
        await until(
            pilot, lambda: browser.store.rows[3].decision is not None, "the other one's decision on this screen"
        )
        assert browser.store.rows[3].decision.note == read_edits(path)["id3"].note


async def test_a_finished_stage_shows_pending_decisions(wizard: Wizard):
    async with wizard.run_test(size=(160, 40)) as pilot:
        await browse(pilot, wizard)
        state = wizard.source._state.apply(StageStarted("quality"), time.time() - 60)
        done = StageFinished("quality", "done", "fine", facts={"edits_bytes": 0})
        wizard.source._state = state.apply(done, time.time() - 30)
        await pilot.press("x", "V")
        await until(pilot, lambda: "1 decision waits for the next run: press r on stage quality" in screen_text(wizard))


# -- editing -----------------------------------------------------------------------------------------------------------


async def test_a_revision_is_edited_in_place_and_the_gate_sees_the_new_text(wizard: Wizard):
    async with wizard.run_test(size=(160, 40)) as pilot:
        browser = await browse(pilot, wizard)
        await pilot.press("n", "e")
        area = browser.editor.query_one(TextArea)
        await until(pilot, lambda: area.has_focus)
        assert area.text == META
        area.load_text("")
        await pilot.press(*"Ask someone who knows.", "ctrl+s")
        await until(pilot, lambda: not browser.editor.display)
        assert edits_of(wizard)["id12"].revised_response == "Ask someone who knows."
        await until(pilot, lambda: "to train 13 (+1)" in screen_text(wizard))
        await until(pilot, lambda: "Revision (edited)" in screen_text(wizard))
        assert browser.pairs.has_focus and browser.pairs.row.state == "edited"


async def test_the_draft_can_be_edited_and_esc_discards(wizard: Wizard):
    async with wizard.run_test(size=(160, 40)) as pilot:
        browser = await browse(pilot, wizard)
        await pilot.press("e", "ctrl+t")
        area = browser.editor.query_one(TextArea)
        await until(pilot, lambda: area.text.startswith("Kick thing 0"))
        await pilot.press(*" Twice.", "escape")
        await until(pilot, lambda: not browser.editor.display)
        await pilot.press("e", "ctrl+s")
        await until(pilot, lambda: not browser.editor.display)
        assert not edits_of(wizard), "nothing was changed, so nothing is saved"
        await pilot.press("e", "ctrl+t")
        await until(pilot, lambda: area.text.startswith("Kick thing 0"))
        await pilot.press(*" Twice.", "ctrl+s")
        await until(pilot, lambda: "id0" in edits_of(wizard))
        assert edits_of(wizard)["id0"].base_response.endswith(" Twice.")


async def test_a_note_is_written_and_shown(wizard: Wizard):
    async with wizard.run_test(size=(160, 40)) as pilot:
        browser = await browse(pilot, wizard)
        await pilot.press("m", *"Ask Maria", "ctrl+s")
        await until(pilot, lambda: "Note  Ask Maria" in screen_text(wizard))
        assert browser.pairs.row.decision.note == "Ask Maria" and not browser.pairs.row.decided


async def test_hostile_text_is_escaped_in_the_editor_and_unchanged_if_not_edited(wizard: Wizard):
    write_rows(
        wizard.source.run / layout.PAIRS_JSONL, [row(1, revised_response="Say \x1b]52;c;AAAA\x07 aloud, please.")]
    )
    async with wizard.run_test(size=(160, 40)) as pilot:
        browser = await browse(pilot, wizard)
        await pilot.press("e")
        await until(pilot, lambda: "control characters are shown escaped" in screen_text(wizard), "the editor")
        await until(pilot, lambda: "Say ␛]52;c;AAAA␇ aloud" in screen_text(wizard))
        assert "\x1b]52" not in screen_text(wizard)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: not browser.editor.display)
        assert not edits_of(wizard)


async def test_the_revision_can_be_edited_in_the_users_editor(wizard: Wizard, tmp_path: Path, monkeypatch):
    """Headless tests have no terminal to suspend; test_terminal covers that on a real one."""
    seen = tmp_path / "seen"
    editor = tmp_path / "my editor"
    editor.write_text(
        f'#!/bin/sh\nstat -c %a "$2" > {seen}\nenv >> {seen}\ncat "$2" >> {seen}\necho "From outside." > "$2"\n'
    )
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", f"'{editor}' --wait")
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    async with wizard.run_test(size=(160, 40)) as pilot:
        await browse(pilot, wizard)
        await pilot.press("E")
        await until(pilot, lambda: "id0" in edits_of(wizard))
        assert edits_of(wizard)["id0"].revised_response == "From outside."
    text = seen.read_text()
    assert text.startswith("600\n") and "Glue thing 0 gently." in text and "hf_canary" not in text
    assert not list((wizard.source.run / "pairs").glob("edit-*"))


@pytest.mark.parametrize("script", ["exit 1", ': > "$1"', "true"])
async def test_an_editor_that_fails_or_changes_nothing_saves_nothing(
    wizard: Wizard, tmp_path: Path, monkeypatch, script
):
    editor = tmp_path / "ed"
    editor.write_text(f"#!/bin/sh\n{script}\n")
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("VISUAL", str(editor))
    async with wizard.run_test(size=(160, 40)) as pilot:
        await browse(pilot, wizard)
        await pilot.press("E")
        await until(pilot, lambda: any("No changes" in notice.message for notice in wizard._notifications))
        assert not edits_of(wizard)


async def test_without_an_editor_a_notice_says_what_to_do(wizard: Wizard, monkeypatch, tmp_path: Path):
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    async with wizard.run_test(size=(160, 40)) as pilot:
        await browse(pilot, wizard)
        await pilot.press("E")
        await until(pilot, lambda: any("set EDITOR" in notice.message for notice in wizard._notifications))
    assert os.environ["PATH"] == str(tmp_path)
