"""Errors of the operating system: each has its exit code and its own advice, whatever the wording of the report."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.core import system_errors
from engine.core.errors import ExitCode
from engine.core.events import Event, Message, RunFinished, StageFinished
from engine.core.layout import LOCK_FILE, RESERVE
from engine.core.system_errors import MEANINGS, errno_in, errno_of, system_error
from engine.machine.error_mapping import as_stage3_error
from engine.machine.install import install_failure
from engine.machine.probe import probe, probe_error
from engine.pipeline.session import Session
from engine.process.children import ChildResult
from engine.run.context import Context
from engine.run.folder import Run
from engine.storage.files import write_atomically
from engine.storage.jsonl import JsonlAppender
from engine.workspace.errors import git_failure
from tests.support.small_stages import SmallStage, small_stages

ROOT = Path(__file__).parents[2]

CODES = {
    errno.ENOSPC: 6, errno.EDQUOT: 6, errno.EFBIG: 6, errno.EROFS: 6, errno.EIO: 6, errno.EACCES: 6,
    errno.EMFILE: 3, errno.ENOMEM: 7, errno.ENAMETOOLONG: 2, errno.ENOTDIR: 2,
}  # fmt: skip


@pytest.mark.fault("F2-12", "B5")
@pytest.mark.parametrize(("number", "code"), CODES.items(), ids=lambda value: errno.errorcode.get(value, str(value)))
def test_each_system_error_has_its_exit_code_and_its_own_advice(number: int, code: int):
    mapped = as_stage3_error(OSError(number, os.strerror(number), "/run/file"))
    assert mapped is not None and mapped.exit_code == code
    assert mapped.why and "/run/file" in mapped.why
    others = [meaning.what_to_do for other, meaning in MEANINGS.items() if meaning is not MEANINGS[number]]
    assert mapped.what_to_do not in others


@pytest.mark.fault("F2-12", "B2")
@pytest.mark.parametrize(
    ("message", "number"),
    [
        ("I/O error: File too large (os error 27)", errno.EFBIG),  # safetensors
        ("Error while serializing: I/O error: Disk quota exceeded (os error 122)", errno.EDQUOT),
        ("I/O error: Read-only file system (os error 30)", errno.EROFS),
        ("I/O error: Input/output error (os error 5)", errno.EIO),
        ("Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: ... })", errno.ENOSPC),
        ("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0", errno.ENOSPC),  # torch
        ("basic_ios::clear: iostream error", errno.ENOSPC),
        ("fatal: sha1 file '<stdout>' write error. Out of diskspace", errno.ENOSPC),  # git
        ("error: failed to write to file `x`: Too many open files (os error 24)", errno.EMFILE),  # uv
        ("libtorch.so: failed to map segment from shared object", errno.ENOMEM),  # ulimit -v
        ("can't start new thread", errno.ENOMEM),
        ("git@example.org: Permission denied (publickey).", None),
        ("cannot allocate memory in static TLS block", None),
        ("os error 99999", None),
        ("the index is out of range", None),
    ],
)
def test_the_errno_is_found_in_messages_of_libraries_and_programs(message: str, number: int | None):
    assert errno_in(message) == number == errno_of(RuntimeError(message))


def test_the_cause_of_an_error_takes_precedence_over_its_message():
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError as error:
            raise ValueError("os error 5") from error
    except ValueError as error:
        assert errno_of(error) == errno.EDQUOT


@pytest.mark.fault("F2-12")
def test_an_error_that_safetensors_really_raises_is_recognised(tmp_path: Path):
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from engine.machine.error_mapping import as_stage3_error
import torch
from safetensors.torch import save_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    save_file({{"x": torch.zeros(5000)}}, sys.argv[1])
except Exception as error:
    mapped = as_stage3_error(error)
    print(int(mapped.exit_code), mapped.what_to_do)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "x"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("6 Raise the limit (`ulimit -f unlimited`)")


@pytest.mark.fault("F2-12")
def test_an_error_that_zipfile_really_raises_is_recognised(tmp_path: Path):
    with pytest.raises(OSError) as full, zipfile.ZipFile("/dev/full", "w") as archive:
        archive.writestr("x", b"x" * 100_000)
    assert as_stage3_error(full.value).exit_code == 6  # type: ignore[union-attr]


@pytest.mark.fault("F2-12")
@pytest.mark.parametrize(("message", "code"), [("No space left on device (os error 28)", 6), ("(os error 24)", 3)])
def test_a_failure_of_git_or_uv_has_the_exit_code_of_its_cause(message: str, code: int):
    result = ChildResult(2, (), (f"Failed to fetch: {message}", "fatal: early EOF"), 1.0)
    assert git_failure("x could not be cloned", result).exit_code == code
    failure = install_failure(result, "uv pip install x")
    assert failure.exit_code == code and "uv pip install x" in failure.what_to_do


@pytest.mark.fault("F2-11", "B5")
def test_a_disk_without_inodes_is_distinguished_from_a_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "not there" / "x"))
    assert "df -h" in system_error(full).what_to_do  # type: ignore[union-attr]
    inodes = os.statvfs_result((4096, 4096, 1000, 500, 500, 20, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda place: inodes)
    mapped = system_error(full)
    assert mapped is not None and mapped.exit_code == 6 and "inodes" in mapped.why and "df -i" in mapped.what_to_do


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG])
@pytest.mark.fault("F2-12", "B1")
def test_a_failed_append_names_its_cause_and_leaves_no_partial_record(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write = os.write

    def write_half(file: int, data: bytes) -> int:
        if bytes(data).startswith(b'{"id"'):
            return write(file, bytes(data)[:5])
        raise OSError(number, os.strerror(number))

    with JsonlAppender(tmp_path / "x.jsonl") as appender:
        monkeypatch.setattr(os, "write", write_half)
        with pytest.raises(MEANINGS[number].error, match="Cannot write a record") as refused:
            appender.append({"id": 1})
    assert refused.value.what_to_do == MEANINGS[number].what_to_do
    assert (tmp_path / "x.jsonl").read_bytes() == b""


# -- a full disk -------------------------------------------------------------------------------------------------------


class FullDisk:
    """A disk on which nothing can be written while it is full; deleting the reserve makes room."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full, self._reserve, self._write = False, run / RESERVE, os.write
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr("engine.run.folder.write_json", self.write_json)

    def write(self, file: int, data: bytes) -> int:
        self.fail_if_full()
        return self._write(file, data)

    def write_json(self, path: Path, data: object) -> None:
        self.fail_if_full()
        write_atomically(path, json.dumps(data).encode())

    def fail_if_full(self) -> None:
        if self.is_full and self._reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.fault("F2-11", "B1")
