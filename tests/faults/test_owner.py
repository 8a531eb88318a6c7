"""The owner of a run is recognised by facts that no clock or copy can change, and no request to stop is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.core.errors import ExitCode, RunLocked
from engine.core.events import Event, Message, RunStarted
from engine.core.layout import EVENTS_JSONL, LOCK_FILE, STOP_REQUEST
from engine.pipeline.session import Session
from engine.run import owner as owners
from engine.run import stop_request
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.journal import Journal
from engine.run.owner import Owner, read_owner, start_ticks_of, this_process
from engine.stages.base import StageEnd
from tests.support.small_stages import Made, SmallStage, small_stages
from tui.commands.stop import stop_run

HOLD = """
import os, sys, time
from pathlib import Path
from engine.run.folder import Run
from engine.run.journal import Journal
run = Run(Path(sys.argv[1]))
run.acquire()
if "fork" in sys.argv:
    if os.fork() == 0:
        print(os.getpid(), flush=True)
elif "inherit" in sys.argv:  # as a C library might: a child that inherits the open lock file
    import subprocess
    child = subprocess.Popen(["sleep", "60"], pass_fds=[run._lock._file])
    print(child.pid, flush=True)
else:
    print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator:
    """Starts a process that holds the run; returns it and the first line that it prints."""
    started = []

    def start(*how: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), *how]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.fault("F2-20")
def test_a_copy_of_the_folder_of_an_active_run_is_not_locked(tmp_path: Path, hold):
    hold()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert Run(tmp_path / "run").owner() is not None and Run(tmp_path / "copy").owner() is None
    copy = Run(tmp_path / "copy")
    copy.acquire()
    copy.release()


@pytest.mark.fault("F2-19", "A16")
def test_the_owner_is_still_recognised_when_the_boot_time_moves(tmp_path: Path, hold, monkeypatch: pytest.MonkeyPatch):
    """A clock change moves `btime` in /proc/stat, and with it the start times that psutil reports."""
    import psutil

    process, _ = hold()
    create_time = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + 3600)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    held = Run(tmp_path / "run").owner()
    assert held is not None and held.pid == process.pid


@pytest.mark.fault("A12")
@pytest.mark.parametrize(
    "change", [{"start_ticks": 12}, {"boot_id": "another"}, {"folder_inode": 5}, {"host": "elsewhere"}]
)
def test_a_record_of_another_process_boot_folder_or_host_is_not_a_live_owner(change: dict, tmp_path: Path):
    own = this_process(tmp_path)
    assert own.is_alive(tmp_path) and own.is_this_process
    assert not replace(own, **change).is_alive(tmp_path)


def test_a_zombie_is_not_an_owner(tmp_path: Path):
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}").exists() and start_ticks_of(child.pid) is None
    child.wait()


def test_start_ticks_are_read_whatever_the_program_is_called(tmp_path: Path):
    program = tmp_path / "a ) S 1 ("
    shutil.copy(shutil.which("sleep") or "", program)
    child = subprocess.Popen([program, "60"])
    try:
        assert abs((start_ticks_of(child.pid) or 0) - (start_ticks_of(os.getpid()) or 0)) < 100 * 3600 * 24
        assert (start_ticks_of(child.pid) or 0) >= (start_ticks_of(os.getpid()) or 0)
    finally:
        child.kill()
        child.wait()


@pytest.mark.fault("F2-9", "G1")
def test_text_from_the_lock_file_cannot_control_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "logs").mkdir()
    record = {**this_process(tmp_path).as_dict(), "since": "\x1b]0;pwned\x07\x1b[2J", "pid": os.getppid()}
    record["start_ticks"] = start_ticks_of(os.getppid())
    (tmp_path / LOCK_FILE).write_text(json.dumps(record))
    with pytest.raises(RunLocked) as refused:
        Run(tmp_path).acquire()
    assert str(os.getppid()) in str(refused.value) and "\x1b" not in str(refused.value)


@pytest.mark.fault("F2-20")
@pytest.mark.parametrize(
    "changed",
    [
        {"pid": 1e400}, {"pid": [1]}, {"pid": "\x1d1\x1d"}, {"pid": True}, {"pid": -1}, {"host": None}, {"start_ticks": "7"},
        {"boot_id": 3}, {"folder_inode": 1 << 80},
    ],
)  # fmt: skip
def test_a_lock_file_with_wrong_types_names_no_owner(changed: dict, tmp_path: Path):
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({**this_process(tmp_path).as_dict(), **changed}))
    assert read_owner(lock) is None


def test_an_endlessly_nested_lock_file_names_no_owner(tmp_path: Path):
    lock = tmp_path / "lock"
    lock.write_bytes(b"[" * 1_000_000)
    assert read_owner(lock) is None


@pytest.mark.fault("A11")
def test_a_forked_child_does_not_hold_the_lock_of_a_killed_process(tmp_path: Path, hold):
    process, child = hold("fork")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert Path(f"/proc/{child}").exists()
    run = Run(tmp_path / "run")
    run.acquire()
    run.release()


