"""The import rules: what a fresh interpreter loads, and which files may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "textual"}


LOADED = """
import gc
gc.disable()  # saves a third of the time
{statement}
import sys
print(*{{name.split(".")[0] for name in sys.modules}})
gc.freeze()
"""


def loaded_after(statement: str) -> set[str]:
    code = LOADED.format(statement=statement)
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


def test_no_file_of_the_engine_imports_rich():
    """TRL itself imports rich, so sys.modules proves nothing."""
    for path in (ROOT / "engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not any(name.split(".")[0] == "rich" for name in named), path


def test_auto_needs_no_textual():
    assert not loaded_after("import tui.commands.auto, engine.pipeline.session") & HEAVY


def test_packages_import_only_packages_below_them():
    """The contracts are in pyproject.toml."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


def test_there_are_no_import_cycles_not_even_for_types():
    graph = grimp.build_graph("engine", "tui", "themes", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
