"""Disks, file systems and processes that misbehave."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.core import layout
from engine.core.errors import DamagedState, ExitCode, RunLocked
from engine.core.failpoints import failing
from engine.dpo.training.checkpoints import adopt, write_checkpoint
from engine.machine.error_mapping import as_stage3_error
from engine.packaging import fresh_process
from engine.packaging.archive import build_archive, verified_archive
from engine.process.children import ChildResult
from engine.run.context import Context
from engine.run.folder import Run
from engine.storage.files import write_json
from engine.storage.jsonl import JsonlAppender
from tests.support.finished_run import copied

ROOT = Path(__file__).parents[2]


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("B3")
@pytest.mark.parametrize("before", ["none", "an older one"])
def test_a_disk_that_fills_at_any_file_of_the_archive_leaves_a_complete_archive_or_none(
    trained: Context, tmp_path: Path, before: str
):
    run = copied(trained, tmp_path / "run").run
    if before == "an older one":
        build_archive(run)
    names_before = sorted(path.name for path in tmp_path.iterdir())
    number, full = 0, True
    while full:
        number += 1
        with failing(f"zip=ENOSPC@{number}") as armed:
            try:
                build_archive(run)
            except OSError as error:
                mapped = as_stage3_error(error)
                assert mapped is not None and mapped.exit_code == ExitCode.DISK
                assert sorted(path.name for path in tmp_path.iterdir()) == names_before
                if before == "an older one":
                    verified_archive(run)
            full = armed.fired > 0
    assert number > 5
    assert zipfile.ZipFile(run.archive).testzip() is None


# -- another file system -----------------------------------------------------------------------------------------------


@pytest.fixture
def other_disk() -> Iterator[Path]:
    """A folder on another file system than the temporary folder."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("there is only one file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.fault("B7")
def test_every_renamed_file_was_written_in_its_destination_folder(trained: Context, other_disk: Path, tmp_path: Path):
    with pytest.raises(OSError) as crossed:
        other_disk.rename(tmp_path / "x")
    assert crossed.value.errno == errno.EXDEV  # as for a file that was made in the temporary folder
    run = copied(trained, other_disk / "run").run
    run.save()
    write_json(run / layout.METRICS_JSON, {})
    build_archive(run)
    first = write_checkpoint(
        run / "checkpoints", 4, lambda folder: (folder / "weights").write_bytes(b"1") and None, "f"
    )
    assert adopt(tmp_path, [first.parent], "f") == first  # copied, because a rename would fail
    assert run.set_aside(layout.PAIRS_JSONL, why="a test") is not None


@pytest.mark.fault("B9", "A10")
def test_a_second_process_is_refused_even_where_locks_have_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time\nfrom pathlib import Path\nfrom engine.run.folder import Run\n"
         "Run(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)", str(tmp_path / "run")],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)
        with pytest.raises(RunLocked, match=str(holder.pid)) as refused:
            Run(tmp_path / "run").acquire()
        assert refused.value.exit_code == ExitCode.LOCKED
    finally:
        holder.kill()
        holder.wait()
    run = Run(tmp_path / "run")
    run.acquire()  # the holder is gone, and so is its lock
    run.release()


# -- the lock ----------------------------------------------------------------------------------------------------------

KILLED_WITH_A_CHILD = """
import os, signal, sys, time
from pathlib import Path
from engine.run.folder import Run
Run(Path(sys.argv[1])).acquire()
child = os.fork()
if child == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(0.2)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.fault("A11")
def test_the_lock_of_a_killed_process_is_free_even_if_its_forked_child_lives(tmp_path: Path):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WITH_A_CHILD, str(tmp_path / "run")],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    child = int(killed.stdout)
    try:
        assert killed.returncode == -9
        os.kill(child, 0)  # it is alive
        run = Run(tmp_path / "run")
        run.acquire()
        run.release()
    finally:
        os.kill(child, 9)


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("D10")
def test_a_child_killed_by_the_kernel_is_reported_with_its_signal_and_no_archive_is_published(
    trained: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    context = copied(trained, tmp_path / "run")
    monkeypatch.setattr(fresh_process, "CACHE_VARIABLES", ())
    run_child = fresh_process.run_child

    def killed_by_the_kernel(command: list[str], **options: object) -> ChildResult:
        return run_child([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fresh_process, "run_child", killed_by_the_kernel)

    def check(archive: Path) -> None:
        fresh_process.load_in_fresh_process(archive, context.config)

    with pytest.raises(DamagedState, match="fresh process") as failure:
        build_archive(context.run, check)
    assert failure.value.why == "ended by SIGKILL, as the kernel does if memory runs out"
    assert not context.run.archive.exists()


@pytest.mark.fault("D10")
def test_a_failed_allocation_on_the_host_is_exit_7_with_advice_to_use_less_memory(tmp_path: Path):
    """MemoryError has no message of its own; the advice must not be that for a bug."""
    appender = JsonlAppender(tmp_path / "pairs.jsonl")
    with failing("append=memory@1"), pytest.raises(MemoryError) as raised:
        appender.append({"id": "a"})
    mapped = as_stage3_error(raised.value)
    assert mapped is not None and mapped.exit_code == ExitCode.MEMORY
    assert "--generation-batch-size" in mapped.what_to_do
    appender.append({"id": "a"})
    appender.close()
    assert (tmp_path / "pairs.jsonl").read_text().count("\n") == 1
