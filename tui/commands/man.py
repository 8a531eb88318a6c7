"""`stage3-tui man`: the manual page, from the same tables as `--help`."""

from __future__ import annotations

import argparse
import sys
from datetime import date

from engine import __version__
from tui.commands.arguments import new_parser, parse
from tui.commands.flags import Flag, command_lines
from tui.commands.run import DESCRIPTION, EXIT_CODES
from tui.commands.table import COMMANDS, PROGRAM, WITHOUT_COMMAND

FILES = (
    ("stage3.toml", "options, if passed with --config; --init-config writes one"),
    ("artifacts/stage3_constitutional", "the run folder, unless --output-dir sets another"),
    ("$XDG_CONFIG_HOME/stage3-tui/themes", "themes of your own"),
    ("$XDG_STATE_HOME/stage3-tui", "the last theme chosen"),
)


def main(arguments: list[str]) -> int:
    parse(command_parser(), arguments)
    sys.stdout.write(page())
    return 0


def command_parser() -> argparse.ArgumentParser:
    return new_parser(
        f"Print the manual page as troff: {PROGRAM} man | man -l -", "", usage=f"{PROGRAM} man > {PROGRAM}.1"
    )


def page() -> str:
    """The page in the macros of man(7)."""
    lines = [
        f'.TH {_escaped(PROGRAM.upper())} 1 {date.today()} "{PROGRAM} {__version__}" "User Commands"',
        ".SH NAME",
        f"{_escaped(PROGRAM)} \\- Stage 3 of Constitutional AI from a terminal",
        ".SH SYNOPSIS",
        f".B {_escaped(PROGRAM)}",
        "[COMMAND] [OPTIONS]",
        ".SH DESCRIPTION",
        _escaped(DESCRIPTION),
        ".SH COMMANDS",
    ]
    lines += [line for usage, sentence in WITHOUT_COMMAND for line in _item(f"{PROGRAM} {usage}".strip(), sentence)]
    lines += [line for command in COMMANDS.values() for line in _item(f"{PROGRAM} {command.usage}", command.sentence)]
    lines += [
        ".PP",
        f"{_escaped(PROGRAM)} COMMAND \\-\\-help describes a command.",
        ".SH OPTIONS",
        "Each option is also an environment variable (STAGE3_NUM_EXAMPLES for \\-\\-num\\-examples), and a key in the TOML",
        "file of \\-\\-config.",
        "The command line takes precedence, then the environment, then the file.",
    ]
    groups: dict[str, list[Flag]] = {}
    for flag in command_lines()[0].flags:
        groups.setdefault(flag.group or "How to run", []).append(flag)
    for group, flags in groups.items():
        lines.append(f".SS {_escaped(group)}")
        for flag in flags:
            lines += _item(_invocation(flag), flag.sentence)
    lines += [".SH EXIT STATUS"]
    lines += [line for code, meaning in EXIT_CODES for line in _item(code, meaning)]
    lines += [".SH FILES"]
    lines += [line for name, sentence in FILES for line in _item(name, sentence)]
    return "\n".join(lines) + "\n"


def _invocation(flag: Flag) -> str:
    names = " / ".join(flag.names)
    return names if flag.kind == "nothing" else f"{names} {flag.metavar}"


def _item(head: str, text: str) -> list[str]:
    return [".TP", f".B {_escaped(head)}", *([_escaped(text)] if text else [])]


def _escaped(text: str) -> str:
    """Escape text for troff: hyphens that can be copied, and no line that starts a request."""
    for plain, troff in (("\\", "\\e"), ("-", "\\-"), ("…", "..."), ('"', "\\(dq")):
        text = text.replace(plain, troff)
    return f"\\&{text}" if text.startswith((".", "'")) else text
