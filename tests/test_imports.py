"""The arrows of the house, held by looking: what a fresh interpreter has in memory, and what each file imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "textual"}

FLOORS = (
    "__init__ config events errors names options text files redaction secrets stop",
    "jsonl environment child_lines child_ends",
    "journal telemetry hub children stall",
    "state failures run context",
    "models",
    "pairs dpo demo packaging remote push",
    "installed",
    "workspace",
    "stages",
    "pipeline doctor",
    "session",
)
"""The rooms of the engine, lowest first: a file imports from its own floor and from those below."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_command_line_imports_nothing_heavy():
    assert not loaded_after("import tui.cli") & (HEAVY | {"pydantic", "rich", "psutil"})


def test_the_engine_imports_no_screen():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "engine").rglob("*.py"))
        if path.name != "__init__.py"
    ]
    loaded = loaded_after("import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in modules))
    assert not loaded & {"textual", "tui", "themes"}


def test_no_file_of_the_engine_names_rich():
    """TRL imports rich by itself, so that the interpreter's memory tells nothing."""
    for path in (ROOT / "engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not any(name.split(".")[0] == "rich" for name in named), path


def test_auto_needs_no_textual():
    assert not loaded_after("import tui.auto, engine.session") & HEAVY


@pytest.mark.parametrize("path", sorted((ROOT / "engine").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path: Path):
    room = path.relative_to(ROOT / "engine").parts[0].removesuffix(".py")
    for imported in _imports(path):
        other = imported.split(".")[1] if "." in imported else "__init__"
        assert FLOOR[other] <= FLOOR[room], f"{room} may not import {imported}"


def _imports(path: Path) -> list[str]:
    """Imports of the engine in a file; those for types alone do not count."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "engine":
            if node.module == "engine":
                found += [f"engine.{alias.name}" for alias in node.names if alias.name in FLOOR]
            else:
                found.append(node.module)
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("engine.")]
    return found
