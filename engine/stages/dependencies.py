"""Stage 4: what is installed against what the run needs, and whether the device really computes.

The imports and the computation happen in a child with a time limit: a driver that hangs or a library that crashes
must not take the run along.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import socket
import sys
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.children import ChildResult, run_child, stream_child
from engine.config import load_config
from engine.errors import DiskError, NetworkError, PreconditionError, Stage3Error
from engine.events import Check, CheckStatus, Event, Message
from engine.stages.base import Context, StageResult, StageRun
from engine.stages.toolchain import GET_UV, find_uv
from engine.telemetry import Gpus
from engine.text import visible_line

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OUTPUTS: tuple[str, ...] = ()
NAME = "dependencies"
DISTRIBUTION = "stage3-tui"

PROBE_SECONDS = 120.0
INSTALL_SECONDS = 3600.0
PROBE_MARK = "stage3-probe "

# What the later stages import. Their top modules are lazy, so the classes are named.
IMPORTS: tuple[tuple[str, str], ...] = (
    ("torch", "Tensor"),
    ("transformers", "AutoModelForCausalLM"),
    ("peft", "PeftModel"),
    ("trl", "DPOTrainer"),
    ("datasets", "load_dataset"),
    ("safetensors.torch", "load_file"),
)
# The oldest driver branch for each major version of CUDA, by NVIDIA's table of minor version compatibility.
OLDEST_DRIVER = {"11": 450, "12": 525, "13": 580}


@dataclass(frozen=True)
class Installed:
    """One requirement beside what is installed."""

    requirement: Requirement
    version: str | None
    """None where it is not installed."""

    @property
    def ok(self) -> bool:
        return self.version is not None and _fits(self.requirement, self.version)


def depends_on(context: Context) -> dict[str, Any] | None:
    """Never reused as a whole: another host or a newer textual must not undo a run's pairs. The probe's result is kept
    while `environment_of` stays the same.
    """
    return None


def environment_of(context: Context) -> dict[str, Any]:
    """What the outcome of the probe depends on, as plain data."""
    requirements = required() or []
    return {
        "python": sys.executable,
        "host": socket.gethostname(),
        "device": context.config.device,
        "driver": Gpus().driver_version(),
        "versions": {item.requirement.name: item.version for item in installed(requirements)},
    }


def run(context: Context) -> StageRun:
    were_read = yield from _check_requirements(context)
    yield from _check_conflicts()
    before, environment = context.run.result(NAME), environment_of(context)
    if before.get("environment") == environment and before.get("probe"):
        found = before["probe"]
        yield Check(NAME, "device computes", "ok", f"{found['name']}, as tried before; nothing has changed since")
    else:
        found = yield from _check_device(context)
    summary = (
        f"{'All present' if were_read else 'Requirements were not read'}; {visible_line(str(found['name']))} computes"
    )
    return StageResult(summary, {"environment": environment, "probe": found})


# -- versions ----------------------------------------------------------------------------------------------------------


def required() -> list[Requirement] | None:
    """What stage3-tui's own metadata asks for on this Python, extras left out; None where it is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    return [item for item in map(Requirement, lines) if item.marker is None or item.marker.evaluate({"extra": ""})]


def installed(requirements: Iterable[Requirement]) -> list[Installed]:
    return [Installed(item, _version(item.name)) for item in requirements]


def conflicts() -> list[str]:
    """Pairs of installed packages that do not go together, each as a sentence."""
    from packaging.requirements import InvalidRequirement, Requirement

    versions = {_canonical(dist.name): dist.version for dist in metadata.distributions() if dist.name}
    found = []
    for dist in metadata.distributions():
        for line in dist.requires or ():
            try:
                needs = Requirement(line)
            except InvalidRequirement:
                found.append(f"{dist.name} has a requirement that cannot be read: {line}")
                continue
            if needs.marker is not None and not needs.marker.evaluate({"extra": ""}):
                continue
            version = versions.get(_canonical(needs.name))
            if version is None or not _fits(needs, version):
                found.append(
                    f"{dist.name} {dist.version} needs {needs.name}{needs.specifier}, there is {version or 'none'}"
                )
    return sorted(set(found))


