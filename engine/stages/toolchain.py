"""Stage 2: the programs that the run uses, with versions, and how to get those that are missing or too old."""

from __future__ import annotations

import platform
import sys
from collections.abc import Generator
from typing import Any

from engine.core.errors import PreconditionError
from engine.core.events import Check, CheckStatus, Event, Message
from engine.machine.gpus import GpuReport, read_gpus
from engine.machine.install import install_uv
from engine.machine.programs import GIT, GIT_PURPOSE, TMUX, UV, FoundProgram, find_program
from engine.machine.requirements import supported_python
from engine.machine.session_lifetime import in_multiplexer, logout_behaviour
from engine.machine.torch_build import TorchBuild, driver_fault, read_torch_build
from engine.run.results import ToolchainResult
from engine.security.sanitize import visible_line
from engine.stages.base import Context, StageEnd, StageRun

GIB = 1 << 30


def run(context: Context) -> StageRun:
    python = yield from _python()
    uv = yield from _uv(context)
    git = find_program(GIT)
    needed = context.config.repo_url is not None
    yield _program_check(git, "", "" if needed else "; only needed for --repo-url", failed=needed)
    if needed and not git.ok:
        raise git.as_error(GIT_PURPOSE)
    tmux = find_program(TMUX)
    yield _program_check(tmux, _multiplexer_remark(), "; a run survives its terminal, but a logout may end it")
    logout = logout_behaviour()
    if logout is not None:
        yield Check("logout", "warning" if logout.ends_the_run else "ok", logout.detail)
    report = read_gpus(with_holders=True, cancelled=lambda: context.stop.requested)
    context.stop.raise_if_requested()
    build = read_torch_build()
    driver = yield from _driver(report, context.config.device)
    yield _cuda(build, driver, context.config.device)
    versions: dict[str, Any] = {
        "python": python,
        "uv": _version_of(uv),
        "git": _version_of(git),
        "tmux": _version_of(tmux),
        "driver": driver,
    }
    found = [f"{name} {version}" for name, version in versions.items() if version]
    missing = [name for name, version in versions.items() if not version]
    result = ToolchainResult(
        **versions,
        ends_at_logout=logout is not None and logout.ends_the_run,
        executable=sys.executable,
        torch=None if build is None else build.__dict__,
    )
    return StageEnd(", ".join(found) + (f"; without {', '.join(missing)}" if missing else ""), result)


def _python() -> Generator[Event, None, str]:
    version, needed = platform.python_version(), supported_python()
    fits = needed is None or needed.contains(version, prereleases=True)
    fault = "" if fits else f"; the run needs {needed}: create an environment with `uv venv --python 3.11`"
    yield Check("python", "ok" if fits else "failed", f"{version} at {visible_line(sys.executable)}{fault}")
    if not fits:
        raise PreconditionError(
            f"Python {version} is not supported.",
            f"The packages of the run need {needed}.",
            "Create an environment with `uv venv --python 3.11`, and install stage3-tui there.",
        )
    return version


def _uv(context: Context) -> Generator[Event, None, FoundProgram]:
    uv = find_program(UV)
    if uv.path is None and context.config.install:
        fault = yield from install_uv(context.stop)
        if fault:
            yield Message("warning", f"{fault}.")
        uv = find_program(UV)
    yield _program_check(uv, "", ", or with --install; only needed to install packages")
    return uv


def _program_check(found: FoundProgram, remark: str, hint: str, *, failed: bool = False) -> Check:
    """`remark` follows the version, `hint` follows the fault."""
    if not found.ok:
        return Check(
            found.program.name,
            "failed" if failed else "warning",
            f"{found.fault}; install it with {found.program.how_to_install}{hint}",
        )
    return Check(found.program.name, "ok", f"{found.version}, {remark or visible_line(str(found.path))}")


def _version_of(found: FoundProgram) -> str | None:
    return found.version if found.ok else None


def _multiplexer_remark() -> str:
    return "this run is inside it" if in_multiplexer() else "this run is outside it"


def _driver(report: GpuReport, device: str) -> Generator[Event, None, str | None]:
    """The driver's version, and each GPU with its free memory and the processes that use the rest."""
    if report.driver is None:
        is_needed = device != "cpu"
        hint = "get it at https://www.nvidia.com/drivers; without it, the run uses the CPU, which is slow"
        status: CheckStatus = "warning" if is_needed else "skipped"
        why = visible_line(report.note, 200) or "no response"
        yield Check("NVIDIA driver", status, f"{why}; {hint if is_needed else 'not needed with --device cpu'}")
        return None
    version = visible_line(report.driver, 60)
    yield Check("NVIDIA driver", "ok", version)
    if report.note:
        yield Check("GPU", "warning", visible_line(report.note, 200))
    for gpu, holders in zip(report.gpus, report.holders, strict=True):
        if gpu.memory_total_bytes is None or gpu.memory_used_bytes is None:
            memory = "memory unknown"
        else:
            free = gpu.memory_total_bytes - gpu.memory_used_bytes
            memory = f"{free / GIB:.1f} of {gpu.memory_total_bytes / GIB:.1f} GiB free"
        status = "warning" if holders and device != "cpu" else "ok"
        held = f"; used by {', '.join(str(holder) for holder in holders)}" if holders else ""
        yield Check(f"GPU {gpu.index}", status, f"{visible_line(gpu.name, 60)}, {memory}{visible_line(held)}")
    return version


def _cuda(build: TorchBuild | None, driver: str | None, device: str) -> Check:
    if build is None:
        return Check(
            "CUDA of torch", "warning", "torch is not installed; stage dependencies installs it with --install"
        )
    fault = driver_fault(build, driver, device)
    return Check("CUDA of torch", "warning" if fault else "ok", visible_line(fault or str(build)))
