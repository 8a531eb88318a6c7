"""`stage3-tui doctor`: what this machine can run."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.text import Text

from engine.core.config import Stage3Config
from engine.core.errors import ExitCode, Stage3Error
from engine.core.options import options
from engine.pipeline.doctor import examine
from engine.security.sanitize import visible_line
from tui.commands.arguments import add_options, config_of, new_parser, parse
from tui.commands.event_lines import COLOUR, GLYPH, NAME_WIDTH
from tui.commands.table import PROGRAM


def main(arguments: list[str]) -> int:
    given = parse(command_parser(), arguments)
    return print_doctor(config_of(given))


def command_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "What this machine can run: driver, VRAM, disk, versions, token.", "", usage=f"{PROGRAM} doctor"
    )
    add_options(parser, [option for option in options() if option.name in ("device", "output_dir")])
    return parser


def print_doctor(config: Stage3Config) -> int:
    """What stages toolchain and dependencies find, and GPU, disk and token, without a run."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    worst = ExitCode.DONE
    for finding in examine(config):
        if isinstance(finding, Stage3Error):
            worst = finding.exit_code
            console.print(Text(f"✗ {visible_line(str(finding))}", style="red"))
        else:
            line = f"{GLYPH[finding.status]} {visible_line(finding.name):{NAME_WIDTH}} {visible_line(finding.detail)}"
            console.print(Text(line, style=COLOUR.get(finding.status, "")))
    return int(worst)
