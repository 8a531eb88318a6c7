"""A token goes through the whole program, while every stage fails once and leaks the token wherever it can: it must be
found nowhere.

The search covers run folder, logs, events, screenshots, archive, pickles and caches; bytes on the terminal; arguments
and environment of every child.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.core import layout
from engine.core.events import RunFinished, StageFinished
from engine.core.stage_table import STAGES
from engine.run.folder import Run
from engine.run.journal import read_entries
from tests.support.demo_on_hub import REPOSITORIES, options_from_the_hub, put_demo_on
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.fork_server import TINY
from tests.support.git_repositories import make_upstream
from tests.support.planted_failures import PLANTED
from tests.support.pseudo_terminal import ROOT, TERMINAL_VARIABLES, PseudoTerminal
from tests.tui.test_walk import LONG
from tui.widgets.token_field import FILLED

GIVEN, STALE = "hf_Zq7Xw9Kp2Lm5Nt8RvYb3Jd6", "hf_Gs4Hc1Fu0Ea8Wk2Vn5Tq9Mx"
"""The token in use, and another one in the environment."""
WINDOW = 8
"""This many consecutive characters of a token are a leak."""
PROGRAM = [sys.executable, "-m", "tests.support.planted_failures"]


def _traces(token: str) -> Iterator[bytes]:
    """Parts of the token: as they are, reversed, in UTF-16, and in base64 at each of its three offsets."""
    secret = token.removeprefix("hf_")
    for text in (secret, secret[::-1]):
        yield from (text[i : i + WINDOW].encode() for i in range(len(text) - WINDOW + 1))
    yield from (secret[i : i + WINDOW].encode("utf-16-le") for i in range(len(secret) - WINDOW + 1))
    for offset in range(3):
        encoded = base64.b64encode(b"x" * offset + token.encode())
        yield encoded[4 + 4 * (offset > 0) : -4]


LEAK = re.compile(b"|".join(re.escape(trace) for token in (GIVEN, STALE) for trace in _traces(token)))


class ChildMonitor:
    """Inspects a process and its descendants five times a second, for as long as it lives."""

    def __init__(self, root: int) -> None:
        self.commands: set[str] = set()
        self.leaks: list[str] = []
        self._root, self._stopped = psutil.Process(root), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(0.2):
            try:
                descendants = self._root.children(recursive=True)
            except psutil.NoSuchProcess:
                return
            for process in (self._root, *descendants):
                self._inspect(process.pid)

    def _inspect(self, pid: int) -> None:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # it has ended
            return
        self.commands.add(command.replace(b"\0", b" ").decode(errors="replace"))
        is_ours = b"tests.support.planted_failures" in command  # the test itself put a token into its environment
        if LEAK.search(command) or (LEAK.search(environment) and not is_ours):
            self.leaks.append(f"{pid}: {command!r}")


def leaks_in(folder: Path) -> list[str]:
    """Files that contain a trace of a token; archives and files of torch are opened."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            parts = [path.read_bytes()]
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as packed:
                    parts += [packed.read(name) for name in packed.namelist()]
            found += [str(path) for part in parts if LEAK.search(part)]
    return found


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A Hub with the demo's models and prompts; its first responses repeat the token that it received."""
    with fake_hub() as server:
        put_demo_on(server)
        server.account = ["echo", "ok"]
        server.repos[REPOSITORIES["adapter_path"][0]] = {"head": ["echo", "ok"]}
        yield server


@pytest.fixture
def environment(tmp_path: Path, hub: FakeHub) -> dict[str, str]:
    """The environment of a user with an outdated token; everything that the program writes is in `tmp_path`."""
    for name in ("home", "tmp", "work", "bin"):
        (tmp_path / name).mkdir()
    spy_on("git", tmp_path)
    foreign = ("HF_", "HUGGING", "STAGE3_", "XDG_", "PYTEST", "TERM")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and k not in TERMINAL_VARIABLES}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "HF_HOME": str(tmp_path / "home/hf"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": STALE,
        "OMP_NUM_THREADS": "1",
    }


def spy_on(program: str, folder: Path) -> None:
    """Record the arguments and environment of each call of a program, for children that end too soon for the monitor."""
    spy = folder / "bin" / program
    record = folder / f"{program}.seen"
    spy.write_text(
        f'#!/bin/sh\ncat /proc/$$/cmdline /proc/$$/environ >> "{record}"\nexec {shutil.which(program)} "$@"\n'
    )
    spy.chmod(0o755)


def arguments(tmp_path: Path) -> list[str]:
    places = {"output_dir": tmp_path / "work/run", "repo_url": make_upstream(tmp_path / "repo")}
    options = {**options_from_the_hub(), **TINY, **places}
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def assert_every_stage_failed_once_and_all_are_done(run: Path) -> None:
    ends = [entry.event for entry in read_entries(run / layout.EVENTS_JSONL)]
    failed = [end.stage for end in ends if isinstance(end, StageFinished) and end.outcome == "failed"]
    assert [stage for stage in STAGES if stage not in failed] == []
    assert failed.count("credentials") == 2 and failed.count("adapter") == 2, "the Hub's responses repeated the token"
    log = (run / layout.RUN_LOG).read_text()
    assert log.count(f"{PLANTED} with ***") >= len(STAGES), "the log has the failures, without the token"
    assert {Run(run).stage(stage)["status"] for stage in STAGES} == {"done"}


