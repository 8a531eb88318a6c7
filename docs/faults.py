"""Generate docs/faults.md: every row of tests/faults/catalogue.toml with the tests that provoke it.

    python docs/faults.py [--check]

A test is marked with its rows: `@pytest.mark.fault("C12", "F2-1")`. `--check` writes nothing, and exits with 1 if the page is
out of date. The tests are parsed and not imported, so this takes a second.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faults.md"
CATALOGUE = ROOT / "tests" / "faults" / "catalogue.toml"

KINDS = {
    "A": "Interruption, state, locks",
    "B": "Disk and files",
    "C": "Pairs and data",
    "D": "Model, adapter, training",
    "E": "GPU telemetry",
    "F": "Network, Hub, git, uv",
    "G": "Terminal and screens",
    "H": "Packaging",
    "F2-": "Found while testing",
}
"""First letters of an id → the heading above its rows."""


@dataclass(frozen=True)
class Fault:
    id: str
    fault: str
    happens: str
    untested: str = ""
    """The reason why no test can provoke it; empty if one can."""

    @property
    def kind(self) -> str:
        return "F2-" if self.id.startswith("F2-") else self.id[0]


@dataclass(frozen=True)
class Mark:
    """A test, and one of the rows that it provokes."""

    id: str
    test: str
    """`folder/test_file.py: test_name`, under tests/."""


def catalogue() -> list[Fault]:
    rows = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    return [Fault(name, **row) for name, row in rows.items()]


def all_marks() -> list[Mark]:
    """Every mark in every test file, in file order."""
    return [mark for path in sorted((ROOT / "tests").rglob("test_*.py")) for mark in marks_in(path)]


def marks_in(path: Path) -> Iterator[Mark]:
    text = path.read_text(encoding="utf-8")
    if "mark.fault(" not in text:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            test = f"{path.relative_to(ROOT / 'tests')}: {node.name}"
            ids = dict.fromkeys(fault for decorator in node.decorator_list for fault in ids_in(decorator))
            yield from (Mark(fault, test) for fault in ids)


def ids_in(decorator: ast.AST) -> Iterator[str]:
    """The ids of `pytest.mark.fault(…)`, including those in the `marks=` of a parameter."""
    for call in ast.walk(decorator):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "fault":
            yield from (str(argument.value) for argument in call.args if isinstance(argument, ast.Constant))


def page() -> str:
    faults = catalogue()
    tests: dict[str, list[str]] = {fault.id: [] for fault in faults}
    for mark in all_marks():
        tests[mark.id].append(mark.test)
    parts = [HEAD, summary(faults, tests)]
    for kind, heading in KINDS.items():
        rows = [entry(fault, tests[fault.id]) for fault in faults if fault.kind == kind]
        parts += [f"## {heading}", *rows]
    return "\n\n".join(parts) + "\n"


HEAD = """# Faults

What can go wrong in practice, what the program does then, and the test that provokes it. `python docs/faults.py` generates this
page from `tests/faults/catalogue.toml` and the marks of the tests; do not edit it."""


def summary(faults: list[Fault], tests: dict[str, list[str]]) -> str:
    proven = sum(bool(tests[fault.id]) for fault in faults)
    impossible = sum(bool(fault.untested) and not tests[fault.id] for fault in faults)
    sentences = [
        f"**{proven} of {len(faults)} faults are provoked by a test.**",
        f"{impossible} cannot be provoked by a test, and give the reason." if impossible else "",
        f"{len(faults) - proven - impossible} have no test yet." if proven + impossible < len(faults) else "",
    ]
    return " ".join(filter(None, sentences))


def entry(fault: Fault, tests: list[str]) -> str:
    """A paragraph, then its tests, one per line, so that branches that add tests rarely conflict."""
    lines = [f"**{fault.id}** {fault.fault} → {fault.happens}"]
    lines += [f"- `{test}`" for test in tests]
    if fault.untested:
        lines.append(f"- Not provoked here: {fault.untested}")
    elif not tests:
        lines.append("- No test yet.")
    return "\n\n".join((lines[0], "\n".join(lines[1:])))


def main() -> int:
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    after = page()
    if "--check" in sys.argv:
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
