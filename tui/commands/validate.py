"""`stage3-tui validate`: the quality report for any file of pairs, as text or JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.core import clock
from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, ExitCode
from engine.core.options import Option, options
from engine.core.wording import plural
from engine.pairs.assessment.assess import PairVerdict
from engine.pairs.assessment.gate import Figure
from engine.pairs.assessment.validation import Validation, validate
from engine.pairs.formats.pair_forms import PAIR_FORMS
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret
from engine.storage.jsonl import BadLine
from tui.commands.arguments import add_options, add_token_options, config_of, new_parser, parse, token_of
from tui.commands.event_lines import COLOUR, GLYPH
from tui.commands.table import PROGRAM
from tui.process.print_error import print_error

if TYPE_CHECKING:
    from engine.pairs.relevance.measure import RelevanceMeter

IN_MEMORY = 1 << 20
"""Bytes of verdicts kept in memory; more go to a temporary file, because the figures are printed first."""
BAD_LINES_SHOWN = 20
TEXT_SHOWN = 100
"""Characters shown of each text of an example."""


def main(arguments: list[str]) -> int:
    args = parse(command_parser(), arguments)
    config = config_of(args)
    if args.push_dataset and not args.export:
        raise ConfigError(
            "--push-dataset needs --export.",
            "It pushes the file that --export writes.",
            "Add --export train.parquet.",
        )
    judged = partial(
        validate,
        Path(args.pairs),
        config,
        meter=load_meter(config) if args.base_model_id is not None else None,
        export=Path(args.export) if args.export else None,
        force=args.force,
        split=args.split,
    )
    push = None
    if args.push_dataset:
        push = partial(_push, args.push_dataset, config, token_of(args))
    return print_validation(judged, as_json=args.json, push=push)


def command_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "Print the quality report and the gate for any file of pairs: JSON, JSON lines, CSV, Parquet, Arrow, compressed or\n"
        "not; a folder of them, a dataset on the Hub, or - for standard input. Decisions (edits.jsonl, FILE.edits.jsonl) and\n"
        "scores (scores.jsonl) beside the file count, too.",
        f"Exit code 0 if the gate is open, 9 if it is shut or a line is not a pair.\n\nForms of rows (--form): {forms()}.",
        usage=f"{PROGRAM} validate PAIRS [--json] [--export TRAIN.jsonl] [OPTIONS]",
    )
    parser.add_argument("pairs", metavar="PAIRS", help="a file or folder, a Hub id, or -")
    parser.add_argument("--split", help="split of a folder or a dataset; default: all of a folder, train of a dataset")
    parser.add_argument("--json", action="store_true", help="one JSON object: pairs, figures, gate, verdicts")
    parser.add_argument(
        "--export",
        metavar="FILE",
        help="write the pairs that would train, after edits, as TRL's prompt, chosen, rejected (JSON lines, or Parquet if "
        "FILE ends in .parquet); only if the gate is open or --accept-quality opens it",
    )
    parser.add_argument("--force", action="store_true", help="let --export overwrite a file")
    parser.add_argument(
        "--push-dataset",
        metavar="OWNER/NAME",
        help="push what --export writes, with a card, to a dataset on the Hub; a new one is private",
    )
    add_token_options(parser)
    more = (*MODEL_OPTIONS, "push_public", "accept_lookalikes")
    add_options(parser, [option for option in options() if is_gate_option(option) or option.name in more])
    return parser


def forms() -> str:
    """The names for --form, in lines that fit a terminal."""
    return "\n".join(wrap(", ".join(form.name for form in PAIR_FORMS), 100))


def load_meter(config: Stage3Config) -> RelevanceMeter:
    """Load the base model, to measure whether revisions depend on their prompts."""
    from engine.models.loading import load_base, load_tokenizer
    from engine.pairs.relevance.measure import RelevanceMeter
    from engine.process.environment import quiet_libraries

    quiet_libraries()
    return RelevanceMeter(load_base(config), load_tokenizer(config))


MODEL_OPTIONS = ("base_model_id", "base_model_revision", "device", "dtype", "chat_template")
"""Options for measuring whether revisions depend on their prompts, with --base-model-id."""
ROW_OPTIONS = ("form", "columns", "max_bad_rows")


def is_gate_option(option: Option) -> bool:
    """The options that apply: how rows are read, but not the judge or the held-out part, since `validate` neither scores
    nor splits.
    """
    if option.name in ROW_OPTIONS:
        return True
    threshold = option.name.startswith(("min_", "max_", "warn_")) and option.name != "min_eval_pairs"
    return option.group == "Quality" and (threshold or option.name == "accept_quality")


def print_validation(
    judged: Callable[..., Validation], *, as_json: bool, push: Callable[[Validation], None] | None = None
) -> int:
    """Print, and push if the gate is open.

    judged   `validate` with all its arguments except the receiver of the verdicts
    """
    if as_json:
        result = _print_json(judged)
    else:
        result = judged()
        _print_report(result)
    if result.error is None:
        if push is not None:
            sys.stdout.flush()
            push(result)
        return int(ExitCode.DONE)
    sys.stdout.flush()
    print_error(result.error)
    return int(result.error.exit_code)


def _push(repo_id: str, config: Stage3Config, token: Secret | None, result: Validation) -> None:
    """Push the exported file, and print the progress on standard error, since standard output may be JSON. Raises as
    `push_dataset`.
    """
    from engine.packaging.dataset_card import dataset_card
    from engine.push.dataset import name_in_repository, push_dataset
    from engine.run.journal import Entry
    from engine.run.stop import StopToken
    from tui.commands.event_lines import event_line

    export, stop = result.report["export"], StopToken()
    file = Path(export["path"])
    card = dataset_card(result.report, source=result.source, data_file=name_in_repository(file), pairs=export["pairs"])
    events = push_dataset(
        file,
        card,
        repo_id,
        token=token,
        public=config.push_public,
        accept_lookalikes=config.accept_lookalikes is not None,
        stop=stop,
    )
    for number, event in enumerate(events):
        if line := event_line(Entry(number, clock.now(), event)):
            print(line, file=sys.stderr)


# -- for machines -----------------------------------------------------------------------------------------------------


def _print_json(judged: Callable[..., Validation]) -> Validation:
    """Stream one document with a verdict per line: the verdicts of a large file are never all in memory."""
    with tempfile.SpooledTemporaryFile(IN_MEMORY, "w+", encoding="ascii") as verdicts:

        def keep(line: PairVerdict | BadLine) -> None:
            usable, reasons = (False, (line.reason,)) if isinstance(line, BadLine) else (line.usable, line.reasons)
            row = json.dumps({"line": line.line, "usable": usable, "reasons": reasons})
            verdicts.write(f",\n{row}")

        result = judged(on_line=keep)
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
    if not report["pairs"]:  # without pairs, no figure would help
        _print_bad_lines(console, result.bad_lines, figures["bad_lines"])
        return
    console.print(
        Text(
            f"{plural(report['pairs'], 'pair')}, {figures['usable']:,} usable, "
            f"{figures['byte_identical']:,} with a revision byte-identical to the draft"
        )
    )
    _print_figures(console, report)
    _print_counts(console, report)
    if report["relevance"]["measured"] == 0:
        console.print(
            Text(
                "not measured: whether a revision depends on its prompt. --base-model-id MODEL measures it; without it, a "
                "text that would fit any message counts as usable",
                style="dim",
            )
        )
    _print_examples(console, report["examples"])
    _print_bad_lines(console, result.bad_lines, figures["bad_lines"])
    console.print(Text(_conclusion(report), style="bold"))
    if report["export"]:
        console.print(Text(_export_summary(report["export"])))


def _print_figures(console: Console, report: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    warnings: list[Figure] = []
    for row in report["gate"]["figures"]:
        figure = Figure.from_dict(row)
        status = {True: "ok", None: "skipped", False: "failed" if figure.refuses else "warning"}[figure.passes]
        cells = (GLYPH[status], figure.title, figure.sentence)
        table.add_row(*(Text(cell, style=COLOUR.get(status, "")) for cell in cells))
        if status in ("failed", "warning"):
            warnings.append(figure)
    console.print(table)
    for figure in warnings:
        console.print(Text(f"{figure.title}: {figure.remedy}", style="dim"))


def _print_counts(console: Console, report: dict[str, Any]) -> None:
    if report["left_out"]:
        console.print(Text(f"left out: {_count_list(report['left_out'])}"))
    if report["principles"]:
        console.print(Text(f"principles: {_count_list(report['principles'])}"))
    if report["scored"]:
        by = f"by {visible_line(report['scored_by'], 60)}" if report["scored_by"] else "by the file's own scores"
        console.print(
            Text(f"scored: {report['scored']:,} of the pairs that would train, {by}; {report['tied']:,} tied")
        )
    people = report["people"]
    if people["decided"] or people["not_here"] or people["damaged"] or people["torn"]:
        kinds = _count_list(
            {word: people[word] for word in ("accepted", "rejected", "flipped", "edited") if people[word]}
        )
        console.print(
            Text(f"decisions about {plural(people['decided'], 'pair')} (edits.jsonl){': ' if kinds else ''}{kinds}")
        )
        if people["not_here"]:
            console.print(
                Text(f"decisions about {plural(people['not_here'], 'pair')} not in this file", style="yellow")
            )
        if people["torn"]:
            console.print(Text("the last line of edits.jsonl is incomplete and ignored", style="yellow"))
        for bad in people["damaged"][:BAD_LINES_SHOWN]:
            console.print(Text(f"line {bad['line'] + 1} of edits.jsonl: {visible_line(bad['reason'])}", style="red"))


def _count_list(counts: dict[str, int]) -> str:
    shown = list(counts.items())[:BAD_LINES_SHOWN]
    more = f", and {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
    return ", ".join(f"{count:,} {visible_line(name, 60)}" for name, count in shown) + more


def _print_examples(console: Console, examples: dict[str, list[dict[str, Any]]]) -> None:
    for reason, rows in list(examples.items())[:BAD_LINES_SHOWN]:
        row = rows[0]
        console.print(Text(f"{visible_line(reason, 60)}, for example line {row['line'] + 1}:", style="dim"))
        for word, key in (("prompt", "prompt"), ("draft", "base_response"), ("revision", "revised_response")):
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


def _export_summary(export: dict[str, Any]) -> str:
    path = visible_line(export["path"])
    if export["written"]:
        return f"Wrote {export['pairs']:,} training pairs to {path}."
    return f'Did not write {path}: the gate is shut. Open it with --accept-quality "your reason".'
