"""The wizard on a real pseudo-terminal: raw bytes, signals, a shell, and a terminal that stalls or disappears."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.core import layout
from engine.core.layout import STOP_REQUEST
from engine.core.stage_table import STAGE, STAGES
from engine.pairs.data.edits import read_edits
from engine.run.folder import Run
from engine.run.owner import Owner
from tests.support.made_up_run import HOSTILE, make_run
from tests.support.pseudo_terminal import (
    LEAVES_ALTERNATE_SCREEN,
    LEAVES_MOUSE,
    ROOT,
    SHOWS_CURSOR,
    WIZARD,
    PseudoTerminal,
    demo,
)
from tui.terminal.driver import FINAL_WRITE_SECONDS

COLOURS = {str(n) for n in (*range(30, 39), *range(40, 49), *range(90, 98), *range(100, 108))}


@pytest.fixture
def open_terminals() -> Iterator[list[PseudoTerminal]]:
    opened: list[PseudoTerminal] = []
    yield opened
    for terminal in opened:
        terminal.kill()


@pytest.fixture
def wizard(tmp_path: Path, open_terminals: list[PseudoTerminal]):
    """Opens the wizard over a demo run in tmp_path/run, new or existing, and waits for its first screen."""

    def start(*arguments: str, first: str = "Workspace", **options) -> PseudoTerminal:
        terminal = PseudoTerminal(demo(tmp_path / "run", *arguments), **options)
        open_terminals.append(terminal)
        terminal.wait_for(first)
        return terminal

    return start


def owner(folder: Path) -> Owner | None:
    return Run(folder).owner()


def status_of(folder: Path) -> set[str]:
    return {stage["status"] for stage in Run(folder).manifest["stages"].values()}


def sequences(raw: bytes) -> set[str]:
    """The numbers of all SGR sequences."""
    return {code for sgr in re.findall(rb"\x1b\[([\d;]*)m", raw) for code in sgr.decode().split(";")}


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_q_leaves_a_clean_terminal_and_the_run_free(wizard, tmp_path: Path):
    terminal = wizard()
    terminal.press("q")
    assert terminal.end() == 0
    for restored in (LEAVES_ALTERNATE_SCREEN, SHOWS_CURSOR, LEAVES_MOUSE, b"\x1b[23;0t"):
        assert restored in terminal.seen
    assert owner(tmp_path / "run") is None


@pytest.mark.fault("A4")
def test_sigterm_restores_the_terminal_and_exits_143(wizard):
    terminal = wizard()
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.end() == 143
    assert LEAVES_ALTERNATE_SCREEN in terminal.seen and SHOWS_CURSOR in terminal.seen


@pytest.mark.fault("A4")
@pytest.mark.parametrize("everybody", [False, True], ids=["parent", "everybody"])
def test_sigterm_during_a_run_saves_first(everybody: bool, wizard, tmp_path: Path):
    """The parent passes its signals on, even if the child gets them, too."""
    terminal = wizard()
    terminal.press("a")
    terminal.wait_for("running 4/10")
    at_once = [terminal.pid, terminal.child.pid] if everybody else [terminal.pid]
    for pid in at_once:
        os.kill(pid, signal.SIGTERM)
    assert terminal.end() == 143
    assert "stopped" in status_of(tmp_path / "run") and owner(tmp_path / "run") is None


@pytest.mark.fault("A6")
def test_a_closed_terminal_ends_an_idle_wizard_and_nothing_spins(wizard):
    terminal = wizard()
    child = terminal.child
    terminal.hang_up()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive
    os.waitpid(terminal.pid, 0)


@pytest.mark.fault("A5")
def test_a_closed_terminal_leaves_the_run_running_and_stop_ends_it(wizard, tmp_path: Path):
    terminal = wizard()
    terminal.press("a")
    terminal.wait_for("running 4/10")
    child = terminal.child
    terminal.hang_up()
    os.waitpid(terminal.pid, 0)
    held = owner(tmp_path / "run")
    assert held is not None and held.pid == child.pid
    (tmp_path / "run" / STOP_REQUEST).touch()
    _, alive = psutil.wait_procs([child], timeout=40)
    assert not alive
    assert "stopped" in status_of(tmp_path / "run")


@pytest.mark.fault("A6")
def test_with_sighup_ignored_the_end_of_input_is_noticed_and_nothing_spins(tmp_path: Path, open_terminals):
    """As under nohup: no signal arrives, and a dead terminal reads as endless end of file."""
    nohup = ["sh", "-c", 'trap "" HUP; exec "$0" "$@"', *demo(tmp_path / "run")]
    terminal = PseudoTerminal(nohup)
    open_terminals.append(terminal)
    terminal.wait_for("Workspace")
    child = terminal.child
    before = sum(child.cpu_times()[:2])
    terminal.hang_up()
    started = time.monotonic()
    used = before
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() - started < 20:
        used = sum(child.cpu_times()[:2])
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert used - before < 3.0, "CPU seconds from the hang-up to the end"


# -- a terminal that does not read -------------------------------------------------------------------------------------


def test_a_stalled_terminal_gets_a_full_redraw_when_it_reads_again(wizard):
    terminal = wizard()
    for _ in range(40):  # nothing reads the bytes of a screen that is redrawn each time
        for key in "9150":
            terminal.press(key)
            time.sleep(0.03)
    terminal.press("3")
    time.sleep(1.0)
    terminal.wait_for("Credentials waiting")
    terminal.until(lambda: "settings/tokens" in terminal.text and "Packaging" not in terminal.text.splitlines()[2])
    terminal.press("q")
    assert terminal.end() == 0


def test_sigterm_works_while_the_terminal_does_not_read(wizard):
    terminal = wizard(columns=200, rows=50)
    for _ in range(30):
        for key in "91":
            terminal.press(key)
            time.sleep(0.04)
    os.kill(terminal.pid, signal.SIGTERM)
    started = time.monotonic()
    while time.monotonic() - started < 15:
        pid, status = os.waitpid(terminal.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.05)
    assert pid and os.waitstatus_to_exitcode(status) == 143
    assert time.monotonic() - started < 10 + 2 * FINAL_WRITE_SECONDS


# -- the shell ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path, open_terminals: list[PseudoTerminal]) -> PseudoTerminal:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here, whose jobs this is about")
    terminal = PseudoTerminal(["bash", "--norc", "--noprofile", "-i"], PS1="ready> ", HISTFILE="")
    open_terminals.append(terminal)
    terminal.wait_for("ready>")
    return terminal


@pytest.mark.fault("A8")
def test_ctrl_z_returns_to_the_shell_and_fg_restores_the_screen(shell: PseudoTerminal, tmp_path: Path):
    shell.press(" ".join(demo(tmp_path / "run")) + "\n")
    shell.wait_for("Workspace")
    shell.press("\x1a")
    shell.wait_for("Stopped")
    shell.press("echo from the $((1 + 1))nd shell\n")
    shell.wait_for("from the 2nd shell")
    shell.press("fg\n")
    shell.wait_for("? help")
    shell.wait_for("Workspace")
    shell.press("9")
    shell.wait_for("Training waiting")
    shell.press("q")
    shell.wait_for("ready>")


@pytest.mark.fault("A8")
def test_after_ctrl_z_the_run_continues_and_fg_shows_it(shell: PseudoTerminal, tmp_path: Path):
    shell.press(" ".join(demo(tmp_path / "run")) + "\n")
    shell.wait_for("Workspace")
    shell.press("a")
    shell.wait_for("running 4/10")
    shell.press("\x1a")
    shell.wait_for("The run continues. fg brings the screen back.")
    shell.wait_for("Stopped")
    events = tmp_path / "run" / layout.EVENTS_JSONL
    line_count = events.read_text().count("\n")
    shell.until(lambda: events.read_text().count("\n") > line_count + 2, "three seconds of work, without the screen")
    shell.press("jobs\n")
    shell.wait_for("tui.cli")
    assert "running" not in shell.text, "nothing is drawn over the shell"
    shell.press("fg\n")
    shell.wait_for("? help")
    shell.wait_for("running")
    shell.press("q")
    shell.wait_for("Stop it, or leave it running?")
    shell.press("s")
    shell.wait_for("ready>", seconds=60)
    assert "stopped" in status_of(tmp_path / "run")


def test_bg_draws_nothing_and_fg_still_brings_it_back(shell: PseudoTerminal, tmp_path: Path):
    shell.press(" ".join(demo(tmp_path / "run")) + "\n")
    shell.wait_for("Workspace")
    shell.press("a")
    shell.wait_for("running 4/10")
    shell.press("\x1a")
    shell.wait_for("Stopped")
    shell.press("bg\n")
    shell.wait_for("&")
    shell.press("echo still $((40 + 2))\n")
    shell.wait_for("still 42")
    shell.press("fg\n")
    shell.wait_for("? help")
    shell.press("q")
    shell.wait_for("Stop it, or leave it running?")
    shell.press("s")
    shell.wait_for("ready>", seconds=60)


def test_ctrl_z_without_a_shell_resumes_by_itself(wizard):
    terminal = wizard()
    terminal.press("a")
    terminal.wait_for("running 4/10")
    terminal.press("\x1a")
    terminal.wait_for("The run continues.")
    terminal.wait_for("No shell to return to.")
    terminal.press("q")
    terminal.wait_for("Stop it, or leave it running?")
    terminal.press("s")
    assert terminal.end(60) in (0, 143)


def test_the_users_editor_gets_the_terminal_and_the_screen_comes_back(tmp_path: Path, open_terminals):
    make_run(tmp_path / "run", pairs=3)
    editor = tmp_path / "ed"
    editor.write_text('#!/bin/sh\necho "editing on $(tty)"\nread line\necho "$line" > "$1"\n')
    editor.chmod(0o755)
    terminal = PseudoTerminal(demo(tmp_path / "run"), EDITOR=str(editor))
    open_terminals.append(terminal)
    terminal.wait_for("Packaging done")
    terminal.press("b")
    terminal.wait_for("accept")
    terminal.press("E")
    terminal.wait_for("editing on /dev/pts/")
    terminal.press("Written at the prompt of an editor.\n")
    terminal.wait_for("accept")
    terminal.until(lambda: len(read_edits(tmp_path / "run" / layout.EDITS_JSONL)) == 1, "the edit")
    terminal.press("q")
    assert terminal.end() == 0


# -- bytes -------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("G1")
def test_hostile_text_of_dataset_and_model_never_reaches_the_terminal(tmp_path: Path, open_terminals):
    make_run(tmp_path / "run", pairs=70)
    terminal = PseudoTerminal(demo(tmp_path / "run"), columns=120, rows=40)
    open_terminals.append(terminal)
    terminal.wait_for("Packaging")
    for number, stage in enumerate(STAGES, start=1):
        terminal.press(str(number % 10))
        terminal.until(lambda stage=stage: f"  {STAGE[stage].title}" in terminal.text, stage)
        for _ in range(3):
            terminal.press("v")
            terminal.read(0.3)
    terminal.press("b")
    terminal.wait_for("Gate")
    for key in ("\r", "j", "G", "e", "\x1b", "\x1b", "/", "[/]\r", "\x1b"):
        terminal.press(key)
        terminal.rest(0.4)
    for key, shown in (("l", "other log"), ("?", "Esc closes")):
        terminal.press(key)
        terminal.wait_for(shown)
        terminal.press("\t\x1b")
        # On a busy machine Esc and the next key would arrive as one.
        terminal.until(lambda shown=shown: shown not in terminal.text, f"the end of {shown}")
    terminal.press("q")
    terminal.end()
    for payload in (
        b"\x1b]52",
        b"\x1bc",
        b"\x1b[2J\x1bc",
        "\u202e".encode(),
        b"\xc2\x9b",
        b"\xed\xa0\x80",
    ):
        assert payload not in terminal.seen, payload
    assert "␛]52;c;AAAA".encode() in terminal.seen, "it was there, and is escaped"
    assert len(HOSTILE) == 10


@pytest.mark.fault("A8")
def test_input_that_is_not_text_does_not_end_the_wizard(wizard):
    """A legacy mouse report, as after reattaching tmux, and half a character."""
    terminal = wizard()
    terminal.press(b"\x1b[M \xc8\xc8\xff\xfe\xe4\xb8")
    terminal.read(0.5)
    terminal.escape()
    terminal.press("9")
    terminal.wait_for("Training waiting")
    terminal.press("q")
    assert terminal.end() == 0


@pytest.mark.fault("G8")
def test_the_screen_fits_after_many_resizes(wizard):
    terminal = wizard()
    for columns, rows in ((40, 10), (200, 50), (79, 23), (120, 30), (20, 5), (100, 34)) * 3:
        terminal.resize(columns, rows)
        terminal.read(0.02)
    terminal.resize(80, 24)
    terminal.wait_for("1· Workspace waiting")
    terminal.press("q")
    assert terminal.end() == 0


@pytest.mark.fault("G8")
def test_no_color_means_no_colour_at_all(wizard):
    terminal = wizard(NO_COLOR="1")
    terminal.press("9q")
    assert terminal.end() == 0
    assert sequences(terminal.seen) and not sequences(terminal.seen) & COLOURS
    assert "7" in sequences(terminal.seen), "the selection is still visible"


def test_a_terminal_with_256_colours_gets_256(wizard):
    terminal = wizard(TERM="xterm-256color")
    terminal.press("9q")
    assert terminal.end() == 0
    text = terminal.seen.decode(errors="replace")
    assert "38;5" in text and "48;5" in text and "38;2" not in text and "48;2" not in text


def test_a_terminal_with_sixteen_colours_gets_the_theme_made_for_it_and_a_selection_in_reverse(wizard):
    terminal = wizard(TERM="xterm")
    terminal.press("9q")
    assert terminal.end() == 0
    codes = sequences(terminal.seen)
    assert codes & COLOURS and not codes & {"38", "48"}
    assert "7" in codes and not codes & {"105", "45"}, "the selection is in reverse video, without a colour"


@pytest.mark.fault("G8")
def test_a_locale_without_unicode_gets_only_ascii(wizard):
    terminal = wizard(first="Workspace waiting", LC_ALL="C")
    terminal.press("9?")
    terminal.wait_for("- Keys -")
    terminal.escape()
    terminal.press("q")
    assert terminal.end() == 0
    assert terminal.seen.isascii()


def test_ascii_can_be_switched_on_and_off(wizard):
    for arguments, environment, ascii_alone in ((("--ascii",), {}, True), (("--no-ascii",), {"LANG": "C"}, False)):
        terminal = wizard(*arguments, **environment)
        terminal.press("q")
        assert terminal.end() == 0
        assert terminal.seen.isascii() is ascii_alone


def test_without_the_mouse_no_mouse_mode_is_requested(wizard):
    terminal = wizard("--no-mouse")
    terminal.press("q")
    assert terminal.end() == 0
    assert not re.search(rb"\x1b\[\?100[0236]", terminal.seen)


def test_the_title_has_the_stage_and_the_end_rings_and_notifies(wizard):
    terminal = wizard()
    terminal.press("a")
    terminal.until(lambda: b"\x1b]0;4/10 Dependencies" in terminal.seen, "the title")
    terminal.press("s")
    terminal.until(lambda: b"\x07\x1b]9;stage3-tui: ended with exit code 143" in terminal.seen, "the bell")
    terminal.until(
        lambda: terminal.seen.rindex(b"]0;stage3-tui\x07") > terminal.seen.rindex(b"]0;4/10"), "the plain title"
    )
    terminal.press("q")
    assert terminal.end() == 143


@pytest.mark.fault("G10")
def test_a_pasted_token_is_in_no_output_and_no_file(wizard, tmp_path: Path):
    terminal = wizard()
    terminal.press("3")
    terminal.wait_for("Tab, then type or paste")
    terminal.press("\t")
    terminal.wait_for("Type or paste the token here")
    terminal.paste("  hf_canaryOfThePaste0123456789\r\n")
    terminal.wait_for("••••••••")
    terminal.press("\r")
    terminal.wait_for("✓ 3 of 10 stages done")
    terminal.press("q")
    terminal.end()
    files = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files and not any(b"canaryOfThePaste" in data for data in (terminal.seen, *files))


# -- without a usable terminal -----------------------------------------------------------------------------------------


@pytest.mark.fault("G8")
@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_draw_is_an_error_with_an_alternative(tmp_path: Path, open_terminals, term: str):
    terminal = PseudoTerminal(demo(tmp_path / "run"), TERM=term)
    open_terminals.append(terminal)
    assert terminal.end() == 2
    assert b"--auto" in terminal.seen and LEAVES_ALTERNATE_SCREEN not in terminal.seen


@pytest.mark.fault("G8")
def test_without_a_terminal_the_error_names_an_alternative():
    done = subprocess.run(
        [*WIZARD, "--demo"], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2 and "--auto" in done.stderr


def test_torch_is_not_imported_before_a_stage_needs_it(wizard):
    terminal = wizard()
    maps = Path(f"/proc/{terminal.child.pid}/maps").read_text()
    assert "libtorch" not in maps
    terminal.press("q")
    terminal.end()