def assert_children_were_inspected(children: ChildMonitor, folder: Path) -> None:
    assert children.leaks == []
    assert b"clone" in (folder / "git.seen").read_bytes(), (
        "the search for leaks includes git's arguments and environment"
    )
    for child in ("engine.machine.probe", "engine.packaging"):
        assert any(child in command for command in children.commands), (child, children.commands)


def test_auto_never_reveals_the_token_even_if_every_stage_fails(tmp_path: Path, environment: dict[str, str]):
    (tmp_path / "home/token").write_text(GIVEN)
    (tmp_path / "home/token").chmod(0o600)
    command = [*PROGRAM, "--auto", "--token-file", str(tmp_path / "home/token"), *arguments(tmp_path)]
    done = subprocess.Popen(
        command, cwd=tmp_path / "work", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    children = ChildMonitor(done.pid)
    output, _ = done.communicate(timeout=LONG)
    children.end()
    (tmp_path / "home/token").unlink()
    assert done.returncode == 0, output.decode()[-2000:]
    assert_every_stage_failed_once_and_all_are_done(tmp_path / "work/run")
    assert PLANTED in output.decode() and not LEAK.search(output)
    assert_children_were_inspected(children, tmp_path)
    assert leaks_in(tmp_path) == []


@pytest.mark.slow  # tests/tui/test_terminal.py has a short test that pastes a token
def test_the_wizard_never_reveals_the_token_even_if_every_stage_fails(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    run = tmp_path / "work/run"
    terminal = PseudoTerminal(
        [*PROGRAM, *arguments(tmp_path)], columns=100, rows=40, cwd=tmp_path / "work", **environment
    )
    children = ChildMonitor(terminal.pid)
    try:
        terminal.wait_for("Workspace")
        terminal.press("3")
        terminal.wait_for("Token")
        terminal.press("\t")
        terminal.wait_for("Type or paste the token here")
        terminal.paste(f"  {GIVEN[:9]}")
        terminal.press(GIVEN[9:])
        terminal.wait_for(FILLED)
        save_screenshot(terminal, run)
        terminal.press("\t")
        terminal.wait_for("Enter use it")
        terminal.press("\r")
        retry_until_all_is_done(terminal, run)
        save_screenshot(terminal, run)
        terminal.press("q")
        terminal.end()
    finally:
        children.end()
        terminal.kill()
    assert_every_stage_failed_once_and_all_are_done(run)
    assert not LEAK.search(terminal.seen)
    assert_children_were_inspected(children, tmp_path)
    assert len(list((run / "logs").glob("screen-*.svg"))) >= len(STAGES)
    assert leaks_in(tmp_path) == []


def retry_until_all_is_done(terminal: PseudoTerminal, run: Path) -> None:
    """Press `a` after each failure, and take a screenshot of it."""
    for ends in range(1, 3 * len(STAGES)):
        terminal.until(lambda ends=ends: count_ends(run) == ends, f"end {ends}", LONG)
        if run_ends(run)[-1].exit_code == 0 and Run(run).stage(STAGES[-1]).get("status") == "done":
            return
        save_screenshot(terminal, run)
        start_again(terminal, run)
    raise AssertionError("it never succeeded")


def start_again(terminal: PseudoTerminal, run: Path) -> None:
    """If something is done already, the plan is shown first."""
    before = (run / layout.EVENTS_JSONL).stat().st_size if (run / layout.EVENTS_JSONL).exists() else 0
    terminal.press("a")
    terminal.until(
        lambda: "What a start would do" in terminal.text or (run / layout.EVENTS_JSONL).stat().st_size > before,
        "a start",
    )
    if "What a start would do" in terminal.text:
        terminal.press("\r")


def count_ends(run: Path) -> int:
    """How many starts have ended, without parsing the journal, because this is called at every change of the screen."""
    events = run / layout.EVENTS_JSONL
    return events.read_bytes().count(b'"kind":"run_finished"') if events.exists() else 0


def run_ends(run: Path) -> list[RunFinished]:
    events = run / layout.EVENTS_JSONL
    return [e.event for e in read_entries(events) if isinstance(e.event, RunFinished)] if events.exists() else []


def save_screenshot(terminal: PseudoTerminal, run: Path) -> None:
    """Take a screenshot with the command palette."""
    before = set((run / "logs").glob("screen-*.svg"))
    open_palette(terminal)
    terminal.press("screenshot")
    terminal.until(lambda: "SVG" in terminal.text and "Open the log" not in terminal.text, "the command")
    terminal.rest(0.2)
    terminal.press("\r")
    terminal.until(lambda: set((run / "logs").glob("screen-*.svg")) != before, "a screenshot")
    terminal.wait_for("Saved as")


def open_palette(terminal: PseudoTerminal) -> None:
    """On a busy machine, Esc and the next key may arrive as one: then try again."""
    for _ in range(5):
        terminal.escape()
        terminal.press("\x0b")
        with contextlib.suppress(AssertionError):
            return terminal.wait_for("Search for commands", seconds=10)
    return terminal.wait_for("Search for commands")
