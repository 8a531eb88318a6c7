"""`stage3-tui doctor`: what this machine can run; with --bundle, an archive for a bug report."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from engine.core.config import Stage3Config
from engine.core.errors import ExitCode, Stage3Error
from engine.core.events import Check
from engine.core.options import options
from engine.pipeline.doctor import examine
from engine.security.sanitize import visible_line
from tui.commands.arguments import add_options, config_of, new_parser, parse
from tui.commands.event_lines import COLOUR, GLYPH, NAME_WIDTH
from tui.commands.table import PROGRAM


def main(arguments: list[str]) -> int:
    args = parse(command_parser(), arguments)
    return print_doctor(config_of(args), bundle=Path(args.bundle) if args.bundle else None)


def command_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "Check what this machine can run: driver, VRAM, disk, versions, token.",
        "The archive of --bundle contains versions, options, the last events and the end of the log of the run in --output-dir,\n"
        "without tokens, prompts, replies, paths, names or addresses. Nothing is sent.",
        usage=f"{PROGRAM} doctor [--bundle [FILE]] [OPTIONS]",
    )
    parser.add_argument(
        "--bundle",
        nargs="?",
        const=time.strftime("stage3-tui-support-%Y%m%d-%H%M%S.zip"),
        metavar="FILE",
        help="write a support archive to FILE [stage3-tui-support-TIME.zip here]",
    )
    add_options(parser, [option for option in options() if option.name in ("device", "output_dir")])
    return parser


def print_doctor(config: Stage3Config, bundle: Path | None = None) -> int:
    """Print the checks of stages toolchain and dependencies, GPU, disk and token, without a run."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    worst = ExitCode.DONE
    findings = []
    for finding in examine(config):
        findings.append(finding)
        if isinstance(finding, Stage3Error):
            worst = finding.exit_code
            console.print(Text(f"✗ {visible_line(str(finding))}", style="red"))
        else:
            line = f"{GLYPH[finding.status]} {visible_line(finding.name):{NAME_WIDTH}} {visible_line(finding.detail)}"
            console.print(Text(line, style=COLOUR.get(finding.status, "")))
    if bundle is not None:
        _print_bundle(console, config, bundle, findings)
    return int(worst)


def _print_bundle(console: Console, config: Stage3Config, path: Path, findings: list[Check | Stage3Error]) -> None:
    from engine.pipeline.support_archive import write_support_archive

    options_in_use = config.model_dump(mode="json")
    written = write_support_archive(path, config.output_dir.expanduser().resolve(), findings, config=options_in_use)
    console.print(f"\n{visible_line(str(path))}")
    for name, size, what in written.members:
        console.print(f"  {name:<15} {size:>9,} bytes  {what}")
    for name in written.missing:
        console.print(f"  missing: {visible_line(name)}")
    taken = ", ".join(f"{number} {kind}" for kind, number in sorted(written.taken.items()))
    console.print(f"Removed: {taken or 'nothing'}.")
    console.print("Nothing was sent. Review the archive before you share it.")
