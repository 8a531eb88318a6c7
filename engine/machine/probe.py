"""Check in a child process, with a time limit, that all imports work and the device computes: a driver that hangs or a library
that crashes must not end the run.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.core.config import load_config
from engine.core.errors import PreconditionError, Stage3Error
from engine.core.system_errors import MEANINGS, errno_of, error_of_errno
from engine.machine.device import resolve_device
from engine.process.children import ChildResult, run_child
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line

PROBE_SECONDS = 120.0
PROBE_MARK = "stage3-probe "

# What later stages import. The top-level modules load lazily, so each entry names something in them.
IMPORTS: tuple[tuple[str, str], ...] = (
    ("torch", "Tensor"),
    ("transformers", "AutoModelForCausalLM"),
    ("peft", "PeftModel"),
    ("trl", "DPOTrainer"),
    ("datasets", "load_dataset"),
    ("safetensors.torch", "load_file"),
)


def try_device(device: str, more: Sequence[tuple[str, str]] = (), stop: StopToken | None = None) -> dict[str, Any]:
    """Import IMPORTS and `more` and compute, in a child. Returns its report (`probe`), with a `failure` if it crashed or hung."""
    code = f"from {__name__} import report_probe; report_probe()"
    # The package's folder comes first on the path of `python -c`, so the child runs the same code.
    wanted = json.dumps([*IMPORTS, *more])
    argv, cwd = [sys.executable, "-c", code, device, wanted], Path(__file__).resolve().parents[2]
    result = run_child(argv, limit_seconds=PROBE_SECONDS, cwd=cwd, stop=stop)
    report = _reported(result)
    if not result.ok and "failure" not in report:
        report["failure"] = {
            "where": "device",
            "what": f"The test on the device failed: {visible_line(result.ending, 600)}",
        }
    return report


def probe_error(failure: dict[str, Any]) -> Stage3Error:
    """The error for a failure in the child. A system error (no memory under `ulimit -v`) has its own exit code."""
    number = failure.get("errno")
    if number in MEANINGS:
        return error_of_errno(number, visible_line(str(failure.get("what")), 600))
    return PreconditionError(
        visible_line(str(failure.get("what")), 600),
        str(failure.get("why") or "The imports and a small computation ran in a separate process."),
        str(failure.get("what_to_do") or "Run `stage3-tui doctor`, or use --device cpu to avoid the GPU."),
    )


def _reported(result: ChildResult) -> dict[str, Any]:
    """The child's report; empty if it printed none."""
    for line in reversed(result.output):
        if line.startswith(PROBE_MARK):
            try:
                report = json.loads(line.removeprefix(PROBE_MARK))
            except ValueError:
                return {}
            return report if isinstance(report, dict) else {}
    return {}


# -- in the child ------------------------------------------------------------------------------------------------------


def report_probe() -> None:
    """The child's whole program: run the probe, and print one line of JSON."""
    gc.disable()  # garbage collection during the imports takes a third of the time
    report = probe(sys.argv[1], json.loads(sys.argv[2]))
    print(PROBE_MARK + json.dumps(report), flush=True)
    gc.freeze()  # and so would the collection at exit


def probe(device_name: str, imports: Sequence[tuple[str, str]] = IMPORTS) -> dict[str, Any]:
    """Import what the run imports and multiply two matrices on the device.

    imports   (module, a name in it)

    Returns device, name, torch, cuda (None for a build without CUDA) and seconds; after a failure, `failure` has where, what,
    why and what_to_do.
    """
    started = time.monotonic()
    for module, attribute in imports:
        try:
            getattr(importlib.import_module(module), attribute)
        except Exception as error:  # report whatever a broken package raises
            what = f"Cannot import {module}.{attribute}: {type(error).__name__}: {str(error)[:600]}"
            remedy = f"Reinstall it: `uv pip install --python {sys.executable} --reinstall {module.split('.')[0]}`"
            failure = {"where": "imports", "what": what, "why": "The run needs it.", "what_to_do": remedy}
            return {"failure": {**failure, "errno": errno_of(error)}}
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    try:
        device = resolve_device(load_config({"device": device_name}, environment={}))
        is_right = _multiply(device)
    except Stage3Error as error:
        return {**found, "failure": {"where": "device", **error.as_dict()}}
    except Exception as error:  # CUDA's errors have many classes
        what = f"{device_name} cannot compute: {type(error).__name__}: {str(error)[:600]}"
        return {**found, "failure": {"where": "device", "what": what}}
    if not is_right:
        return {**found, "failure": {"where": "device", "what": f"{device} computes a wrong matrix product."}}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {**found, "device": str(device), "name": name, "seconds": round(time.monotonic() - started, 2)}


def _multiply(device: Any, size: int = 64) -> bool:
    """Whether a product of small integers, exact in every float format, equals Python's result."""
    import torch

    left = [[(3 * row + column) % 5 for column in range(size)] for row in range(size)]
    right = [[(row + 2 * column) % 3 for column in range(size)] for row in range(size)]
    expected = [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*right, strict=True)] for row in left
    ]
    product = torch.tensor(left, dtype=torch.float32, device=device) @ torch.tensor(
        right, dtype=torch.float32, device=device
    )
    return bool(torch.equal(product.cpu(), torch.tensor(expected, dtype=torch.float32)))
