"""Generate the tables in the documentation from the code: stages, keys, commands, options, forms of rows, forecasts.

    python docs/tables.py [--check]

A table is between `<!-- NAME -->` and `<!-- end NAME -->` on its page. `--check` writes nothing, and exits with 1 if a page is
out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scaling import TABLES as SCALING_TABLES

from engine.core.options import Option, options
from engine.core.stage_table import STAGE_TABLE
from engine.pairs.formats.form import Form
from engine.pairs.formats.pair_forms import PAIR_FORMS
from engine.pairs.formats.prompt_forms import PROMPT_FORMS
from tui.commands.table import summary
from tui.keys import keys_markdown

FOLDER = Path(__file__).parent


def stage_table() -> str:
    rows = [f"| {number} | `{stage.name}` | {stage.sentence} |" for number, stage in enumerate(STAGE_TABLE, 1)]
    return "\n".join(["| # | stage | what it does |", "|---|---|---|", *rows])


def command_table() -> str:
    lines = "\n".join(line.removeprefix("  ") for line in summary().splitlines())
    return f"```\n{lines}\n```"


def option_tables() -> str:
    groups = dict.fromkeys(option.group for option in options())
    return "\n\n".join(option_table(group) for group in groups)


def option_table(group: str) -> str:
    rows = [option_row(option) for option in options() if option.group == group]
    return "\n".join(
        [f"## {group}", "", "| option | default | what it does | stages done again |", "|---|---|---|---|", *rows]
    )


def option_row(option: Option) -> str:
    default = f"`{option.default}`" if option.default else ""
    cells = (f"`{option.flag}`", default, option.sentence.replace("|", "\\|"), ", ".join(option.changes))
    return f"| {' | '.join(cells)} |"


def form_table(forms: Sequence[Form[Any]]) -> str:
    rows = [f"| `{form.name}` | {form.columns} | {form.used_by} |" for form in forms]
    return "\n".join(["| form | identifying columns | used by |", "|---|---|---|", *rows])


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "stages": ("stages.md", stage_table),
    "keys": ("wizard.md", keys_markdown),
    "commands": ("commands.md", command_table),
    "options": ("options.md", option_tables),
    "pair-forms": ("files-you-have.md", lambda: form_table(PAIR_FORMS)),
    "prompt-forms": ("files-you-have.md", lambda: form_table(PROMPT_FORMS)),
    **SCALING_TABLES,
}
"""Name of a table → its page, and the function that generates it."""


def filled(name: str, page: str, table: Callable[[], str]) -> tuple[str, str]:
    """(the current page, the page with its table regenerated)."""
    text = (FOLDER / page).read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"docs/{page} has no markers for the table {name!r}")
    return text, pattern.sub(lambda match: f"{match[1]}{table().strip()}\n{match[2]}", text)


def main() -> int:
    differing = 0
    for name, (page, table) in TABLES.items():
        before, after = filled(name, page, table)
        differing += before != after
        if "--check" not in sys.argv:
            (FOLDER / page).write_text(after, encoding="utf-8")
    return int(differing > 0 and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
