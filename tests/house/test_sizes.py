"""No function is longer than a screen."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_LINES = 60


def test_no_function_has_more_than_60_lines():
    too_long = set()
    for package in ("engine", "tui", "themes"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _lines(node) > MAX_LINES:
                    too_long.add(f"{path.relative_to(ROOT)}: {node.name}")
    assert too_long == set()


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1
