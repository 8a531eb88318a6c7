"""Write the README's tables from the program's own: the stages, the keys. `--check` only says whether they are true.

    python docs/tables.py [--check]

A table stands between `<!-- NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from engine.core.stage_table import STAGE_TABLE
from tui.keys import keys_markdown

README = Path(__file__).parents[1] / "README.md"


def stage_table() -> str:
    rows = [f"| {number} | `{stage.name}` | {stage.sentence} |" for number, stage in enumerate(STAGE_TABLE, 1)]
    return "\n".join(["| # | stage | what it does |", "|---|---|---|", *rows])


TABLES = {"stages": stage_table, "keys": keys_markdown}


def filled(text: str) -> str:
    """`text` with every table as the program has it now."""
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no place for the table {name!r}")
        body = table().strip()
        text = pattern.sub(lambda match, body=body: match[1] + body + match[2], text)
    return text


def main() -> int:
    before = README.read_text(encoding="utf-8")
    after = filled(before)
    if "--check" in sys.argv:
        return int(before != after)
    README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
