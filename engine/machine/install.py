"""Install missing packages into the running environment on request: with uv, and uv itself with pip.

Build scripts are untrusted: they get no token (`engine.process.children`), and uv and pip start in the root folder, so
that no `pyproject.toml`, `uv.toml` or `pip.py` of a workspace affects them.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

from engine.core.errors import NetworkError, PreconditionError, Stage3Error
from engine.core.events import Event, Message
from engine.core.layout import RUN_LOG
from engine.core.system_errors import PERMISSION_ERRNOS, errno_in, error_of_errno
from engine.machine.programs import ASK_SECONDS, UV, find_uv
from engine.machine.requirements import PackageStatus
from engine.process.children import ChildResult, installer_settings, run_child, stream_child_as_messages
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line

INSTALL_SECONDS = 3600.0
INSTALL_UV_SECONDS = 600.0
TORCH_BACKEND_OPTION = "--torch-backend=auto"
"""Makes uv choose the build of torch that fits the driver."""
ROOT_FOLDER = Path("/")

# On many connections torch's wheel pauses for longer than uv's 30 s timeout, which uv reports as a bad archive.
_UV_SETTINGS = {"UV_HTTP_TIMEOUT": "300", "UV_NO_PROGRESS": "1"}
_FAILURES: tuple[tuple[str, type[Stage3Error], str], ...] = (
    (
        r"error sending request|dns error|timed? ?out|connect|Failed to (fetch|download)|tls|certificate|50[0-9] ",
        NetworkError,
        "Check the network and the proxy.",
    ),
    (
        r"requires-python|does not satisfy Python|No compatible Python|no wheels? with a matching Python",
        PreconditionError,
        "Use a Python version that the packages support: `uv venv --python 3.11`.",
    ),
    (r"No solution found|unsatisfiable|conflict", PreconditionError, "Relax the requirements that uv lists above."),
    (r"Permission denied|os error 13", PreconditionError, "Use your own environment: `uv venv`."),
)


def install_command(uv: str, items: Sequence[PackageStatus]) -> list[str]:
    """The install command. For torch, it selects the build that fits the driver, if uv supports that."""
    torch = (
        [TORCH_BACKEND_OPTION]
        if any(item.requirement.name == "torch" for item in items) and _supports_torch_backend(uv)
        else []
    )
    return [uv, "pip", "install", "--python", sys.executable, *torch, *(item.specification for item in items)]


def install(items: Sequence[PackageStatus], stop: StopToken) -> Generator[Event, None, None]:
    """Install these packages. Raises the error of `install_failure`. A retry is safe, because uv replaces whole packages."""
    uv = find_uv()
    if uv is None:
        raise packages_error(items, f"Installing them needs uv, which is missing: {UV.how_to_install}.")
    command = install_command(uv, items)
    if TORCH_BACKEND_OPTION not in command and any(item.requirement.name == "torch" for item in items):
        yield Message(
            "warning",
            f"This uv does not support {TORCH_BACKEND_OPTION}: installing the index's default build of torch.",
        )
    yield Message("info", f"Installing: {visible_line(shlex.join(command))}")
    result = yield from stream_child_as_messages(
        command,
        prefix="uv",
        limit_seconds=INSTALL_SECONDS,
        cwd=ROOT_FOLDER,
        extra={**installer_settings(), **_UV_SETTINGS},
        stop=stop,
    )
    importlib.invalidate_caches()
    if not result.ok:
        raise install_failure(result, shlex.join(command))


def install_uv(stop: StopToken) -> Generator[Event, None, str]:
    """Install uv with pip into this environment. Returns the reason for a failure; empty on success."""
    steps = [["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "uv"]]
    if importlib.util.find_spec("pip") is None:  # environments created by uv have no pip
        steps.insert(0, ["-m", "ensurepip"])
    for step in steps:
        argv = [sys.executable, *step]
        yield Message("info", f"Installing uv: {visible_line(shlex.join(argv))}")
        result = yield from stream_child_as_messages(
            argv,
            prefix="pip",
            limit_seconds=INSTALL_UV_SECONDS,
            cwd=ROOT_FOLDER,
            extra=installer_settings(),
            stop=stop,
        )
        if not result.ok:
            break
    importlib.invalidate_caches()
    return "" if find_uv() is not None else f"installing uv failed ({visible_line(result.ending, 300)})"


def install_failure(result: ChildResult, command: str) -> Stage3Error:
    """The error for a failed installation: exit code 3, 5 or 6."""
    what = "uv could not install the missing packages."
    why = f"uv: {visible_line(result.ending, 800).rstrip('.')}. The full output is in {RUN_LOG}."
    number = errno_in(" ".join(result.tail))
    if number is not None and number not in PERMISSION_ERRNOS:  # a full disk also ends a download
        error = error_of_errno(number, what, why)
        error.what_to_do += f" `uv cache clean` empties uv's cache. To install by hand: `{command}`"
        return error
    kind, what_to_do = _classify(result)
    return kind(
        what,
        why,
        f"{what_to_do} Then run the same command again, or install by hand: `{command}`",
    )


def _classify(result: ChildResult) -> tuple[type[Stage3Error], str]:
    if result.timed_out:
        return NetworkError, "Check the network and the proxy."
    if result.killed_by:
        return PreconditionError, "Check whether memory ran out, or whether something killed it."
    output = " ".join(result.tail)
    for pattern, kind, what_to_do in _FAILURES:
        if re.search(pattern, output, re.IGNORECASE):
            return kind, what_to_do
    return PreconditionError, "Fix what uv reports."


def packages_error(items: Sequence[PackageStatus], why: str) -> PreconditionError:
    names = ", ".join(f"{item.requirement.name} ({item.version or 'missing'})" for item in items)
    uv = find_uv()
    command = shlex.join(install_command(uv or "uv", items))
    return PreconditionError(
        f"The run needs other package versions: {names}.", why, f"Run `{command}`, or add --install."
    )


def _supports_torch_backend(uv: str) -> bool:
    try:
        result = run_child([uv, "pip", "install", "--help"], limit_seconds=ASK_SECONDS)
    except PreconditionError:
        return True  # uv is missing, and the version that we install will be new enough
    return any("--torch-backend" in line for line in result.output)