def _check_requirements(context: Context) -> Generator[Event, None, bool]:
    """Compare, and install where asked. Returns whether there was anything to compare with."""
    requirements = required()
    if requirements is None:
        detail = (
            f"{DISTRIBUTION} is not installed here: its requirements were not read. `uv pip install -e .` installs it"
        )
        yield Check(NAME, "requirements", "warning", detail)
        return False
    table = installed(requirements)
    for item in table:
        yield _line_of(item)
    lacking = [item for item in table if not item.ok]
    if not lacking:
        return True
    if not context.config.install:
        raise _lacking(lacking, "Nothing was installed without --install.")
    yield from _install(context, lacking)
    importlib.invalidate_caches()
    table = installed(item.requirement for item in lacking)
    for item in table:
        yield _line_of(item)
    if still := [item for item in table if not item.ok]:
        raise _lacking(still, "uv ended well, yet they are not there.")
    if loaded := [item.requirement.name for item in table if item.requirement.name.replace("-", "_") in sys.modules]:
        text = (
            f"{', '.join(loaded)} was loaded before it was installed: start the same command again to use the new one."
        )
        yield Message("warning", text, NAME)
    return True


def _line_of(item: Installed) -> Check:
    needs = str(item.requirement.specifier) or "any version"
    status: CheckStatus = "ok" if item.ok else "failed"
    return Check(NAME, item.requirement.name, status, f"{item.version or 'missing'}; needs {needs}")


def _lacking(items: list[Installed], why: str) -> PreconditionError:
    names = ", ".join(f"{item.requirement.name} ({item.version or 'missing'})" for item in items)
    return PreconditionError(
        f"The run needs other versions: {names}.",
        why,
        f"`{shlex.join(_install_command('uv', items))}`, or add --install.",
    )


def _install_command(uv: str, items: list[Installed]) -> list[str]:
    wanted = [f"{item.requirement.name}{item.requirement.specifier}" for item in items]
    return [uv, "pip", "install", "--python", sys.executable, *wanted]


def _install(context: Context, items: list[Installed]) -> Generator[Event, None, None]:
    uv = find_uv()
    if uv is None:
        raise _lacking(items, f"uv, which would install them, is missing: `{GET_UV}`.")
    command = _install_command(uv, items)
    yield Message("info", f"Installing: {visible_line(shlex.join(command))}", NAME)
    # A wheel of torch takes longer than uv's 30 s between two reads on many lines, and is then called a bad archive.
    extra = {"UV_HTTP_TIMEOUT": "300", "UV_NO_PROGRESS": "1"}
    lines = stream_child(command, limit_seconds=INSTALL_SECONDS, extra=extra, stop=context.stop)
    while True:
        try:
            yield Message("info", f"uv: {next(lines)}", NAME)
        except StopIteration as end:
            result: ChildResult = end.value
            break
    if not result.ok:
        raise _install_failure(result, shlex.join(command))


def _install_failure(result: ChildResult, command: str) -> Stage3Error:
    said = " ".join(result.tail)
    kind: type[Stage3Error] = PreconditionError
    if re.search(r"No space left|Disk quota|os error 28", said):
        kind = DiskError
    elif result.timed_out or re.search(
        r"error sending request|dns error|timed out|connect|Failed to fetch", said, re.I
    ):
        kind = NetworkError
    return kind(
        "uv could not install what is missing.",
        f"uv: {visible_line(result.ending, 800)}",
        f"Try it by hand: `{command}`",
    )


def _check_conflicts() -> Generator[Event, None, None]:
    found = conflicts()
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    detail = visible_line("; ".join(found[:5]) + more) if found else "none between the installed packages"
    yield Check(NAME, "conflicts", "warning" if found else "ok", detail)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(requirement: Requirement, version: str) -> bool:
    """Pre-releases fit: whoever installed one wanted it."""
    from packaging.version import InvalidVersion

    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -- the device --------------------------------------------------------------------------------------------------------


def _check_device(context: Context) -> Generator[Event, None, dict[str, Any]]:
    """Import and compute in a child. Returns what it found: device, name, torch, cuda, seconds."""
    yield Message("info", f"Trying the imports and a computation on the device, {PROBE_SECONDS:.0f} s at most.", NAME)
    code = "from engine.stages.dependencies import report_probe; report_probe()"
    # The folder of the package comes first on the path of `python -c`: the child runs the code that runs here.
    argv, cwd = [sys.executable, "-c", code, context.config.device], Path(__file__).resolve().parents[2]
    result = run_child(argv, limit_seconds=PROBE_SECONDS, cwd=cwd, stop=context.stop)
    found = _reported(result)
    failure = found.get("failure") or {}
    if failure.get("where") == "imports":
        yield Check(NAME, "imports", "failed", visible_line(str(failure.get("what", "")), 400))
    elif "cuda" in found:
        yield Check(NAME, "imports", "ok", ", ".join(module for module, _ in IMPORTS))
        yield _driver_check(context.config.device, found, Gpus().driver_version())
    if failure or not result.ok:
        what = visible_line(str(failure.get("what") or f"The trial on the device: {result.ending}"), 600)
        if failure.get("where") != "imports":
            yield Check(NAME, "device computes", "failed", what)
        raise PreconditionError(
            what,
            str(failure.get("why") or "Imports and a small computation were tried in a process of their own."),
            str(failure.get("what_to_do") or "Run `stage3-tui doctor`; --device cpu leaves the GPU out."),
        )
    detail = f"{found['name']} ({found['device']}), torch {found['torch']}, matmul right, {found['seconds']:.1f} s"
    yield Check(NAME, "device computes", "ok", visible_line(detail))
    return found


