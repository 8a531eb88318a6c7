"""`stage3-tui sweep`: several trainings on one set of pairs, compared on the same held-out prompts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.core import layout
from engine.core.errors import ConfigError
from engine.core.options import options
from engine.core.stage_table import STAGES
from engine.run.folder import Run
from engine.run.reports import SweepReport
from engine.security.sanitize import visible_line
from engine.storage.documents import read_json_or_none
from tui.commands.arguments import add_options, add_token_options, config_of, new_parser, parse, token_of
from tui.commands.auto import run_and_print
from tui.commands.table import PROGRAM
from tui.formatting import duration

if TYPE_CHECKING:
    from engine.core.config import Stage3Config
    from engine.pipeline.session import Session
    from engine.pipeline.trials import Trial

VERDICT_STYLE = {"better": "green", "worse": "red"}
DEFAULT_TRIALS_HELP = "a TOML file: [grid] with a list for each option, or [[trial]] tables"


def main(arguments: list[str]) -> int:
    from engine.pipeline.trials import checked, options_to_try

    args = parse(command_parser(), arguments)
    grid = {name: text.split(",") for name in options_to_try() if "," in (text := str(getattr(args, name) or ""))}
    for name in grid:
        setattr(args, name, None)
    config = config_of(args)
    trials = checked(config, _trials(grid, args.trials))
    config = with_doubled_eval_set(config, args)
    return run_sweep_and_print(config, trials, args)


def command_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "Train several times on one set of pairs: run stages workspace to quality once, then one training for each\n"
        "combination of values, each in its own folder (trials/NAME), all evaluated on the same half of the held-out pairs.\n"
        "The same command continues an interrupted sweep. --pick best (or --pick NAME) makes that trial the run's own\n"
        "training, gives it a verdict on the other half, and packs it.",
        "For example: stage3-tui sweep --beta 0.05,0.1,0.3 --learning-rate 5e-6,5e-5 --pick best",
        usage=f"{PROGRAM} sweep --OPTION VALUE,VALUE… [OPTIONS]",
    )
    parser.add_argument("--demo", action="store_true", help="use the embedded model, adapter, prompts and judge")
    parser.add_argument("--trials", metavar="FILE", help=DEFAULT_TRIALS_HELP)
    parser.add_argument(
        "--pick",
        metavar="best|NAME",
        help="make this trial the run's result: evaluate it on the other half and pack it",
    )
    parser.add_argument("--json", action="store_true", help="events on stdout, one JSON object per line")
    parser.add_argument("--verbose", action="store_true", help="print every check and checkpoint")
    parser.add_argument("--config", metavar="FILE", help="read options from a TOML file")
    parser.add_argument("--token-fd", type=int, help=argparse.SUPPRESS)
    add_token_options(parser)
    add_options(parser, options())
    return parser


def _trials(grid: dict[str, list[str]], file: str | None) -> list[Trial]:
    from engine.pipeline.trials import options_to_try, trials_from_grid, trials_from_toml

    if file is not None:
        if grid:
            raise ConfigError(
                "--trials cannot be combined with lists of values.", "", "Put the lists into the file's [grid]."
            )
        return trials_from_toml(Path(file))
    if not grid:
        raise ConfigError(
            "A sweep needs several values of at least one option.",
            "No option has a list of values.",
            f"For example, pass --beta 0.05,0.1. A sweep can vary {', '.join(options_to_try())}.",
        )
    return trials_from_grid(grid)


def with_doubled_eval_set(config: Stage3Config, args: argparse.Namespace) -> Stage3Config:
    """Hold out twice as many pairs, unless their number was set: one half selects, the other gives the verdict."""
    if args.min_eval_pairs is not None or args.eval_fraction is not None:
        return config
    doubled = {"min_eval_pairs": 2 * config.min_eval_pairs, "eval_fraction": min(2 * config.eval_fraction, 0.5)}
    return config.model_copy(update=doubled)


def run_sweep_and_print(config: Stage3Config, trials: list[Trial], args: argparse.Namespace) -> int:
    def sweep(session: Session) -> int:
        from engine.pipeline.sweep import run_sweep

        return int(session.drive(run_sweep(session.context, trials, args.pick), STAGES))

    def restart_command(_: Run) -> list[str]:
        return [sys.executable, *(word for word in sys.orig_argv[1:] if word != "--token-stdin")]

    code = run_and_print(config, sweep, restart_command, json=args.json, verbose=args.verbose, token=token_of(args))
    report = read_report(Run(config.output_dir))
    if report is not None and not args.json:
        print_table(report)
    return code


def read_report(run: Run) -> dict[str, Any] | None:
    """`trials/sweep.json`; None if it does not exist or cannot be read."""
    report = read_json_or_none(run / layout.SWEEP_REPORT, SweepReport)
    return None if report is None else report.model_dump()


def print_table(report: dict[str, Any]) -> None:
    """A row per trial: its options and its outcome. Fits 80 columns with two options."""
    console = Console(highlight=False, markup=False, emoji=False)
    trials, picked = report["trials"], report.get("picked")
    varied = list(dict.fromkeys(name for trial in trials for name in trial["options"]))
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    shown = FIGURES if console.width >= WIDE else FIGURES[:-1]
    for title in ("", *(name.replace("_", "\n", 1) for name in varied), *shown):
        table.add_column(title, justify="left" if title == "verdict" else "right", no_wrap=title != "verdict")
    for number, trial in enumerate(trials, start=1):
        mark = f"→{number}" if trial["name"] == picked else str(number)
        values = [f"{trial['options'][name]:g}" if name in trial["options"] else "" for name in varied]
        table.add_row(*(Text(cell) for cell in (mark, *values)), *figure_cells(trial)[: len(shown)])
    console.print(table)
    console.print(Text("Compared on the first half of the held-out pairs; 95 % intervals.", "dim"))
    if picked is None:
        hint = "No trial was picked. To pack one, add --pick best or --pick NUMBER."
        console.print(Text(hint, "dim"))


WIDE = 100
FIGURES = ("loss", "accuracy", "margin", "unusable", "refused", "length", "verdict", "took")


def figure_cells(trial: dict[str, Any]) -> list[Text]:
    if trial.get("outcome") != "done":
        why = f"{trial.get('outcome')}: {visible_line(str(trial.get('summary')), 60)}"
        return [Text("")] * (len(FIGURES) - 2) + [Text(why, "red"), Text("")]
    figures, verdict = trial.get("figures") or {}, str(trial.get("verdict"))
    return [
        Text(number(trial.get("final_loss"), ".4f")),
        with_interval(figures, "reward_accuracy", ".0%"),
        with_interval(figures, "margin", "+.3f"),
        Text(number(figures.get("stage3_unusable_share"), ".0%")),
        Text(number(figures.get("stage3_harmless_refusal_share"), ".0%")),
        Text(number(figures.get("length_ratio"), ".2f")),
        Text(verdict, VERDICT_STYLE.get(verdict, "")),
        Text(duration(trial["seconds"]) if trial.get("seconds") else ""),
    ]


def with_interval(figures: dict[str, Any], name: str, form: str) -> Text:
    """The figure with its interval below."""
    low, high = (number(figures.get(f"{name}_{end}"), form.lstrip("+")) for end in ("low", "high"))
    text = Text(number(figures.get(name), form))
    return text.append(f"\n{low.rstrip('%')}–{high}", "dim") if low and high else text


def number(value: Any, form: str) -> str:
    """Empty if not measured."""
    return format(value, form) if isinstance(value, (int, float)) and value == value else ""
