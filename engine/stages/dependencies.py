"""Stage 4: check installed packages against what the run needs, and check that the device can compute.

It installs nothing without --install.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Generator
from typing import Any

from engine import DISTRIBUTION
from engine.core.events import Check, CheckStatus, Event, Message
from engine.machine.conflicts import find_conflicts
from engine.machine.gpus import driver_version
from engine.machine.install import install, packages_error
from engine.machine.probe import IMPORTS, PROBE_SECONDS, probe_error, try_device
from engine.machine.requirements import PackageStatus, recheck, required_extras, required_packages
from engine.machine.torch_build import TorchBuild, driver_fault
from engine.run.results import DependenciesResult
from engine.security.sanitize import visible_line
from engine.stages.base import Context, StageEnd, StageRun


def environment_of(context: Context) -> dict[str, Any]:
    """What the probe's result depends on, as plain data; also the record of the versions that the run used."""
    return {
        "python": sys.executable,
        "host": socket.gethostname(),
        "device": context.config.device,
        "driver": driver_version(lambda: context.stop.requested),
        "versions": {item.requirement.name: item.version for item in required_packages(context.config) or []},
    }


def run(context: Context) -> StageRun:
    requirements_known = yield from _check_requirements(context)
    yield from _check_conflicts()
    before, environment = context.run.results.dependencies, environment_of(context)
    if before is not None and before.environment == environment and before.probe:
        found = dict(before.probe)
        name = visible_line(str(found["name"]))
        yield Check("device computes", "ok", f"{name}, as before; nothing has changed")
    else:
        found = yield from _check_device(context)
    present = "All present" if requirements_known else "Requirements not read"
    return StageEnd(f"{present}; {visible_line(str(found['name']))} computes", DependenciesResult(environment, found))


def _check_requirements(context: Context) -> Generator[Event, None, bool]:
    """Check the packages, and with --install, install missing ones. Returns whether the requirements could be read."""
    table = required_packages(context.config)
    if table is None:
        detail = f"{DISTRIBUTION} is not installed, so its requirements are unknown. `uv pip install -e .` installs it"
        yield Check("requirements", "warning", detail)
        return False
    for item in table:
        yield _package_check(item)
    missing = [item for item in table if not item.ok]
    if not missing:
        return True
    if not context.config.install:
        raise packages_error(missing, "Without --install, nothing is installed.")
    yield from install(missing, context.stop)
    table = recheck(missing)
    for item in table:
        yield _package_check(item)
    if still := [item for item in table if not item.ok]:
        raise packages_error(still, "uv reported success, but they are still missing.")
    if loaded := [item.requirement.name for item in table if item.requirement.name.replace("-", "_") in sys.modules]:
        old = f"An old version of {', '.join(loaded)} is loaded. To use the new one, run the same command again."
        yield Message("warning", old)
    return True


def _package_check(item: PackageStatus) -> Check:
    needs = str(item.requirement.specifier) or "any version"
    purpose = f", for {item.needed_for}" if item.needed_for else ""
    status: CheckStatus = "ok" if item.ok else "failed"
    return Check(item.requirement.name, status, visible_line(f"{item.version or 'missing'}; needs {needs}{purpose}"))


def _check_conflicts() -> Generator[Event, None, None]:
    found = find_conflicts()
    yield Check("conflicts", "warning" if found.run_packages else "ok", visible_line(str(found)))


def _check_device(context: Context) -> Generator[Event, None, dict[str, Any]]:
    """Import and compute in a child process. Returns what it found: device, name, torch, cuda, seconds."""
    config = context.config
    yield Message("info", f"Testing the imports and a computation on the device (up to {PROBE_SECONDS:.0f} s).")
    more = [extra.imports for extra in required_extras(config)]
    found = try_device(config.device, more, context.stop)
    failure = found.get("failure") or {}
    if failure.get("where") == "imports":
        yield Check("imports", "failed", visible_line(str(failure.get("what")), 400))
        raise probe_error(failure)
    if "cuda" in found:
        yield Check("imports", "ok", ", ".join(module for module, _ in (*IMPORTS, *more)))
        yield _driver_check(config.device, TorchBuild(str(found["torch"]), found["cuda"]), driver_version())
    if failure:
        yield Check("device computes", "failed", visible_line(str(failure.get("what")), 400))
        raise probe_error(failure)
    detail = f"{found['name']} ({found['device']}), torch {found['torch']}, matmul correct, {found['seconds']:.1f} s"
    yield Check("device computes", "ok", visible_line(detail))
    return found


def _driver_check(device: str, build: TorchBuild, driver: str | None) -> Check:
    """Compare torch's build with the driver. This only warns: the probe decides whether the device can compute."""
    fault = driver_fault(build, driver, device)
    detail = fault or f"{build}; {f'driver {driver}' if driver else 'no NVIDIA driver'}"
    return Check("torch and driver", "warning" if fault else "ok", visible_line(detail))
