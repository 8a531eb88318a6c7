"""`stage3-tui serve`: a run in a browser, as `attach` shows it; on loopback, with a token, read-only by default."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from engine.core.errors import ConfigError, PreconditionError
from engine.security.secrets import TOKEN_VARIABLES
from tui.commands.arguments import parse, run_dir_of, run_dir_parser
from tui.commands.table import PROGRAM
from tui.process.reexec import program

PORT = 8765
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(arguments: list[str]) -> int:
    args = parse(command_parser(), arguments)
    folder = Path(run_dir_of(args)).absolute()
    if not 0 < args.port < 65_536:
        raise ConfigError(f"--port {args.port} is not a port.", "Ports are 1 to 65535.", f"Use --port {PORT}.")
    try:
        from tui.process.browser import serve
    except ImportError as error:
        raise PreconditionError(
            "textual-serve is not installed.",
            f"It draws the screens in the browser ({error}).",
            f"Install the extra: `uv tool install '{PROGRAM}[serve]'` or `pip install '{PROGRAM}[serve]'`.",
        ) from error
    for name in TOKEN_VARIABLES:  # watching needs no token
        os.environ.pop(name, None)
    if args.host not in LOOPBACK:
        print(
            f"warning: other machines can reach {args.host}, and the connection is not encrypted. "
            "An SSH tunnel to the loopback address is safer.",
            file=sys.stderr,
            flush=True,
        )
    return serve(command_of(folder, control=args.control), host=args.host, port=args.port, title=folder.name)


def command_of(folder: Path, *, control: bool) -> str:
    """The command behind each browser's screen; `exec`, so that there is no shell between it and the server."""
    words = [*program(), "attach", str(folder), "--in-browser", *(() if control else ("--hands-off",))]
    return f"exec {shlex.join(words)}"


def command_parser() -> argparse.ArgumentParser:
    parser = run_dir_parser(
        "serve",
        "Show a run in a browser. Prints an address with a token: whoever has it can see everything in the run folder, but\n"
        "change nothing. From another machine: ssh -L 8765:127.0.0.1:8765 HOST, then open the address there.",
    )
    parser.add_argument("--host", default=LOOPBACK[0], metavar="HOST", help=f"the address to listen on [{LOOPBACK[0]}]")
    parser.add_argument("--port", type=int, default=PORT, metavar="PORT", help=f"the port to listen on [{PORT}]")
    parser.add_argument("--control", action="store_true", help="viewers may also ask the run to stop")
    return parser
