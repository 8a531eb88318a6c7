from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.core.errors import DamagedState, DiskError, ExitCode, RunLocked, UnsafeError
from engine.core.events import Event, Message, StageFinished
from engine.core.layout import LOCK_FILE, RUN_JSON
from engine.machine.error_mapping import as_stage3_error
from engine.pipeline.session import Session
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.owner import this_process
from tests.support.small_stages import SmallStage, small_stages

HOLD = """
import sys
from pathlib import Path
from engine.run.folder import Run
from engine.run.owner import this_process
run = Run(Path(sys.argv[1]))
run.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.fault("A10")
def test_a_second_process_is_refused_with_the_owner_of_the_run(tmp_path: Path):
    process = holder(tmp_path)
    try:
        with pytest.raises(RunLocked, match=f"process {process.pid}"):
            Run(tmp_path).acquire()
        assert Run(tmp_path).owner().pid == process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.fault("A11")
def test_a_killed_owner_releases_the_run(tmp_path: Path):
    process = holder(tmp_path)
    process.kill()
    process.wait()
    run = Run(tmp_path)
    assert run.owner() is None
    run.acquire()
    run.release()


@pytest.mark.fault("A12")
def test_a_reused_pid_is_not_an_owner(tmp_path: Path):
    (tmp_path / "logs").mkdir()
    parent = replace(this_process(tmp_path), pid=os.getppid())
    (tmp_path / LOCK_FILE).write_text(json.dumps({**parent.as_dict(), "start_ticks": 12}))
    Run(tmp_path).acquire()


@pytest.mark.fault("A15")
@pytest.mark.parametrize("damage", ["", "{", '{"schema": 1}', '{"schema": 99, "stages": {}}', "[]", '{"stages": 3}'])
def test_a_damaged_manifest_needs_a_decision_and_is_left_unchanged(damage: str, tmp_path: Path):
    (tmp_path / RUN_JSON).write_text(damage)
    with pytest.raises(DamagedState):
        Run(tmp_path)
    assert (tmp_path / RUN_JSON).read_text() == damage


@pytest.mark.fault("A13")
def test_files_that_are_set_aside_are_moved_not_deleted(tmp_path: Path):
    run = Run(tmp_path)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "pairs.jsonl").write_text("first")
    first = run.set_aside("pairs", "models", why="temperature changed from 0.7 to 1")
    (tmp_path / "pairs").mkdir()
    second = run.set_aside("pairs", why="again")
    assert first is not None and (first / "pairs" / "pairs.jsonl").read_text() == "first"
    assert second not in (None, first)
    assert run.set_aside("pairs", why="again") is None


# -- links, modes, owners ----------------------------------------------------------------------------------------------


@pytest.mark.fault("B10")
def test_a_run_folder_may_be_a_link_and_is_resolved_once(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    run = Run(tmp_path / "run")
    (tmp_path / "run").unlink()
    (tmp_path / "run").symlink_to("elsewhere")
    run.acquire()
    run.save()
    run.release()
    assert (tmp_path / "disk" / RUN_JSON).exists() and not (tmp_path / "elsewhere").exists()


@pytest.mark.fault("B10")
@pytest.mark.parametrize("name", ["pairs/pairs.jsonl", "logs", "logs/events.jsonl", "checkpoints", "deep/down/link"])
@pytest.mark.parametrize("target", ["OUT", "OUT/new", "/dev/null", "LOOP"])
def test_a_link_that_leads_out_of_the_run_is_refused_and_nothing_is_written(name: str, target: str, tmp_path: Path):
    run, out = tmp_path / "run", tmp_path / "out"
    out.mkdir()
    link = run / name
    link.parent.mkdir(parents=True)
    link.symlink_to({"OUT": out, "OUT/new": out / "new", "LOOP": link}.get(target, Path(target)))
    with pytest.raises(UnsafeError, match="leads out") as refused:
        Run(run).acquire()
    assert refused.value.exit_code == 12 and str(link) in refused.value.what
    assert list(out.iterdir()) == []


def test_a_link_within_the_run_is_allowed(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "latest").symlink_to("checkpoints")
    run = Run(tmp_path)
    run.acquire()
    run.release()


MODES = """
import os, stat, sys
from pathlib import Path
os.umask(int(sys.argv[2], 8))
from engine.run.folder import Run
from engine.run.owner import this_process
from engine.run.journal import Journal
from engine.core.events import Message
run = Run(Path(sys.argv[1]) / "run")
run.acquire()
run.save()
Journal(run / "logs/events.jsonl").append(Message("info", "x"))
for path in [run.folder, *run.folder.rglob("*")]:
    print(oct(path.stat().st_mode & 0o777))
