"""Whatever happens to standard input, output and error, a run continues, a report prints what it can, and no traceback
appears.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.core.layout import EVENTS_JSONL, RUN_JSON
from engine.run.folder import Run
from tests.support.made_up_run import make_run

ROOT = Path(__file__).parents[2]
RUN = f"{sys.executable} -m tui.cli"
ONE_STAGE = f"{RUN} --auto --demo --until workspace --output-dir"


def shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a bash script in `folder`; it may redirect its standard error to the file `e` there."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = ["bash", "-o", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)


def errors_of(done: subprocess.CompletedProcess[bytes], folder: Path) -> str:
    file = folder / "e"
    return (done.stderr + (file.read_bytes() if file.exists() else b"")).decode("utf-8", errors="replace")


@pytest.fixture(scope="module")
def folder_with_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that contains a run, for commands that only read it."""
    folder = tmp_path_factory.mktemp("streams")
    make_run(folder / "run")
    return folder


@pytest.mark.fault("F2-14")
@pytest.mark.parametrize(
    "streams",
    [
        ">&- 2>e",
        "<&- >&- 2>&-",
        ">/dev/full 2>e",
        "--json >/dev/full 2>e",
        "--json 2>e | head -1",
        "2>e | head -c1",
    ],
)
def test_a_run_continues_if_its_output_is_closed_or_full_or_its_reader_leaves(streams: str, tmp_path: Path):
    done = shell(f"{ONE_STAGE} run {streams}", tmp_path)
    assert done.returncode == 0 and "Traceback" not in errors_of(done, tmp_path)
    assert Run(tmp_path / "run").stage("workspace")["status"] == "done"


@pytest.mark.fault("F2-14")
def test_no_file_gets_the_descriptor_of_a_closed_standard_stream(tmp_path: Path):
    """Otherwise a library that prints would write into the lock file."""
    (tmp_path / "opens.py").write_text(OPENS)
    shell(f"{sys.executable} opens.py <&- >&- 2>&-", tmp_path)
    assert (tmp_path / "numbers").read_text() == "3\n/dev/null /dev/null /dev/null"


OPENS = """
import os
from tui.process.standard_streams import prepare_standard_streams
prepare_standard_streams()
first = os.open("numbers", os.O_WRONLY | os.O_CREAT)
print("to the standard output")
targets = " ".join(os.readlink("/proc/self/fd/%d" % number) for number in range(3))
os.write(first, ("%d\\n%s" % (first, targets)).encode())
"""


@pytest.mark.fault("F2-13")
@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_run_prints_ascii_if_the_encoding_requires_it(locale: dict[str, str], tmp_path: Path):
    done = shell(f"{ONE_STAGE} run 2>e", tmp_path, **locale)
    assert done.returncode == 0 and errors_of(done, tmp_path) == ""
    assert b"1 workspace" in done.stdout and done.stdout.isascii()


@pytest.mark.fault("F2-13")
@pytest.mark.parametrize(
    "command", ["status run", "status --json run", "plan --demo --output-dir run", "runs .", "--help"]
)
def test_reports_are_ascii_if_the_encoding_requires_it(command: str, folder_with_run: Path):
    done = shell(f"{RUN} {command}", folder_with_run, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.isascii()
    assert len(done.stdout) > 100


@pytest.mark.fault("F2-13")
def test_json_output_is_the_same_in_every_encoding(folder_with_run: Path):
    documents = [
        json.loads(shell(f"{RUN} status --json run", folder_with_run, PYTHONIOENCODING=encoding).stdout)
        for encoding in ("ascii", "utf-8")
    ]
    assert documents[0] == documents[1]


@pytest.mark.fault("F2-14")
@pytest.mark.parametrize("command", ["status run", "status --json run", "--version", "--help", "status --help"])
def test_a_report_cut_off_by_a_full_disk_is_a_failure_and_says_so(command: str, folder_with_run: Path):
    done = shell(f"{RUN} {command} >/dev/full", folder_with_run)
    assert done.returncode == 6
    assert done.stderr.decode().splitlines()[0] == "failed: Standard output is incomplete."
    assert b"No space is left" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.fault("F2-14")
@pytest.mark.parametrize("how", [">&-", "| head -c1", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["status run", "stop run", "--help"])
def test_a_report_does_not_fail_if_its_reader_leaves(command: str, how: str, folder_with_run: Path):
    done = shell(f"{RUN} {command} {how}", folder_with_run)
    assert done.returncode == 0 and b"Traceback" not in done.stderr


@pytest.mark.fault("F2-14")
def test_without_standard_input_the_wizard_points_to_auto(tmp_path: Path):
    done = shell(f"{RUN} --output-dir run <&-", tmp_path)
    assert done.returncode == 2 and b"--auto" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.fault("F2-9", "G1")
@pytest.mark.parametrize(
    "command", ["status", "stop", "status --json", "plan --demo --output-dir", "push", "clean", "runs"]
)
def test_the_name_of_a_folder_cannot_control_the_terminal(command: str, tmp_path: Path):
    name = "x\x1b]52;c;aGFjaw==\x07\x1b[2J\x9b31m"
    make_run(tmp_path / name)
    done = shell(f"{RUN} {command} $'{name}'", tmp_path)
    printed = (done.stdout + done.stderr).decode("utf-8", errors="surrogateescape")
    assert printed and not {"\x1b", "\x07", "\x9b"} & set(printed)


@pytest.mark.fault("F2-20")
@pytest.mark.parametrize("command", ["status", "--auto --demo", "doctor"])
def test_a_deleted_working_directory_is_reported(command: str, tmp_path: Path):
    done = shell(f"mkdir gone && cd gone && rmdir ../gone && {RUN} {command}", tmp_path)
    assert (
        done.returncode == 3
        and b"working directory no longer exists" in done.stderr
        and b"Traceback" not in done.stderr
    )


@pytest.mark.fault("F2-20")
def test_help_and_version_need_no_working_directory(tmp_path: Path):
    done = shell(f"mkdir gone && cd gone && rmdir ../gone && {RUN} --version && {RUN} --help", tmp_path)
    assert done.returncode == 0 and done.stderr == b""


@pytest.mark.fault("F2-20")
@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("''", b"is empty"),
        ("/dev/null", b"not a folder"),
        ("file", b"not a folder"),
        ("file/run", b"not a folder"),
        ("/", b"next to it"),
        ("b" * 250, b"exceed the limit"),
        ("a" * 300, b"255 bytes"),
    ],
)
def test_an_impossible_run_folder_is_an_error_before_anything_is_written(folder: str, why: bytes, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    done = shell(f"{ONE_STAGE} {folder}", tmp_path)
    assert done.returncode == 2 and why in done.stderr and b"Traceback" not in done.stderr, done.stderr
    assert os.listdir(tmp_path) == ["file"] and not Path("/", RUN_JSON).exists()  # noqa: PTH208


@pytest.mark.fault("F2-20")
def test_the_longest_allowed_folder_name_leaves_room_for_the_names_of_its_archive(tmp_path: Path):
    run = Run(tmp_path / ("b" * (255 - len("._artifacts.zip.sha256.4194304.part"))))
    run.acquire()
    run.archive.with_name(f".{run.archive.name}.sha256.4194304.part").touch()
    run.release()
    assert (run / EVENTS_JSONL).parent.is_dir()
