"""docs/decisions.md lists every private library name that the code uses, and each still exists."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
ROWS = [
    (owner, re.findall(r"`(\w+)`", names))
    for owner, names in re.findall(r"^\| `([\w.]+)` \| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
]
OF_PYTHON = {"_replace", "_make", "_asdict", "_exit", "_value2member_map_", "_Hash"}
"""Documented by Python itself, or names of its type stubs."""


def owner_of(path: str) -> Any:
    """The module or class at a dotted path."""
    try:
        return import_module(path)
    except ImportError:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)


def has(owner: Any, name: str) -> bool:
    """Whether the owner has a class attribute of this name, or a method that sets it."""
    if hasattr(owner, name) or not inspect.isclass(owner):
        return hasattr(owner, name)
    sources = (source_of(base) for base in owner.__mro__ if base.__module__ != "builtins")
    return any(re.search(rf"self\.{name}\b", source) for source in sources)


def source_of(kind: type) -> str:
    """The source of a class. One that claims to be from another module (httpx2.Client) has none there: then that of its methods."""
    try:
        return inspect.getsource(kind)
    except OSError:
        return "".join(inspect.getsource(method) for method in vars(kind).values() if inspect.isfunction(method))


@pytest.mark.parametrize(("owner", "names"), ROWS)
def test_each_private_name_that_we_rely_on_exists(owner, names):
    assert [name for name in names if not has(owner_of(owner), name)] == []


def test_the_list_is_complete():
    listed = {name for _, names in ROWS for name in names}
    used = {name for package in ("engine", "tui") for file in (ROOT / package).rglob("*.py") for name in foreign(file)}
    assert sorted(used - listed - OF_PYTHON) == []


def foreign(file: Path) -> Iterator[str]:
    """Private attributes that the file uses but does not define."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = {
        name
        for node in ast.walk(tree)
        for name in [getattr(node, "name", None), _assigned(node)]
        if isinstance(name, str)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr) and node.attr not in own:
            yield node.attr


def _assigned(node: ast.AST) -> str | None:
    """The variable or attribute name that this node assigns."""
    if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
        return node.attr if isinstance(node, ast.Attribute) else node.id
    return None
