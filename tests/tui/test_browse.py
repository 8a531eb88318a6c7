"""`stage3-tui browse FILE`: any pairs file in the pair browser, without a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.content import Content

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, DataError
from engine.pairs.assessment.validation import validate
from engine.pairs.data.edits import read_edits
from tests.support.idle_wizard import screen_text, until
from tui.pair_browser.browser import PairBrowser
from tui.runs.pair_file import PairFile
from tui.screens.pair_file import title_line
from tui.wizard.pair_file import PairFileBrowser


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Orca's form, with a row that is not a pair and an empty line."""
    rows = [
        {
            "question": f"How do I mend thing {n}?",
            "chosen": f"Glue {n} gently.",
            "rejected": f"Kick thing {n} hard, twice.",
        }
        for n in range(6)
    ]
    lines = [json.dumps(row) for row in rows]
    path = tmp_path / "orca.jsonl"
    path.write_text("\n".join([*lines[:2], '{"question": "Broken?"}', "", *lines[2:]]) + "\n")
    return path


async def test_any_file_can_be_browsed_and_decisions_go_beside_it(file: Path, config: Callable[..., Stage3Config]):
    source = PairFile(file, config(min_pairs=3))
    app = PairFileBrowser(source)
    before = file.read_bytes()
    source.open()
    try:
        async with app.run_test(size=(100, 30)) as pilot:
            browser = app.main.query_one(PairBrowser)
            await until(pilot, lambda: len(browser.store.rows) == 7 and not browser.store.unchecked, "the pairs")
            await app.tick()
            await pilot.pause()
            shown = screen_text(app)
            assert "browse" in shown and "orca.jsonl" in shown and "How do I mend thing 5?" in shown
            assert "run all" not in shown and "accept" in shown
            assert [row.line.number for row in browser.store.rows] == [0, 1, 2, 4, 5, 6, 7]
            assert browser.store.rows[2].reasons[0].startswith("not a pair: it has neither")
            await pilot.press("x", "j", "w", "r", "a", "escape")
            await pilot.pause()
        decided = read_edits(file.with_name("orca.jsonl.edits.jsonl"))
        assert {(one.accepted, one.flipped) for one in decided.values()} == {(False, False), (None, True)}
    finally:
        source.close()
    assert file.read_bytes() == before and not source.run.folder.exists()
    report = validate(file, config(min_pairs=3)).report
    assert (report["people"]["rejected"], report["people"]["flipped"]) == (1, 1)


def test_what_cannot_be_browsed_is_reported_before_the_screen(tmp_path: Path, config: Callable[..., Stage3Config]):
    kto = tmp_path / "kto.jsonl"
    kto.write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    with pytest.raises(DataError, match="KTO"):
        PairFile(kto, config())
    for name in ("nowhere", "empty"):
        (tmp_path / "empty").touch()
        with pytest.raises(ConfigError):
            PairFile(tmp_path / name, config())


def test_the_title_shows_the_end_of_a_long_path():
    line = title_line(f"/{'folder/' * 30}preferences.jsonl", Content("no run "), 80).plain
    assert line.startswith(" stage3-tui browse …") and "/preferences.jsonl  no run" in line and len(line) == 80
