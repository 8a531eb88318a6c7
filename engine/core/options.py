"""The options for the command line and the wizard's forms, read from the syntax tree of `engine/core/config.py`.

Importing the configuration class would take longer than everything else that `--help` does; parsing one file takes a few
milliseconds. A test compares this list with the class.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CONFIG_FILE = Path(__file__).with_name("config.py")

STAGE_OF_GROUP = {
    "The run": "workspace",
    "Workspace": "workspace",
    "Hugging Face": "credentials",
    "Models": "adapter",
    "Pairs": "pairs",
    "Server": "pairs",
    "Quality": "quality",
    "Training": "training",
    "Packaging": "packaging",
    "Display": "",
}
"""The stage whose form edits each group of options."""


@dataclass(frozen=True)
class Option:
    name: str
    group: str
    annotation: str
    default: str
    """The default as written in the source, without quotes; empty for None."""
    sentence: str
    bounds: str = ""
    """Bounds in words: at least 1, at least 0.0 and at most 1.0."""
    changes: tuple[str, ...] = ()
    """The stages whose result depends on this option; "evaluation" is the second half of stage training."""
    common: bool = False
    """Whether `--help` shows it, as one of the twenty most used options."""
    form_stage: str = ""
    """The stage whose form shows this option; empty for display options."""
    label: str = ""
    """The name of the option in forms."""
    unit: str = ""
    """The unit of the value; "share" is a number from 0 to 1 that forms show in percent."""
    topic: str = ""
    """The heading under which forms show the option."""

    @property
    def is_optional(self) -> bool:
        """Whether the program may choose the value."""
        return self.annotation.endswith("| None")

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        kind = _KINDS.get(self.annotation.removesuffix(" | None"), "text")
        kind = f"{kind}, {self.bounds}" if self.bounds else kind
        return f"{kind}, or empty" if self.is_optional else kind

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_repeatable(self) -> bool:
        """Whether the flag may be repeated on the command line."""
        return self.annotation.startswith("Addresses")

    @property
    def is_switch(self) -> bool:
        return self.annotation == "bool"

    @property
    def is_flag(self) -> bool:
        """Whether it is passed as --name or --no-name. A flag has a third state if the program chooses its default; a switch
        does not.
        """
        return self.annotation in ("bool", "bool | None")

    @property
    def choices(self) -> tuple[str, ...]:
        if not self.annotation.startswith("Literal["):
            return ()
        return tuple(ast.literal_eval(self.annotation.removeprefix("Literal").replace("[", "(").replace("]", ",)")))


@cache
def options() -> tuple[Option, ...]:
    """All options, in the order of the file."""
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
            name, annotation = field.target.id, ast.unparse(field.annotation)
            written = (
                _default(field.value),
                sentence,
                _bounds(field.value),
                _changes(field.value),
                _common(field.value),
            )
            label, unit, topic = (_text_keyword(field.value, key) for key in ("label", "unit", "topic"))
            found.append(Option(name, group, annotation, *written, STAGE_OF_GROUP[group], label, unit, topic or group))
    return found


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Call) and value.args:
        value = value.args[0]
    if isinstance(value, ast.Constant):
        return "" if value.value is None else str(value.value)
    return "" if value is None else ast.unparse(value)


_KINDS = {"int": "a whole number", "float": "a number", "bool": "yes or no", "Path": "a path", "Addresses": "addresses"}
_LOWER, _UPPER = {"ge": "at least", "gt": "above"}, {"le": "at most", "lt": "below"}


def _changes(value: ast.expr | None) -> tuple[str, ...]:
    if not isinstance(value, ast.Call):
        return ()
    given = {keyword.arg: keyword.value for keyword in value.keywords}.get("changes")
    return tuple(str(given.value).split()) if isinstance(given, ast.Constant) else ()


def _common(value: ast.expr | None) -> bool:
    given = value.keywords if isinstance(value, ast.Call) else []
    return any(keyword.arg == "common" and ast.unparse(keyword.value) == "True" for keyword in given)


def _text_keyword(value: ast.expr | None, key: str) -> str:
    """The text of a keyword argument of a field; empty if it is missing."""
    given = {keyword.arg: keyword.value for keyword in value.keywords} if isinstance(value, ast.Call) else {}
    found = given.get(key)
    return str(found.value) if isinstance(found, ast.Constant) else ""


def _bounds(value: ast.expr | None) -> str:
    """The bounds of a field in words."""
    if not isinstance(value, ast.Call):
        return ""
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in value.keywords}
    words = {**_LOWER, **_UPPER}
    return " and ".join(f"{words[name]} {given[name]}" for name in words if name in given)
