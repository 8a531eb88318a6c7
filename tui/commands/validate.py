"""`stage3-tui validate`: the quality report on any pairs file, for people or as one JSON document."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.core.config import Stage3Config
from engine.core.errors import ExitCode
from engine.core.options import Option, options
from engine.pairs.assessment.assess import PairVerdict
from engine.pairs.assessment.gate import Figure
from engine.pairs.assessment.validation import Validation, validate
from engine.security.sanitize import visible_line
from engine.storage.jsonl import BadLine
from tui.commands.arguments import add_options, config_of, new_parser, parse
from tui.commands.printers import COLOUR, GLYPH
from tui.commands.table import PROGRAM
from tui.process.print_error import print_error

IN_MEMORY = 1 << 20
"""Bytes of verdicts that are kept in memory; more wait in a temporary file until the figures, which stand first, are known."""
BAD_LINES_SHOWN = 20
TEXT_SHOWN = 100
"""Characters of each text of an example."""


def main(arguments: list[str]) -> int:
    parser = new_parser(
        "The quality report and the gate, on any pairs file: ours, the notebook's, or TRL's (prompt, chosen, rejected, as text\n"
        "or as messages), gzipped or not; - is standard input. Decisions (edits.jsonl) and scores (scores.jsonl) beside the\n"
        "file count, too.",
        "Exit code 0 if the gate is open, 9 if it is shut or a line is not a pair.",
        usage=f"{PROGRAM} validate PAIRS.jsonl [--json] [--export TRAIN.jsonl] [OPTIONS]",
    )
    parser.add_argument("pairs", metavar="PAIRS.jsonl")
    parser.add_argument("--json", action="store_true", help="one JSON object: pairs, figures, gate, verdicts")
    parser.add_argument(
        "--export",
        metavar="FILE",
        help="write what would train, after people's edits, as TRL's prompt, chosen, rejected; only where the gate is open "
        "or --accept-quality opens it",
    )
    parser.add_argument("--force", action="store_true", help="--export may replace a file")
    add_options(parser, [option for option in options() if is_of_the_gate(option)])
    given = parse(parser, arguments)
    return print_validation(given.pairs, config_of(given), as_json=given.json, export=given.export, force=given.force)


def is_of_the_gate(option: Option) -> bool:
    """Not the judge, nor what is held out: `validate` neither scores nor parts."""
    threshold = option.name.startswith(("min_", "max_", "warn_")) and option.name != "min_eval_pairs"
    return option.group == "Quality" and (threshold or option.name == "accept_quality")


def print_validation(path: str, config: Stage3Config, *, as_json: bool, export: str | None, force: bool) -> int:
    to = Path(export) if export else None
    if as_json:
        result = _print_json(Path(path), config, to, force)
    else:
        result = validate(Path(path), config, export=to, force=force)
        _print_report(result)
    if result.refusal is None:
        return int(ExitCode.DONE)
    sys.stdout.flush()
    print_error(result.refusal)
    return int(result.refusal.exit_code)


# -- for machines -----------------------------------------------------------------------------------------------------


def _print_json(path: Path, config: Stage3Config, export: Path | None, force: bool) -> Validation:
    """One document, a verdict a line, streamed: the verdicts of a large file never stand in memory together."""
    with tempfile.SpooledTemporaryFile(IN_MEMORY, "w+", encoding="ascii") as verdicts:

        def keep(line: PairVerdict | BadLine) -> None:
            usable, reasons = (False, (line.reason,)) if isinstance(line, BadLine) else (line.usable, line.reasons)
            row = json.dumps({"line": line.line, "usable": usable, "reasons": reasons})
            verdicts.write(f",\n{row}")

        result = validate(path, config, keep, export=export, force=force)
        verdicts.seek(len(","))
        sys.stdout.write(json.dumps(result.report)[:-1] + ', "verdicts": [')
        shutil.copyfileobj(verdicts, sys.stdout)
        sys.stdout.write("\n]}\n")
    return result


# -- for people -------------------------------------------------------------------------------------------------------


def _print_report(result: Validation) -> None:
    report = result.report
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    figures = report["figures"]
    console.print(
        Text(
            f"{report['pairs']:,} pairs, {figures['usable']:,} usable, "
            f"{figures['byte_identical']:,} with a revision byte-identical to the draft"
        )
    )
    _print_figures(console, report)
    _print_counts(console, report)
    _print_examples(console, report["examples"])
    _print_bad_lines(console, result.bad_lines, figures["bad_lines"])
    console.print(Text(_conclusion(report), style="bold"))
    if report["export"]:
        console.print(Text(_exported(report["export"])))


def _print_figures(console: Console, report: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    warnings: list[Figure] = []
    for row in report["gate"]["figures"]:
        figure = Figure(**{key: value for key, value in row.items() if key != "passes"})
        status = {True: "ok", None: "skipped", False: "failed" if figure.refuses else "warning"}[figure.passes]
        cells = (GLYPH[status], figure.title, figure.sentence)
        table.add_row(*(Text(cell, style=COLOUR.get(status, "")) for cell in cells))
        if status in ("failed", "warning"):
            warnings.append(figure)
    console.print(table)
    for figure in warnings:
        console.print(Text(f"{figure.title}: {figure.mend}", style="dim"))


def _print_counts(console: Console, report: dict[str, Any]) -> None:
    if report["left_out"]:
        console.print(Text(f"left out: {_counted(report['left_out'])}"))
    if report["principles"]:
        console.print(Text(f"principles: {_counted(report['principles'])}"))
    if report["scored"]:
        by = f", by {visible_line(report['scored_by'], 60)}" if report["scored_by"] else ""
        console.print(
            Text(f"scored: {report['scored']:,} of those that would train{by}; {report['tied']:,} of them tied")
        )
    people = report["people"]
    if people["decided"] or people["not_here"] or people["damaged"] or people["torn"]:
        told = _counted({word: people[word] for word in ("accepted", "rejected", "flipped", "edited") if people[word]})
        console.print(Text(f"decisions about {people['decided']:,} pairs (edits.jsonl){': ' if told else ''}{told}"))
        if people["not_here"]:
            console.print(Text(f"and about {people['not_here']:,} that are not in this file", style="yellow"))
        if people["torn"]:
            console.print(Text("the last line of edits.jsonl is incomplete and ignored", style="yellow"))
        for bad in people["damaged"][:BAD_LINES_SHOWN]:
            console.print(Text(f"line {bad['line'] + 1} of edits.jsonl: {visible_line(bad['reason'])}", style="red"))


def _counted(counts: dict[str, int]) -> str:
    shown = list(counts.items())[:BAD_LINES_SHOWN]
    more = f", and {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
    return ", ".join(f"{count:,} {visible_line(name, 60)}" for name, count in shown) + more


def _print_examples(console: Console, examples: dict[str, list[dict[str, Any]]]) -> None:
    for reason, rows in list(examples.items())[:BAD_LINES_SHOWN]:
        row = rows[0]
        console.print(Text(f"{visible_line(reason, 60)}, for example line {row['line'] + 1}:", style="dim"))
        for word, key in (("asked", "prompt"), ("draft", "base_response"), ("revised", "revised_response")):
            console.print(Text(f"    {word:8} {visible_line(row[key], TEXT_SHOWN)}", style="dim"))


def _print_bad_lines(console: Console, bad_lines: list[BadLine], count: int) -> None:
    shown = bad_lines[:BAD_LINES_SHOWN]
    for bad in shown:
        console.print(Text(f"line {bad.line + 1}: {visible_line(bad.reason)}", style="red"))
    if count > len(shown):
        console.print(Text(f"… and {count - len(shown):,} more lines that are not pairs"))


def _conclusion(report: dict[str, Any]) -> str:
    gate = report["gate"]
    failed = ", ".join(name.replace("_", " ") for name in gate["failed"])
    if not gate["open"]:
        return f"The gate is shut: {failed}."
    if gate["failed"]:
        return f"You opened the gate ({visible_line(gate['accepted_for'], 200)}) despite: {failed}."
    return "The gate is open."


def _exported(export: dict[str, Any]) -> str:
    path = visible_line(export["path"])
    if export["written"]:
        return f"Wrote {export['pairs']:,} training pairs to {path}."
    return f'Did not write {path}: the gate is shut. Open it with --accept-quality "your reason".'
