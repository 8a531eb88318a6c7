"""Which CUDA torch was built for, read without importing it, and whether the driver is new enough for that."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from engine.machine.programs import version_numbers

# The oldest driver for each major version of CUDA (NVIDIA, CUDA Compatibility, "minor version compatibility").
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
NEW_BUILD = "uv pip install --torch-backend=auto --reinstall-package torch torch"


@dataclass(frozen=True)
class TorchBuild:
    version: str
    cuda: str | None = None
    """12.8, or None for a build without CUDA."""
    hip: str | None = None
    """The same of AMD's ROCm."""

    def __str__(self) -> str:
        if self.hip:
            return f"torch {self.version} for ROCm {self.hip}"
        return f"torch {self.version}, {f'built for CUDA {self.cuda}' if self.cuda else 'a build without CUDA'}"


def read_torch_build() -> TorchBuild | None:
    """From `torch/version.py`, as text: importing torch takes seconds, and a broken one takes the process along.

    None if torch is not installed.
    """
    try:
        version = metadata.version("torch")
        spec = importlib.util.find_spec("torch")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    written: dict[str, object] = {}
    for folder in folders:
        try:
            tree = ast.parse((Path(folder) / "version.py").read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue  # not torch's file, or not there: the next folder
        written = {name: value for node in tree.body for name, value in _constants(node)}
        break
    cuda, hip = (str(written[name]) if written.get(name) else None for name in ("cuda", "hip"))
    return TorchBuild(str(written.get("__version__") or version), cuda, hip)


def _constants(node: ast.stmt) -> list[tuple[str, object]]:
    """`cuda: Optional[str] = "12.8"` and `debug = False`."""
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
    value = getattr(node, "value", None)
    return [(t.id, value.value) for t in targets if isinstance(t, ast.Name) and isinstance(value, ast.Constant)]


def driver_fault(build: TorchBuild, driver: str | None, device: str) -> str:
    """Why torch will not compute on the GPU of this driver, and what mends it; empty if it will, or if no GPU is wanted."""
    if driver is None or device == "cpu":
        return ""
    if not build.cuda:
        return f"{build}, though there is driver {driver}: the GPU is not used. Install a build for it: `{NEW_BUILD}`"
    oldest = OLDEST_DRIVER.get(version_numbers(build.cuda)[0])
    if oldest is not None and version_numbers(driver)[:1] < (oldest,):
        return (
            f"{build} needs driver {oldest} or newer, there is {driver}: "
            f"update the driver, or install a build for it: `{NEW_BUILD}`"
        )
    return ""
