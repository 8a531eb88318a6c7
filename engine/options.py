"""The options as the command line and the wizard's forms show them, read from the syntax tree of `engine/config.py`.

Importing pydantic takes longer than `--help` may (0.3 s); parsing one file takes a few milliseconds, and the
facts still stand in one place. A test holds this list against the real class.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CONFIG_FILE = Path(__file__).with_name("config.py")


@dataclass(frozen=True)
class Option:
    name: str
    group: str
    annotation: str
    default: str
    """As written in the source, without quotes; empty for None."""
    sentence: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        return self.annotation == "bool"

    @property
    def is_flag(self) -> bool:
        """Given as --name or --no-name. One that may be left to the program is a flag, and no switch: it has three states."""
        return self.annotation in ("bool", "bool | None")

    @property
    def choices(self) -> tuple[str, ...]:
        if not self.annotation.startswith("Literal["):
            return ()
        return tuple(ast.literal_eval(self.annotation.removeprefix("Literal").replace("[", "(").replace("]", ",)")))


@cache
def options() -> tuple[Option, ...]:
    """Every option, in the order of the file."""
    tree = ast.parse(CONFIG_FILE.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Options")]
    return tuple(option for node in classes for option in _options_of(node))


def _options_of(node: ast.ClassDef) -> list[Option]:
    group = (ast.get_docstring(node) or node.name).strip()
    found = []
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            sentence = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                sentence = " ".join(str(after.value.value).split())
            found.append(Option(field.target.id, group, ast.unparse(field.annotation), _default(field.value), sentence))
    return found


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Call) and value.args:
        value = value.args[0]
    if isinstance(value, ast.Constant):
        return "" if value.value is None else str(value.value)
    return "" if value is None else ast.unparse(value)
