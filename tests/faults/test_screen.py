"""Text too long for the screen, and bytes that other programs write to the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.core import layout
from tests.support.good_pairs import row
from tests.support.pseudo_terminal import ROOT, PseudoTerminal, demo
from tui.pair_browser.pair_list import row_text
from tui.pair_browser.pair_text import pair_lines
from tui.pair_browser.rows import pair_row
from tui.runs.tail import Line

TOO_LONG = {
    "a line of a megabyte": "word " * 200_000,
    "a word of a megabyte": "x" * 1_000_000,
    "200,000 combining marks": "e" + "\u0301" * 200_000,
    "wide characters": "漢" * 300_000,
    "characters of several code points": "👩‍👩‍👧" * 50_000,
    "a megabyte of newlines": "\n" * 1_000_000,
}


@pytest.mark.fault("G5")
@pytest.mark.parametrize("text", TOO_LONG.values(), ids=TOO_LONG)
def test_an_enormous_text_in_a_pair_is_cut_and_the_screen_says_by_how_much(text: str):
    record = {**row(1), "base_response": text, "prompt": text, "critic_notes": text}
    lines = pair_lines(record, pair_row(Line(0, 0, 0, record)), 80)
    assert max(line.cell_length for line in lines) <= 80
    assert sum(len(line.plain) for line in lines) < 20 * 6_000  # a joining character is spelt out in six
    shown = " ".join(line.plain.strip() for line in lines)
    assert shown.count(f"{len(text) - 6_000:,} more characters") == 3 or "\n" in text
    assert len(row_text(pair_row(Line(0, 0, 0, record)), 80).plain) < 400


LIBRARY = """
import os, threading, time

def write():
    while not os.path.exists({flag!r}):
        time.sleep(0.02)
    os.write(1, b"STRAY-OUT \\x1b[2J\\n")
    os.write(2, b"STRAY-ERR \\x1b]52;c;QUFB\\x07\\n")
    open({flag!r} + ".done", "w").close()

# The wizard is a forked child of the started process; a thread would stay in the parent.
os.register_at_fork(after_in_child=lambda: threading.Thread(target=write, daemon=True).start())
"""
"""A C library that writes to the standard streams at any time, underneath Python's own streams."""


@pytest.fixture
def terminals() -> Iterator[list[PseudoTerminal]]:
    opened: list[PseudoTerminal] = []
    yield opened
    for terminal in opened:
        terminal.kill()


@pytest.mark.fault("G7")
def test_output_of_a_library_goes_to_the_log_and_not_to_the_screen(tmp_path: Path, terminals: list[PseudoTerminal]):
    flag, library = tmp_path / "now", tmp_path / "library"
    library.mkdir()
    (library / "sitecustomize.py").write_text(LIBRARY.format(flag=str(flag)))
    terminal = PseudoTerminal(demo(tmp_path / "run"), PYTHONPATH=f"{library}:{ROOT}")
    terminals.append(terminal)
    terminal.wait_for("Workspace")
    flag.touch()
    terminal.until((tmp_path / "now.done").exists, "the library's bytes")
    terminal.rest(0.5)
    terminal.press("q")
    assert terminal.end() == 0
    assert b"STRAY" not in terminal.seen and b"]52;" not in terminal.seen
    log = (tmp_path / "run" / layout.RUN_LOG).read_bytes()
    assert b"STRAY-OUT" in log and b"STRAY-ERR" in log