def _reported(result: ChildResult) -> dict[str, Any]:
    """The report of the child; empty where it made none."""
    for line in reversed(result.output):
        if line.startswith(PROBE_MARK):
            try:
                report = json.loads(line.removeprefix(PROBE_MARK))
            except ValueError:
                return {}
            return report if isinstance(report, dict) else {}
    return {}


def _driver_check(device: str, found: dict[str, Any], driver: str | None) -> Check:
    """torch's build against the driver. Only warns: whether the wanted device computes is tried, not concluded."""
    build = f"torch {found['torch']}" + (f" for CUDA {found['cuda']}" if found["cuda"] else ", a build without CUDA")
    oldest = OLDEST_DRIVER.get(str(found["cuda"]).split(".")[0])
    status: CheckStatus = "ok"
    if driver is None:
        detail = f"{build}; no NVIDIA driver"
    elif device != "cpu" and not found["cuda"]:
        status, detail = (
            "warning",
            f"{build}, though there is driver {driver}: the GPU is not used. Install a CUDA build",
        )
    elif oldest is not None and int(re.match(r"\d*", driver)[0] or 0) < oldest:  # type: ignore[index]
        status, detail = "warning", f"{build} needs driver {oldest} or newer, there is {driver}: update the driver"
    else:
        detail = f"{build}; driver {driver}"
    return Check(NAME, "torch and driver", status, visible_line(detail))


# -- in the child ------------------------------------------------------------------------------------------------------


def report_probe() -> None:
    """The child's whole program: try, and print one line of JSON."""
    report = probe(sys.argv[1])
    print(PROBE_MARK + json.dumps(report), flush=True)


def probe(device_name: str) -> dict[str, Any]:
    """Import what the run imports and multiply two matrices on the device.

    Returns device, name, torch, cuda (None for a build without) and seconds; `failure` holds where, what, why and
    what_to_do in place of what could not be found out.
    """
    started = time.monotonic()
    for module, attribute in IMPORTS:
        try:
            getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever a broken package raises is what is to be told
            what = f"{module}.{attribute} cannot be imported: {type(error).__name__}: {str(error)[:600]}"
            todo = f"Install it again: `uv pip install --python {sys.executable} --reinstall {module.split('.')[0]}`"
            return {"failure": {"where": "imports", "what": what, "why": "The run uses it.", "what_to_do": todo}}
    import torch

    from engine.models.loading import resolve_device

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    try:
        device = resolve_device(load_config({"device": device_name}, environment={}))
        is_right = _multiply(device)
    except Stage3Error as error:
        return {**found, "failure": {"where": "device", **error.as_dict()}}
    except Exception as error:  # CUDA's errors are of many classes
        what = f"{device_name} does not compute: {type(error).__name__}: {str(error)[:600]}"
        return {**found, "failure": {"where": "device", "what": what}}
    if not is_right:
        return {**found, "failure": {"where": "device", "what": f"{device} multiplies two matrices wrongly."}}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {**found, "device": str(device), "name": name, "seconds": round(time.monotonic() - started, 2)}


def _multiply(device: Any, size: int = 64) -> bool:
    """Whether a product of small whole numbers, exact in every float format in use, is what Python says it is."""
    import torch

    left = [[(3 * row + column) % 5 for column in range(size)] for row in range(size)]
    right = [[(row + 2 * column) % 3 for column in range(size)] for row in range(size)]
    known = [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*right, strict=True)] for row in left
    ]
    product = torch.tensor(left, dtype=torch.float32, device=device) @ torch.tensor(
        right, dtype=torch.float32, device=device
    )
    return bool(torch.equal(product.cpu(), torch.tensor(known, dtype=torch.float32)))
