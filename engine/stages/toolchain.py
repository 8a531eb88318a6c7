"""Stage 2: the programs around the run, each with its version; what is missing says how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from engine.children import ChildResult, run_child, stream_child
from engine.errors import PreconditionError
from engine.events import Check, CheckStatus, Event, Message
from engine.stages.base import Context, StageResult, StageRun
from engine.telemetry import Gpus
from engine.text import visible_line

OUTPUTS: tuple[str, ...] = ()
NAME = "toolchain"

ASK_SECONDS = 20.0
INSTALL_SECONDS = 600.0
GET_UV = "curl -LsSf https://astral.sh/uv/install.sh | sh"


def depends_on(context: Context) -> dict[str, Any] | None:
    """Never reused: looking takes a moment, and an updated tmux must not undo a run's pairs."""
    return None


def run(context: Context) -> StageRun:
    python = platform.python_version()
    yield Check(NAME, "python", "ok", f"{python} at {visible_line(sys.executable)}")
    uv = yield from _uv(context)
    git = yield from _git(context)
    tmux = yield from _tmux()
    driver = yield from _driver(context.config.device)
    facts = {"python": python, "executable": sys.executable, "uv": uv, "git": git, "tmux": tmux, "driver": driver}
    there = [f"{name} {facts[name]}" for name in ("python", "uv", "git", "tmux", "driver") if facts[name]]
    missing = [name for name in ("uv", "git", "tmux", "driver") if not facts[name]]
    return StageResult(", ".join(there) + (f"; without {', '.join(missing)}" if missing else ""), facts)


def find_uv() -> str | None:
    """The uv program: on PATH, beside this Python, or in the package `uv`; None where there is none."""
    beside = str(Path(sys.executable).parent)
    if found := shutil.which("uv", path=os.pathsep.join((os.environ.get("PATH", os.defpath), beside))):
        return found
    if importlib.util.find_spec("uv") is None:
        return None
    import uv  # type: ignore[import-not-found,unused-ignore]

    try:
        return str(uv.find_uv_bin())
    except (AttributeError, FileNotFoundError):  # some other package of this name, or one without its program
        return None


def _uv(context: Context) -> Generator[Event, None, str | None]:
    path = find_uv()
    if path is None and context.config.install:
        path = yield from _install_uv(context)
    if path is None:
        hint = f"missing; install it with --install, or with `{GET_UV}` (only installing needs it)"
        yield Check(NAME, "uv", "warning", hint)
        return None
    return (yield from _version("uv", [path, "--version"], path))


def _install_uv(context: Context) -> Generator[Event, None, str | None]:
    """Install uv with pip into the running environment; None where that failed, which is told."""
    argv = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "uv"]
    yield Message("info", f"Installing uv: {visible_line(' '.join(argv))}", NAME)
    lines = stream_child(argv, limit_seconds=INSTALL_SECONDS, stop=context.stop)
    while True:
        try:
            yield Message("info", f"pip: {next(lines)}", NAME)
        except StopIteration as end:
            result: ChildResult = end.value
            break
    importlib.invalidate_caches()
    path = find_uv()
    if path is None:
        yield Message("warning", f"uv could not be installed ({visible_line(result.ending, 300)}).", NAME)
    return path


def _git(context: Context) -> Generator[Event, None, str | None]:
    path = shutil.which("git")
    if path is not None:
        return (yield from _version("git", [path, "--version"], path))
    needed = context.config.repo_url is not None
    get = "`apt install git`, or your system's package manager"
    yield Check(NAME, "git", "failed" if needed else "warning", f"missing; get it with {get}")
    if needed:
        raise PreconditionError("git is missing.", "--repo-url is cloned with it.", f"Install it with {get}.")
    return None


def _tmux() -> Generator[Event, None, str | None]:
    path = shutil.which("tmux")
    if path is None:
        hint = "missing; a run goes on without its terminal, but a logout may end it. `apt install tmux`, or `screen`"
        yield Check(NAME, "tmux", "warning", hint)
        return None
    inside = "this run is in it" if os.environ.get("TMUX") or os.environ.get("STY") else "this run is not in it"
    return (yield from _version("tmux", [path, "-V"], inside))


def _driver(device: str) -> Generator[Event, None, str | None]:
    gpus = Gpus()
    version = gpus.driver_version()
    if version is not None:
        version = visible_line(str(version), 60)
        names = ", ".join(visible_line(gpu.name, 60) for gpu in gpus.read()) or "no GPU"
        yield Check(NAME, "NVIDIA driver", "ok", f"{version}: {names}")
        return version
    status: CheckStatus = "skipped" if device == "cpu" else "warning"
    hint = (
        "--device cpu needs none"
        if device == "cpu"
        else "see https://www.nvidia.com/drivers; without it the CPU computes"
    )
    yield Check(NAME, "NVIDIA driver", status, f"{visible_line(gpus.note, 200) or 'it does not answer'}; {hint}")
    return None


def _version(name: str, argv: list[str], remark: str) -> Generator[Event, None, str | None]:
    """Ask a program for its version. One that does not answer counts as missing."""
    try:
        result = run_child(argv, limit_seconds=ASK_SECONDS)
    except PreconditionError as error:
        yield Check(NAME, name, "warning", f"{error.what} {error.why}")
        return None
    found = re.search(r"\d+(\.\w+)+", " ".join(result.output))
    if not result.ok or found is None:
        yield Check(
            NAME,
            name,
            "warning",
            f"{visible_line(argv[0])} does not say its version: {visible_line(result.ending, 200)}",
        )
        return None
    yield Check(NAME, name, "ok", f"{found[0]}, {visible_line(remark)}")
    return found[0]
