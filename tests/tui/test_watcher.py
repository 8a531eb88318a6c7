"""Watching another process's run: its growing journal, torn tails, and the stop request."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from engine.core import layout
from engine.core.errors import ExitCode
from engine.core.events import Message, RunFinished, RunStarted, StageStarted
from engine.run.folder import Run
from engine.storage.jsonl import BadLine
from tests.support.made_up_run import make_run, write_events
from tui.runs.tail import JsonlTail, read_line
from tui.runs.watcher import Watcher


@pytest.fixture
def watcher(tmp_path, config) -> Watcher:
    return Watcher(Run(tmp_path), config(output_dir=tmp_path))


def message(text: str) -> tuple[float, Message]:
    return 1.0, Message("info", text)


def test_a_journal_that_does_not_exist_yet_is_an_empty_state(watcher: Watcher):
    assert watcher.snapshot().last_seq == -1
    assert not watcher.running


def test_only_what_is_new_is_read(watcher: Watcher, tmp_path: Path):
    journal = tmp_path / layout.EVENTS_JSONL
    write_events(journal, [message("one"), message("two")])
    assert watcher.read() == 2
    write_events(journal, [message("three")], first_seq=2)
    assert watcher.read() == 1
    assert watcher.read() == 0
    assert [event.text for _, event in watcher.snapshot().messages] == ["one", "two", "three"]


def test_an_incomplete_last_line_waits_until_it_is_complete(watcher: Watcher, tmp_path: Path):
    journal = tmp_path / layout.EVENTS_JSONL
    write_events(journal, [message("one")])
    line = json.dumps({"seq": 1, "time": 2.0, **Message("info", "two").as_dict()})
    with journal.open("a") as file:
        file.write(line[:30])
    assert watcher.read() == 1
    with journal.open("a") as file:
        file.write(line[30:] + "\n")
    assert watcher.read() == 1
    assert watcher.snapshot().messages[-1][1].text == "two"


@pytest.mark.fault("A15")
def test_damaged_lines_and_unknown_kinds_are_skipped(watcher: Watcher, tmp_path: Path):
    journal = tmp_path / layout.EVENTS_JSONL
    write_events(journal, [message("one")])
    with journal.open("a") as file:
        file.write('not json\n{"kind": "of_the_future", "seq": 1, "time": 1}\n{"kind": "check", "seq": 2}\n')
        file.write('{"kind": "stage_started", "stage": "no such stage", "seq": 3, "time": 1}\n')
        file.write('{"kind": "stage_finished", "stage": "no such stage", "outcome": "done", "seq": 4, "time": 1}\n')
    write_events(journal, [message("two")], first_seq=5)
    watcher.read()
    assert [event.text for _, event in watcher.snapshot().messages] == ["one", "two"]


def test_a_replaced_journal_is_read_from_the_start(watcher: Watcher, tmp_path: Path):
    journal = tmp_path / layout.EVENTS_JSONL
    write_events(journal, [message("old"), message("older")])
    watcher.read()
    journal.unlink()
    watcher.read()
    write_events(journal, [message("new")])
    watcher.read()
    assert [event.text for _, event in watcher.snapshot().messages] == ["new"]


def test_a_run_whose_process_died_is_shown_as_idle(watcher: Watcher, tmp_path: Path):
    write_events(
        tmp_path / layout.EVENTS_JSONL,
        [(1.0, RunStarted(str(tmp_path), "0", 1, "h")), (2.0, StageStarted("pairs")), message("working")],
    )
    watcher.read()
    state = watcher.snapshot()
    assert not state.running and state.current is None
    assert state.stages["pairs"].status == "waiting" and "Interrupted" in state.stages["pairs"].summary
    assert watcher.snapshot() is state


def test_the_exit_code_is_that_of_the_journal(watcher: Watcher, tmp_path: Path):
    assert watcher.exit_code is None
    write_events(tmp_path / layout.EVENTS_JSONL, [(1.0, RunFinished(9, "the gate is shut"))])
    watcher.read()
    assert watcher.exit_code is ExitCode.DATA


def test_stop_leaves_the_request_where_the_owner_polls(watcher: Watcher, tmp_path: Path):
    watcher.stop("requested by a test")
    assert (tmp_path / layout.STOP_REQUEST).exists()


def test_running_is_whether_a_live_process_holds_the_run(tmp_path: Path, config):
    run = Run(tmp_path)
    run.acquire()
    try:
        assert Watcher(Run(tmp_path), config(output_dir=tmp_path)).running
    finally:
        run.release()
    assert not Watcher(Run(tmp_path), config(output_dir=tmp_path)).running


def test_an_open_watcher_follows_by_itself(watcher: Watcher, tmp_path: Path):
    make_run(tmp_path, through="preflight")
    watcher.open()
    deadline = time.monotonic() + 10
    while watcher.snapshot().stages["adapter"].status != "done" and time.monotonic() < deadline:
        time.sleep(0.02)
    watcher.close()
    assert watcher.snapshot().stages["adapter"].status == "done"


def test_the_tail_returns_the_position_of_each_line(tmp_path: Path):
    path = tmp_path / "some.jsonl"
    path.write_bytes('{"a": "ä\u2028"}\n\nnope\n[1]\n{"b": 2}\n{"torn'.encode())
    lines = JsonlTail(path).read().lines
    assert [line.number for line in lines] == [0, 2, 3, 4]
    assert read_line(path, lines[0]) == {"a": "ä\u2028"}
    assert read_line(path, lines[-1]) == {"b": 2}
    assert isinstance(lines[1].record, BadLine) and isinstance(lines[2].record, BadLine)


def test_a_file_longer_than_a_block_is_read_in_pieces(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tui.runs.tail.BLOCK_BYTES", 64)
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps({"n": n, "text": "x" * (200 if n == 3 else 9)}) + "\n" for n in range(20)))
    tail, found = JsonlTail(path), []
    while lines := tail.read().lines:
        found += [line.record["n"] for line in lines]
    assert found == list(range(20))
