"""`stage3-tui compare`: runs side by side, in the terminal and as JSON."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.core.errors import ConfigError, ExitCode
from engine.run.listing import is_run
from engine.security.sanitize import visible_line
from tui.commands.arguments import new_parser, parse
from tui.commands.table import PROGRAM
from tui.formatting import bars
from tui.process.output import print_json

if TYPE_CHECKING:
    from engine.pipeline.compare import Figure, PromptAnswers, RunComparison

VERDICT_STYLE = {"better": "green", "worse": "red"}
MIN_ANSWER_COLUMNS = 36
"""Minimum columns for an answer beside others."""
MAX_ANSWER_CHARACTERS = 1_200
"""Characters shown of an answer; --json prints all of it."""


def main(arguments: list[str]) -> int:
    from engine.pipeline.compare import compare

    args = parse(command_parser(), arguments)
    folders = [_run_folder(text) for text in args.runs]
    if len(set(folders)) < 2:
        raise ConfigError("`compare` needs two runs.", "You passed only one.", f"Run `{PROGRAM} compare RUN RUN…`.")
    found = compare(folders)
    if args.json:
        print_json(as_data(found))
    else:
        print_comparison(found, max(args.answers, 0))
    return int(ExitCode.DONE)


def command_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "Compare runs side by side: options that differ, figures with 95 % intervals, training curves, and answers to the\n"
        "same held-out prompts. A trial of a sweep is a run, too (RUN/trials/NAME). Nothing is written.",
        "",
        usage=f"{PROGRAM} compare RUN RUN… [--answers N] [--json]",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--answers", type=int, default=5, metavar="N", help="how many prompts to show with their answers [5]"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with all answers")
    return parser


def _run_folder(text: str) -> Path:
    folder = Path(text).expanduser().resolve()
    if not is_run(folder):
        raise ConfigError(
            f"There is no run in {folder}.", "It has no run.json.", f"List your runs with `{PROGRAM} runs`."
        )
    return folder


def as_data(found: RunComparison) -> dict[str, Any]:
    return {**asdict(found), "folders": [str(folder) for folder in found.folders]}


def print_comparison(found: RunComparison, answers: int) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    for letter, folder in zip(letters(found), found.folders, strict=True):
        console.print(Text.assemble((f"{letter}  ", "bold"), visible_line(str(folder))), soft_wrap=True)
    for note in found.notes:
        console.print(Text(f"! {note}", "yellow"))
    _print_options(console, found)
    _print_figures(console, found)
    _print_curves(console, found)
    for answered in found.answers[:answers]:
        _print_answers(console, found, answered)
    left = len(found.answers) - answers
    if left > 0:
        console.print(
            Text(f"\n{left} more prompts have several answers; --answers {len(found.answers)} shows all.", "dim")
        )


def letters(found: RunComparison) -> list[str]:
    """Letters for the runs (A, B, …): a path does not fit above a column."""
    return [chr(ord("A") + number) if number < 26 else str(number + 1) for number in range(len(found.folders))]


def _print_heading(console: Console, title: str) -> None:
    console.print(Text(f"\n{title}", "bold"))


def _table(found: RunComparison) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for letter in letters(found):
        table.add_column(letter, justify="right", overflow="fold")
    return table


def _print_options(console: Console, found: RunComparison) -> None:
    _print_heading(console, "Options that differ")
    if not found.options:
        console.print(Text("none"))
        return
    table = _table(found)
    for name, values in found.options.items():
        table.add_row(Text(name), *(Text(visible_line(_value(value), 60)) for value in values))
    console.print(table)


def _value(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _print_figures(console: Console, found: RunComparison) -> None:
    _print_heading(console, "Figures, with 95 % intervals")
    table = _table(found)
    table.add_row(
        Text("verdict"), *(Text(visible_line(word, 20), VERDICT_STYLE.get(word, "")) for word in found.verdicts)
    )
    for name, figures in found.figures.items():
        table.add_row(Text(name), *(figure_text(name, figure) for figure in figures))
    console.print(table)


def figure_text(name: str, figure: Figure) -> Text:
    """The figure and its interval, if any."""
    text = Text(_number(name, figure.value))
    if figure.low is not None and figure.high is not None:
        text.append(f" ({_number(name, figure.low, 3)} to {_number(name, figure.high, 3)})", "dim")
    return text


def _number(name: str, value: float | int | None, digits: int = 4) -> str:
    from engine.pipeline.compare import SHARES

    if value is None:
        return "-"
    if name in SHARES:
        return f"{value:.0%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}g}"


def _print_curves(console: Console, found: RunComparison) -> None:
    for title, curves in (("Loss, step by step", found.losses), ("Margin, step by step", found.margins)):
        values = [value for curve in curves for value in curve]
        if not values:
            continue
        low, high = min(values), max(values)
        _print_heading(console, f"{title} (▁ {low:.3f} to █ {high:.3f})")
        width = max(console.width - 24, 10)
        for letter, curve in zip(letters(found), curves, strict=True):
            ends = f"{curve[0]:.3f} → {curve[-1]:.3f}" if curve else "not trained"
            console.print(Text.assemble((f"{letter}  ", "bold"), bars(curve, width, low, high), (f"  {ends}", "dim")))


def _print_answers(console: Console, found: RunComparison, answered: PromptAnswers) -> None:
    console.print()
    console.print(Text(visible_line(answered.prompt, MAX_ANSWER_CHARACTERS), "bold"))
    texts = [("Stage 2", text) for text in (answered.stage2, *answered.other_stage2)]
    texts += list(zip(letters(found), answered.stage3, strict=True))
    if len(texts) * MIN_ANSWER_COLUMNS <= console.width:
        _print_columns(console, texts)
        return
    for name, text in texts:
        shown = textwrap.fill(
            visible_line(text or "no answer", MAX_ANSWER_CHARACTERS),
            console.width,
            initial_indent=f"{name:9}",
            subsequent_indent=" " * 9,
        )
        console.print(Text(shown))


def _print_columns(console: Console, texts: Sequence[tuple[str, str]]) -> None:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", expand=True)
    for name, _ in texts:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(Text(visible_line(text or "no answer", MAX_ANSWER_CHARACTERS)) for _, text in texts))
    console.print(table)