def test_a_run_that_fills_the_disk_records_it_in_run_json_and_in_its_journal(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    run_context = context()
    disk = FullDisk(run_context.run, monkeypatch)

    class FillsDisk(SmallStage):
        def run(self, context: Context) -> Iterator[Event]:
            disk.is_full = True
            yield Message("info", "the journal cannot record this")
            raise AssertionError("the stage continued as if it had been written")

    stages = small_stages(monkeypatch)
    stages["pairs"] = FillsDisk("pairs")
    events: list[Event] = []
    run_context.run.acquire()
    assert (run_context.run / LOCK_FILE).exists()
    session = Session(run_context, lambda entry: events.append(entry.event))
    assert session.run() is ExitCode.DISK
    session.close()
    run_context.run.release()
    (failed,) = (event for event in events if isinstance(event, StageFinished) and event.outcome == "failed")
    assert failed.stage == "pairs" and "No space is left" in failed.why
    assert isinstance(events[-1], RunFinished) and events[-1].exit_code == 6
    assert Run(run_context.run.folder).stage("pairs")["status"] == "failed"
    assert Run(run_context.run.folder).manifest["error"]["exit_code"] == 6
    assert '"run_finished"' in (run_context.run / "logs/events.jsonl").read_text().splitlines()[-1]


@pytest.mark.fault("F2-11")
def test_a_disk_that_fills_at_the_end_of_a_stage_leaves_no_stage_marked_as_running(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    run_context = context()
    disk = FullDisk(run_context.run, monkeypatch)

    class FillsDiskAtItsEnd(SmallStage):
        def run(self, context: Context) -> Iterator[Event]:
            end = yield from super().run(context)
            disk.is_full = True
            return end

    stages = small_stages(monkeypatch)
    stages["pairs"] = FillsDiskAtItsEnd("pairs")
    run_context.run.acquire()
    session = Session(run_context, lambda entry: None)
    assert session.run() is ExitCode.DISK
    session.close()
    run_context.run.release()
    assert Run(run_context.run.folder).stage("pairs")["status"] == "failed"


class PanicException(BaseException):
    """Like the exception that pyo3 defines in each library."""


def test_a_library_that_panics_ends_its_stage_and_not_the_program(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    stages = small_stages(monkeypatch)
    stages["adapter"].failure = PanicException("called `Option::unwrap()` on a `None` value\x1b[2J")
    run_context = context()
    run_context.run.acquire()
    session = Session(run_context, lambda entry: None)
    assert session.run() is ExitCode.PRECONDITION
    session.close()
    run_context.run.release()
    error = Run(run_context.run.folder).stage("adapter")["error"]
    assert "unwrap" in error["why"] and "\x1b" not in error["why"]


@pytest.mark.fault("F2-20", "D10")
def test_an_import_that_runs_out_of_memory_is_not_a_broken_package(monkeypatch: pytest.MonkeyPatch):
    message = "libtorch_cpu.so: failed to map segment from shared object"
    monkeypatch.setattr("importlib.import_module", lambda _: raises(ImportError(message)))
    error = probe_error(probe("cpu", [("a_module_without_memory", "x")])["failure"])
    assert error.exit_code == ExitCode.MEMORY and "ulimit -v" in error.what_to_do and message in error.what


def raises(error: Exception) -> None:
    raise error


def test_the_disk_reserve_exists_only_while_the_run_works(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []

    class MeasuresReserve(SmallStage):
        def run(self, context: Context) -> Iterator[Event]:
            sizes.append((context.run / RESERVE).stat().st_blocks * 512)
            return (yield from super().run(context))

    stages = small_stages(monkeypatch)
    stages["pairs"] = MeasuresReserve("pairs")
    run_context = context()
    run_context.run.acquire()
    session = Session(run_context, lambda entry: None)
    session.run()
    session.close()
    run_context.run.release()
    assert sizes and sizes[0] >= 256 << 10
    assert not (run_context.run / RESERVE).exists()


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=1m{mount_options} tmpfs {disk} || exit 99
head -c 2m /dev/zero > {disk}/fill 2>/dev/null
{python} -m tui.cli --auto --demo --until workspace --output-dir {disk}/run
echo "rc $?"
"""


@pytest.mark.fault("F2-11", "B5")
@pytest.mark.parametrize(("mount_options", "advice"), [("", "df -h"), (",nr_inodes=2", "df -i")])
def test_a_disk_that_is_full_before_the_start_is_reported_without_a_traceback(
    mount_options: str, advice: str, tmp_path: Path
):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    script = ON_A_SMALL_DISK.format(disk=tmp_path, python=sys.executable, mount_options=mount_options)
    if mount_options:
        script = script.replace("head -c 2m /dev/zero", "head -c 1 /dev/zero")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, env=env, cwd=ROOT)
    if "rc" not in done.stdout:
        pytest.skip(f"no small disk can be mounted here: {done.stderr[-200:]}")
    assert done.stdout.endswith("rc 6\n"), done.stderr
    assert "Traceback" not in done.stderr and advice in done.stderr
    assert done.stderr.startswith("failed: ")


def test_every_errno_in_the_table_exists_on_this_system():
    assert all(os.strerror(number) and not os.strerror(number).startswith("Unknown") for number in MEANINGS)
    assert MEANINGS.keys() >= system_errors.DISK_FULL_ERRNOS