@pytest.mark.fault("A11")
def test_a_child_that_still_holds_the_lock_is_reported_with_its_process_id(tmp_path: Path, hold):
    process, child = hold("inherit")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(RunLocked, match="locked by the children") as refused:
        Run(tmp_path / "run").acquire()
    assert f"kill {child}" in refused.value.what_to_do


@pytest.mark.fault("B9")
def test_the_owner_record_keeps_a_second_process_out_even_if_flock_does_nothing(
    tmp_path: Path, hold, monkeypatch: pytest.MonkeyPatch
):
    process, _ = hold()
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    with pytest.raises(RunLocked, match=f"process {process.pid}"):
        Run(tmp_path / "run").acquire()


# -- requests to stop --------------------------------------------------------------------------------------------------


@pytest.mark.fault("F2-20")
def test_stop_fails_if_the_run_does_not_end_in_time(tmp_path: Path, hold, capsys: pytest.CaptureFixture[str]):
    hold()
    assert stop_run(tmp_path / "run", 0.0) == ExitCode.LOCKED
    assert "Still running" in capsys.readouterr().out
    assert stop_request.exists(tmp_path / "run")


@pytest.mark.fault("F2-20")
def test_stop_recognises_an_idle_wizard_and_leaves_no_request(
    tmp_path: Path, hold, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    process, _ = hold()
    monkeypatch.setattr("tui.commands.stop.START_SECONDS", 0.0)
    assert stop_run(tmp_path / "run", 0.0) == ExitCode.LOCKED
    assert "no stage is running" in capsys.readouterr().out and not stop_request.exists(tmp_path / "run")
    journal = Journal(tmp_path / "run" / EVENTS_JSONL)
    journal.append(RunStarted(str(tmp_path), "0.1.0", process.pid, "here", "", ("workspace",)))
    journal.close()
    assert stop_run(tmp_path / "run", 0.0) == ExitCode.LOCKED
    assert "Still running" in capsys.readouterr().out and stop_request.exists(tmp_path / "run")


@pytest.mark.fault("F2-20")
def test_a_stop_request_after_the_lock_is_taken_is_obeyed(context, monkeypatch: pytest.MonkeyPatch):
    """Nothing removes the request between the lock and the first event."""

    class WaitsForStop(SmallStage):
        def run(self, context: Context) -> Iterator[Event]:
            yield Message("info", "at work")
            assert context.stop.wait(30)
            context.stop.raise_if_requested()
            return StageEnd("never", Made(1))

    stages = small_stages(monkeypatch)
    stages["workspace"] = WaitsForStop("workspace")
    run_context: Context = context()
    run_context.run.acquire()
    stop_request.create(run_context.run.folder)
    session = Session(run_context, lambda entry: None)
    assert session.run() is ExitCode.TERMINATED
    session.close()
    assert not stop_request.exists(run_context.run.folder), "the next start would stop too"
    run_context.run.release()


def test_a_stop_request_to_an_earlier_process_does_not_stop_the_next(tmp_path: Path):
    (tmp_path / "logs").mkdir()
    (tmp_path / STOP_REQUEST).touch()
    run = Run(tmp_path)
    run.acquire()
    assert not stop_request.exists(tmp_path)
    run.release()


def test_a_stop_request_during_a_restart_applies_to_the_new_process(tmp_path: Path):
    run = Run(tmp_path)
    run.acquire()
    run.release(for_restart=True)
    held = run.owner()
    assert held is not None and held.pid == os.getpid()
    stop_request.create(tmp_path)
    after = Run(tmp_path)
    after.acquire()
    assert stop_request.exists(tmp_path)
    after.release()
    assert after.owner() is None


def test_a_parent_that_restarts_itself_hands_the_run_to_its_child(tmp_path: Path):
    run = Run(tmp_path)
    run.acquire()
    run.release(for_restart=True)
    stop_request.create(tmp_path)
    take = "import sys; from pathlib import Path; from engine.run.folder import Run; Run(Path(sys.argv[1])).acquire()"
    child = subprocess.run(
        [sys.executable, "-c", take, tmp_path], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert child.returncode == 0, child.stderr
    assert stop_request.exists(tmp_path), "the request is for the run, which continues in the child"


def test_a_folder_in_place_of_the_stop_request_is_ignored(tmp_path: Path):
    run = Run(tmp_path)
    run.acquire()
    (tmp_path / STOP_REQUEST).mkdir(parents=True)
    assert not stop_request.exists(tmp_path) and (tmp_path / STOP_REQUEST).is_dir()
    run.release()


def test_an_owner_is_recognised_without_a_boot_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(owners, "_BOOT_ID", tmp_path / "none")
    own = this_process(tmp_path)
    assert own == Owner(os.getpid(), socket.gethostname(), own.since, "", own.start_ticks, tmp_path.stat().st_ino)
    assert own.is_alive(tmp_path)
