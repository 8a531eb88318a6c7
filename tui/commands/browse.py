"""`stage3-tui browse FILE`: browse the pairs of any file and decide about them, without a run or a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.core.options import options
from tui.commands.arguments import add_options, config_of, new_parser, parse, require_terminal
from tui.commands.table import PROGRAM
from tui.commands.validate import is_gate_option


def main(arguments: list[str]) -> int:
    args = parse(command_parser(), arguments)
    config = config_of(args)
    require_terminal()
    from tui.wizard.pair_file import browse

    return browse(Path(args.file), config)


def command_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "Open any file of preference pairs (docs/files-you-have.md) in the pair browser, with its filter, detectors and gate.\n"
        "The better reply is shown as the revision, the worse one as the draft. The file itself is never changed: your\n"
        "decisions go to FILE.edits.jsonl, which `validate` and `--pairs` read.",
        "",
        usage=f"{PROGRAM} browse FILE [OPTIONS]",
    )
    parser.add_argument("file", metavar="FILE", help="a file of preference pairs")
    display = ("theme", "mouse", "ascii")
    add_options(parser, [option for option in options() if is_gate_option(option) or option.name in display])
    return parser