"""


@pytest.mark.fault("B12")
@pytest.mark.parametrize(("umask", "allowed"), [("000", 0o755), ("022", 0o755), ("027", 0o750), ("077", 0o700)])
def test_whatever_the_umask_other_users_cannot_change_a_run(umask: str, allowed: int, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", MODES, str(tmp_path), umask], capture_output=True, text=True, check=True
    )
    modes = [int(line, 8) for line in done.stdout.split()]
    assert len(modes) >= 5 and all(mode & ~allowed == 0 for mode in modes)


AS_NOBODY = """
import os, sys
from pathlib import Path
from engine.run.folder import Run
from engine.run.owner import this_process
os.setgid(65534); os.setuid(65534)
try:
    Run(Path(sys.argv[1])).acquire()
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.fault("B12")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("mode_of_folder", "mode_of_manifest", "expected"),
    [(0o700, 0o644, RUN_JSON), (0o755, 0o600, RUN_JSON), (0o755, 0o644, LOCK_FILE)],
)
def test_files_of_another_user_are_reported_with_their_owner(mode_of_folder: int, mode_of_manifest: int, expected: str):
    with tempfile.TemporaryDirectory() as folder:  # other users may enter it, but not pytest's folder
        Path(folder).chmod(0o755)
        run = Run(Path(folder) / "run")
        run.acquire()
        run.save()
        run.release()
        (run / RUN_JSON).chmod(mode_of_manifest)
        run.folder.chmod(mode_of_folder)
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, str(run.folder)], capture_output=True, text=True)
    assert done.stdout.startswith("DiskError") and "belongs to root." in done.stdout, done.stderr
    assert expected in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_without_write_permission_is_reported_with_its_owner():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, f"{folder}/run"], capture_output=True, text=True)
    assert done.stdout.startswith("DiskError") and "belongs to root." in done.stdout and LOCK_FILE in done.stdout


def test_a_refused_file_is_reported_with_its_owner(tmp_path: Path):
    (tmp_path / "file").touch()
    error = as_stage3_error(PermissionError(13, "Permission denied", str(tmp_path / "file")))
    assert isinstance(error, DiskError) and f"{tmp_path / 'file'} belongs to " in error.why
    gone = as_stage3_error(PermissionError(13, "Permission denied", str(tmp_path / "gone")))
    assert isinstance(gone, DiskError) and f"{tmp_path} belongs to " in gone.why


@pytest.mark.fault("B12")
def test_a_run_folder_is_private_whatever_the_umask(tmp_path: Path):
    before = os.umask(0)
    try:
        run = Run(tmp_path / "artifacts/run")
        run.acquire()
        run.release()
    finally:
        os.umask(before)
    assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700


# -- a folder that disappears during a run -----------------------------------------------------------------------------


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def replaced(folder: Path) -> None:
    moved(folder)
    shutil.copytree(folder.with_name("moved"), folder)


@pytest.mark.fault("B8")
@pytest.mark.parametrize("goes", [moved, replaced, shutil.rmtree])
def test_a_folder_that_is_gone_is_not_created_again(tmp_path: Path, goes: Callable[[Path], None]):
    run = Run(tmp_path / "run")
    run.acquire()
    run.save()
    run.require_in_place()
    goes(run.folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DamagedState, match="is gone"):
        run.record_stage("pairs", status="done")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    run.release()


@pytest.mark.fault("B8")
def test_a_run_whose_folder_is_moved_away_ends_and_continues_when_it_is_back(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    folder = context().run.folder

    class Moves(SmallStage):
        def run(self, context: Context) -> Iterator[Event]:
            yield Message("info", "before", "pairs")
            if self.ran == 0:
                moved(folder)
            yield Message("info", "after", "pairs")
            return (yield from super().run(context))

    stages = small_stages(monkeypatch)
    stages["pairs"] = Moves("pairs")

    def run(at_work: Context) -> tuple[ExitCode, list[Event]]:
        events: list[Event] = []
        at_work.run.acquire()
        session = Session(at_work, lambda entry: events.append(entry.event))
        try:
            return session.run(until="quality"), events
        finally:
            session.close()
            at_work.run.release()

    code, events = run(context())
    assert code is ExitCode.DAMAGED
    (failed,) = (event for event in events if isinstance(event, StageFinished) and event.outcome == "failed")
    assert failed.stage == "pairs" and str(folder) in failed.what and "Move it back" in failed.what_to_do
    assert not folder.exists()
    folder.with_name("moved").rename(folder)
    stages["pairs"].ran = 1
    code, events = run(context())
    assert code is ExitCode.DONE
    assert stages["workspace"].ran == 1, "what was done is still done"
