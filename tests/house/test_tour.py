"""docs/tour.md mentions only files and names that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from engine.core import layout

ROOT = Path(__file__).parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
STEPS = re.split(r"^\d+\. ", TOUR, flags=re.MULTILINE)[1:]


def in_code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@cache
def names_in(file: str) -> frozenset[str]:
    """Functions, classes, methods and constants that a file defines, and `Class.method` as one word."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(found)


def test_every_file_of_the_tour_exists_and_each_step_begins_with_one():
    assert len(STEPS) > 30
    for step in STEPS:
        assert in_code(step)[0].endswith(".py"), step
        missing = [name for name in in_code(step) if name.endswith(".py") and not (ROOT / name).exists()]
        assert missing == [], step


def test_every_name_of_the_tour_is_defined_in_a_file_of_its_step():
    run_files = {getattr(layout, name) for name in vars(layout) if name.isupper()}
    for step in STEPS:
        words = [word for word in in_code(step) if not word.startswith("--")]
        files = [word for word in words if word.endswith(".py")]
        known = frozenset[str]().union(*map(names_in, files)) | run_files
        missing = [word for word in words if word not in files and word not in known]
        assert missing == [], step
