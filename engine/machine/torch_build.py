"""The CUDA version that torch was built for, read without importing torch, and whether the driver supports it."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from engine.machine.programs import version_numbers

# The oldest driver for each major version of CUDA (NVIDIA, CUDA Compatibility, "minor version compatibility").
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
REINSTALL_TORCH = "uv pip install --torch-backend=auto --reinstall-package torch torch"


@dataclass(frozen=True)
class TorchBuild:
    version: str
    cuda: str | None = None
    """The CUDA version, such as 12.8; None for a build without CUDA."""
    hip: str | None = None
    """The same for AMD's ROCm."""

    def __str__(self) -> str:
        if self.hip:
            return f"torch {self.version} for ROCm {self.hip}"
        return f"torch {self.version}, {f'built for CUDA {self.cuda}' if self.cuda else 'a build without CUDA'}"


def read_torch_build() -> TorchBuild | None:
    """Read `torch/version.py` as text, because importing torch takes seconds, and a broken torch crashes the process.

    Returns None if torch is not installed.
    """
    try:
        version = metadata.version("torch")
        spec = importlib.util.find_spec("torch")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    constants: dict[str, object] = {}
    for folder in folders:
        try:
            tree = ast.parse((Path(folder) / "version.py").read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue  # missing, or not torch's file: try the next folder
        constants = {name: value for node in tree.body for name, value in _constants(node)}
        break
    cuda, hip = (str(constants[name]) if constants.get(name) else None for name in ("cuda", "hip"))
    return TorchBuild(str(constants.get("__version__") or version), cuda, hip)


def _constants(node: ast.stmt) -> list[tuple[str, object]]:
    """The constants that a statement assigns, such as `cuda: Optional[str] = "12.8"` or `debug = False`."""
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
    value = getattr(node, "value", None)
    return [(t.id, value.value) for t in targets if isinstance(t, ast.Name) and isinstance(value, ast.Constant)]


def driver_fault(build: TorchBuild, driver: str | None, device: str) -> str:
    """Why torch cannot use the GPU with this driver, and the remedy; empty if it can, or if no GPU is wanted."""
    if driver is None or device == "cpu":
        return ""
    if not build.cuda:
        return f"{build}, although driver {driver} is installed: the GPU is not used. Install a build for it: `{REINSTALL_TORCH}`"
    oldest = OLDEST_DRIVER.get(version_numbers(build.cuda)[0])
    if oldest is not None and version_numbers(driver)[:1] < (oldest,):
        return (
            f"{build} needs driver {oldest} or newer, and {driver} is installed: "
            f"update the driver, or install a build for it: `{REINSTALL_TORCH}`"
        )
    return ""
