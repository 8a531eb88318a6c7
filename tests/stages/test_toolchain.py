"""Stage 2 with fake programs on PATH."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from engine.core.config import load_config
from engine.core.errors import PreconditionError
from engine.core.events import Check, Event, Message
from engine.machine import session_lifetime
from engine.machine.gpus import GpuReport
from engine.machine.programs import version_numbers
from engine.machine.requirements import supported_python
from engine.machine.torch_build import TorchBuild, driver_fault, read_torch_build
from engine.preflight.machine import gpu_memory_held_by_others
from engine.run.context import Context
from engine.run.folder import Run
from engine.stages import toolchain
from engine.stages.base import StageEnd
from tests.support.fake_nvml import fake_nvml


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty; Python itself is elsewhere, with nothing beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python/bin/python"))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def drive(tmp_path: Path, **options: Any) -> tuple[StageEnd, dict[str, Check], list[Event]]:
    context = Context(config=load_config(options, environment={}), run=Run(tmp_path / "run"))
    events: list[Event] = []
    stage = toolchain.run(context)
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            return end.value, {event.name: event for event in events if isinstance(event, Check)}, events


def test_every_tool_is_named_with_its_version(tmp_path: Path, programs: Path) -> None:
    program(programs, "uv", "echo 'uv 0.9.1 (abc 2026-01-01)'")
    program(programs, "git", "echo 'git version 2.39.5'")
    program(programs, "tmux", "echo 'tmux 3.3a'")
    result, checks, _ = drive(tmp_path, device="cpu")
    assert {name: check.status for name, check in checks.items() if name != "NVIDIA driver"} == {
        "python": "ok", "uv": "ok", "git": "ok", "tmux": "ok", "CUDA of torch": "ok",
    }  # fmt: skip
    assert (result.facts["uv"], result.facts["git"], result.facts["tmux"]) == ("0.9.1", "2.39.5", "3.3a")
    assert checks["python"].detail.startswith(".".join(map(str, sys.version_info[:3])))


def test_a_missing_tool_is_a_warning_with_how_to_get_it(tmp_path: Path, programs: Path) -> None:
    result, checks, _ = drive(tmp_path)
    assert {checks[name].status for name in ("uv", "git", "tmux")} == {"warning"}
    assert "astral.sh/uv" in checks["uv"].detail and "apt install tmux" in checks["tmux"].detail
    assert "without uv, git, tmux" in result.summary


def test_a_missing_git_fails_only_if_something_must_be_cloned(tmp_path: Path, programs: Path) -> None:
    with pytest.raises(PreconditionError, match="git: missing") as refused:
        drive(tmp_path, repo_url="https://example.org/a.git")
    assert "apt install git" in refused.value.what_to_do


@pytest.mark.parametrize(
    ("name", "says", "oldest"),
    [("uv", "uv 0.7.13", "0.7.14"), ("git", "git version 2.14.5", "2.15"), ("tmux", "tmux 2.1", "2.2")],
)
def test_the_error_for_an_old_tool_names_the_minimum_and_why(
    tmp_path: Path, programs: Path, name: str, says: str, oldest: str
) -> None:
    program(programs, name, f"echo '{says}'")
    result, checks, _ = drive(tmp_path)
    detail = checks[name].detail
    assert checks[name].status == "warning" and result.facts[name] is None
    assert f"{says.split()[-1]} is too old; it must be at least {oldest} (" in detail and "install it with" in detail


def test_an_old_git_clones_nothing(tmp_path: Path, programs: Path) -> None:
    program(programs, "git", "echo 'git version 2.14.5'")
    with pytest.raises(PreconditionError, match=r"2\.14\.5 is too old"):
        drive(tmp_path, repo_url="https://example.org/a.git")


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.39.5", (2, 39, 5)), ("3.3a", (3, 3)), ("2.47.0.rc1", (2, 47, 0)), ("0.10.0", (0, 10, 0))],
)
def test_versions_are_compared_by_their_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(version) == numbers


def test_uv_is_found_where_its_installer_puts_it_outside_the_path(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/.local/bin").mkdir(parents=True)
    program(tmp_path / "home/.local/bin", "uv", "echo 'uv 0.9.1'")
    assert drive(tmp_path)[0].facts["uv"] == "0.9.1"


def test_a_python_that_the_packages_do_not_allow_is_refused(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "supported_python", lambda: SpecifierSet(">=3.99"))
    with pytest.raises(PreconditionError, match="is not supported"):
        drive(tmp_path)
    assert supported_python() == SpecifierSet(">=3.11")


def test_a_broken_tool_counts_as_missing_and_its_output_cannot_control_the_terminal(
    tmp_path: Path, programs: Path
) -> None:
    program(programs, "uv", "printf 'segfault\\033[2J'; exit 139")
    result, checks, _ = drive(tmp_path)
    assert result.facts["uv"] is None and checks["uv"].status == "warning"
    assert "segfault␛[2J" in checks["uv"].detail


def test_uv_is_installed_with_pip_if_requested(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = tmp_path / "python/bin"
    beside.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    # A Python whose `-m pip install … uv` puts a uv beside itself.
    program(
        beside,
        "python",
        f"echo \"Collecting $* in $PWD\"; printf '#!/bin/sh\\necho uv 1.2.3\\n' > {beside}/uv; /bin/chmod +x {beside}/uv",
    )
    result, checks, events = drive(tmp_path, install=True)
    assert checks["uv"].status == "ok" and result.facts["uv"] == "1.2.3"
    # From the root folder: `python -m pip` runs a pip.py of the folder that it is started in.
    assert "pip: Collecting -m pip install --disable-pip-version-check --no-input uv in /'" in str(events)


def test_an_environment_without_pip_gets_one_first(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "python/bin"
    beside.mkdir(parents=True)
    program(beside, "python", 'echo "$*"')
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find_spec(name, *rest)
    )
    *_, events = drive(tmp_path, install=True)
    lines = [event.text for event in events if isinstance(event, Message) and event.text.startswith("pip: ")]
    assert [line.split()[2] for line in lines] == ["ensurepip", "pip"]


def test_an_installation_that_fails_is_reported_and_does_not_end_the_stage(tmp_path: Path, programs: Path) -> None:
    beside = tmp_path / "python/bin"
    beside.mkdir(parents=True)
    program(beside, "python", "echo 'No module named pip' >&2; exit 1")
    result, checks, events = drive(tmp_path, install=True)
    assert checks["uv"].status == "warning" and result.facts["uv"] is None
    assert "No module named pip" in str(events)


def test_nothing_is_installed_unless_requested(tmp_path: Path, programs: Path) -> None:
    beside = tmp_path / "python/bin"
    beside.mkdir(parents=True)
    program(beside, "python", f"touch {tmp_path}/ran")
    drive(tmp_path)
    assert not (tmp_path / "ran").exists()


# -- the GPU -----------------------------------------------------------------------------------------------------------


def test_a_cpu_run_needs_no_driver(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.stages.toolchain.read_gpus", lambda **_: GpuReport(note="none"))
    assert drive(tmp_path, device="cpu")[1]["NVIDIA driver"].status == "skipped"
    assert drive(tmp_path)[1]["NVIDIA driver"].status == "warning"


@pytest.mark.fault("E5")
def test_processes_that_hold_gpu_memory_are_named_without_their_command_line(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["/bin/sleep", "979"], stdout=subprocess.DEVNULL) as other:
        gone = subprocess.Popen(["/bin/true"])
        zombie = gone.pid
        os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
        held = ((other.pid, 11 << 30), (zombie, None), (1 << 22, 1 << 30), (os.getpid(), 5))
        fake_nvml(tmp_path, monkeypatch, *held)
        try:
            result, checks, _ = drive(tmp_path)
        finally:
            other.kill()
            gone.wait()
    detail = checks["GPU 0"].detail
    assert checks["NVIDIA driver"].detail == result.facts["driver"] == "570.86.10"
    assert checks["GPU 0"].status == "warning"
    assert detail.startswith("NVIDIA L4␛[2J, 6.0 of 24.0 GiB free; used by ")
    assert f"process {other.pid} (sleep of " in detail and ", 11.0 GiB)" in detail and "979" not in detail
    assert f"process {zombie} (true of " in detail and "is a zombie" in detail
    assert f"process {1 << 22} (outside this container, or gone, 1.0 GiB)" in detail
    assert f"process {os.getpid()} " not in detail


@pytest.mark.fault("E5")
def test_preflight_reports_them_too_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(tmp_path, monkeypatch, (1 << 22, 3 << 30))
    (check,) = gpu_memory_held_by_others("cuda")
    assert check.status == "warning" and f"GPU 0: process {1 << 22} (outside" in check.detail
    assert list(gpu_memory_held_by_others("cpu")) == []


@pytest.mark.fault("E2")
def test_a_driver_that_fails_halfway_leaves_gaps(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = """
def refuse(handle): raise RuntimeError("NVML_ERROR_NOT_SUPPORTED")
nvmlDeviceGetMemoryInfo = nvmlDeviceGetComputeRunningProcesses = refuse
"""
    fake_nvml(tmp_path, monkeypatch, instead=refuses)
    assert drive(tmp_path)[1]["GPU 0"].detail == "NVIDIA L4␛[2J, memory unknown"


# -- torch -------------------------------------------------------------------------------------------------------------


def test_the_build_of_torch_is_read_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    written = "from typing import Optional\n__version__ = '2.9.1+cu128'\ndebug = False\ncuda: Optional[str] = '12.8'\n"
    (package / "version.py").write_text(written)
    info = tmp_path / "torch-2.9.1+cu128.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.1+cu128\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    build = read_torch_build()
    assert build == TorchBuild("2.9.1+cu128", "12.8")
    assert str(build) == "torch 2.9.1+cu128, built for CUDA 12.8"


def test_the_build_read_is_that_of_the_imported_torch() -> None:
    torch = pytest.importorskip("torch")
    assert read_torch_build() == TorchBuild(torch.__version__, torch.version.cuda, torch.version.hip)


@pytest.mark.parametrize(
    ("device", "cuda", "driver", "expected"),
    [
        ("auto", None, None, ""),
        ("auto", "13.0", None, ""),
        ("auto", "12.8", "525.60.13", ""),
        ("auto", "12.8", "520.61.05", "needs driver 525 or newer, and 520.61.05 is installed"),
        ("auto", "13.0", "570.86.10", "needs driver 580 or newer, and 570.86.10 is installed"),
        ("auto", "99.0", "570.86.10", ""),
        ("auto", None, "570.86.10", "the GPU is not used"),
        ("cpu", None, "570.86.10", ""),
        ("cpu", "13.0", "570.86.10", ""),
    ],
)
def test_torchs_build_is_compared_with_the_driver(
    device: str, cuda: str | None, driver: str | None, expected: str
) -> None:
    fault = driver_fault(TorchBuild("2.13.0", cuda), driver, device)
    assert expected in fault and bool(expected) == bool(fault)
    assert not fault or "--torch-backend=auto" in fault


# -- what a logout does ------------------------------------------------------------------------------------------------

SLEEP = shutil.which("sleep") or "sleep"
SESSION = "0::/user.slice/user-1000.slice/session-3.scope\n"
USER_MANAGER = "0::/user.slice/user-1000.slice/user@1000.service/tmux-spawn-2f.scope\n"
BATCH_JOB = "0::/system.slice/slurmstepd.scope/job_17/step_0/user/task_0\n"


@pytest.mark.fault("A9")
@pytest.mark.parametrize(
    ("belongs", "manager", "linger", "status", "expected"),
    [
        (SESSION, "KillUserProcesses=yes\nKillExcludeUsers=root", "no", "warning", "systemd-run --user --scope tmux"),
        (SESSION, "KillUserProcesses=yes\nKillExcludeUsers=root", "yes", "warning", "even in tmux"),
        (SESSION, "KillUserProcesses=no\nKillExcludeUsers=root", "no", "ok", "does not end this run"),
        (SESSION, "KillUserProcesses=yes\nKillExcludeUsers=root anna", "no", "ok", "does not end this run"),
        (SESSION, "KillUserProcesses=yes\nKillOnlyUsers=guest", "no", "ok", "does not end this run"),
        (USER_MANAGER, "KillUserProcesses=no", "no", "warning", "Linger=no"),
        (USER_MANAGER, "KillUserProcesses=yes", "yes", "ok", "does not end this run"),
        (BATCH_JOB, "KillUserProcesses=yes", "no", None, ""),
    ],
)
def test_a_logout_that_would_end_the_run_is_reported_with_the_remedy(
    tmp_path: Path,
    programs: Path,
    monkeypatch: pytest.MonkeyPatch,
    belongs: str,
    manager: str,
    linger: str,
    status: str | None,
    expected: str,
) -> None:
    answer_of_user = f"Name=anna\nLinger={linger}"
    program(programs, "loginctl", f'[ $# = 1 ] && printf "{manager}\n" || printf "{answer_of_user}\n"')
    monkeypatch.setattr(session_lifetime, "CGROUP", tmp_path / "cgroup")
    session_lifetime.CGROUP.write_text(belongs)
    result, checks, _ = drive(tmp_path, device="cpu")
    assert ("logout" in checks) == (status is not None)
    assert status is None or (checks["logout"].status == status and expected in checks["logout"].detail)
    assert result.facts["ends_at_logout"] == (status == "warning")


@pytest.mark.parametrize("script", ["exit 1", "sleep 60", "echo no such thing", None])
def test_a_login_manager_that_does_not_respond_is_not_a_failure(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    if script is not None:
        program(programs, "loginctl", script.replace("sleep", SLEEP))
    monkeypatch.setattr(session_lifetime, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(session_lifetime, "LOGINCTL_SECONDS", 0.3)
    session_lifetime.CGROUP.write_text(SESSION)
    assert session_lifetime.logout_behaviour() is None
