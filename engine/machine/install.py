"""Installing on request: what is missing with uv, and uv itself with pip, into the environment that runs.

A package's build script is a stranger's program: it gets no token (`engine.process.children`), and uv and pip start in the root
folder, where no `pyproject.toml`, `uv.toml` or `pip.py` of a workspace speaks to them.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

from engine.core.errors import DiskError, NetworkError, PreconditionError, Stage3Error
from engine.core.events import Event, Message
from engine.core.layout import RUN_LOG
from engine.machine.programs import ASK_SECONDS, UV, find_uv
from engine.machine.requirements import PackageStatus
from engine.process.children import ChildResult, installer_settings, run_child, stream_child_as_messages
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line

INSTALL_SECONDS = 3600.0
INSTALL_UV_SECONDS = 600.0
FOR_TORCH = "--torch-backend=auto"
"""Of all builds of torch uv takes the one for this driver."""
NOWHERE = Path("/")

# A wheel of torch takes longer than uv's 30 s between two reads on many lines, and is then called a bad archive.
_PATIENCE = {"UV_HTTP_TIMEOUT": "300", "UV_NO_PROGRESS": "1"}
# The first that fits counts: a full disk ends a download, too.
_WORDS: tuple[tuple[str, type[Stage3Error], str], ...] = (
    (
        r"No space left|Disk quota|os error (28|122)",
        DiskError,
        "Free some space (`uv cache clean` empties uv's cache).",
    ),
    (
        r"error sending request|dns error|timed? ?out|connect|Failed to (fetch|download)|tls|certificate|50[0-9] ",
        NetworkError,
        "Check the network and the proxy.",
    ),
    (
        r"requires-python|does not satisfy Python|No compatible Python|no wheels? with a matching Python",
        PreconditionError,
        "Use a Python for which the packages are made: `uv venv --python 3.11`.",
    ),
    (r"No solution found|unsatisfiable|conflict", PreconditionError, "Loosen what the lines above name."),
    (r"Permission denied|os error 13", PreconditionError, "Use an environment of your own: `uv venv`."),
)


def install_command(uv: str, items: Sequence[PackageStatus]) -> list[str]:
    """The line that installs them; with torch among them, and a uv that knows how, torch's build by the driver."""
    torch = [FOR_TORCH] if any(item.requirement.name == "torch" for item in items) and _knows_torch(uv) else []
    return [uv, "pip", "install", "--python", sys.executable, *torch, *(item.wanted for item in items)]


def install(items: Sequence[PackageStatus], stop: StopToken) -> Generator[Event, None, None]:
    """Install them. Raises the error of what went wrong; to start again is safe, uv changes a package as a whole."""
    uv = find_uv()
    if uv is None:
        raise missing_tool(items, f"uv, which would install them, is missing: {UV.get}.")
    command = install_command(uv, items)
    if FOR_TORCH not in command and any(item.requirement.name == "torch" for item in items):
        yield Message("warning", f"This uv does not know {FOR_TORCH}: torch comes as the index has it.")
    yield Message("info", f"Installing: {visible_line(shlex.join(command))}")
    result = yield from stream_child_as_messages(
        command,
        speaker="uv",
        limit_seconds=INSTALL_SECONDS,
        cwd=NOWHERE,
        extra={**installer_settings(), **_PATIENCE},
        stop=stop,
    )
    importlib.invalidate_caches()
    if not result.ok:
        raise install_failure(result, shlex.join(command))


def install_uv(stop: StopToken) -> Generator[Event, None, str]:
    """Install uv with pip into this environment. Returns why it could not be; empty where it is there now."""
    steps = [["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "uv"]]
    if importlib.util.find_spec("pip") is None:  # environments that uv makes have none
        steps.insert(0, ["-m", "ensurepip"])
    for step in steps:
        argv = [sys.executable, *step]
        yield Message("info", f"Installing uv: {visible_line(shlex.join(argv))}")
        result = yield from stream_child_as_messages(
            argv,
            speaker="pip",
            limit_seconds=INSTALL_UV_SECONDS,
            cwd=NOWHERE,
            extra=installer_settings(),
            stop=stop,
        )
        if not result.ok:
            break
    importlib.invalidate_caches()
    return "" if find_uv() is not None else f"uv could not be installed ({visible_line(result.ending, 300)})"


def install_failure(result: ChildResult, command: str) -> Stage3Error:
    """What a person can do about an installation that failed: exit code 3, 5 or 6."""
    kind, what_to_do = _told_apart(result)
    return kind(
        "uv could not install what is missing.",
        f"uv: {visible_line(result.ending, 800).rstrip('.')}. All of it is in {RUN_LOG}.",
        f"{what_to_do} Then start the same command again, or try by hand: `{command}`",
    )


def _told_apart(result: ChildResult) -> tuple[type[Stage3Error], str]:
    if result.timed_out:
        return NetworkError, "Check the network and the proxy."
    if result.killed_by:
        return PreconditionError, "Somebody ended it, or memory ran out."
    said = " ".join(result.tail)
    for pattern, kind, what_to_do in _WORDS:
        if re.search(pattern, said, re.IGNORECASE):
            return kind, what_to_do
    return PreconditionError, "Mend what uv names."


def missing_tool(items: Sequence[PackageStatus], why: str) -> PreconditionError:
    names = ", ".join(f"{item.requirement.name} ({item.version or 'missing'})" for item in items)
    uv = find_uv()
    command = shlex.join(install_command(uv or "uv", items))
    return PreconditionError(f"The run needs other versions: {names}.", why, f"`{command}`, or add --install.")


def _knows_torch(uv: str) -> bool:
    try:
        answer = run_child([uv, "pip", "install", "--help"], limit_seconds=ASK_SECONDS)
    except PreconditionError:
        return True  # there is no uv yet, and the one that is installed will
    return any("--torch-backend" in line for line in answer.output)
