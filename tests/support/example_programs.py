"""Stand-ins for the programs that the scripts in examples/ start, on their own PATH: they record their arguments."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

SCRIPT = """#!{shell}
{{ printf '%s\\0' "${{0##*/}}" "$@"; echo; }} > "{calls}.$$"
cat "{calls}.$$" >> "{calls}"  # in one write: two programs may start at once
{then}
"""
WAITS_FOR_SIGTERM = "trap 'kill $!; exit 143' TERM; echo $$ > '{folder}/pid'; sleep 60 & wait $!"
"""Behaves like the program: works until SIGTERM, saves, and reports it with its exit code."""


@dataclass(frozen=True)
class Programs:
    """A folder of stand-ins."""

    folder: Path

    @property
    def calls_file(self) -> Path:
        return self.folder / "calls"

    def add(self, name: str, then: str = "exit 0") -> None:
        """Add a program that records its arguments, then runs `then` (bash)."""
        bin_folder = self.folder / "bin"
        bin_folder.mkdir(exist_ok=True)
        text = SCRIPT.format(
            shell="/usr/bin/env bash", calls=self.calls_file, then=then.replace("{folder}", str(self.folder))
        )
        (bin_folder / name).write_text(text, encoding="utf-8")
        (bin_folder / name).chmod(0o755)

    def add_real_program(self) -> None:
        """Add the program of this checkout."""
        self.add("stage3-tui", f'exec "{sys.executable}" -m tui.cli "$@"')

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call of a program."""
        recorded = self.calls_file.read_text(encoding="utf-8").split("\0\n") if self.calls_file.exists() else []
        calls = [call.split("\0") for call in recorded if call]
        return [call[1:] for call in calls if call[0] == name]

    def environment(self, **variables: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "HOME": str(self.folder), "PYTHONPATH": str(ROOT), **variables}

    def start(self, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(word) for word in command],
            env=self.environment(**environment),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, name: str, seconds: float = 60) -> str:
        """Wait until a file in the folder has text, and return it."""
        file = self.folder / name
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if file.exists() and (text := file.read_text(encoding="utf-8").strip()):
                return text
            time.sleep(0.02)
        raise AssertionError(f"{name} was not written within {seconds} s")


def configuration_of(arguments: list[str]) -> object:
    """The configuration that the program would run with. Raises ConfigError for an option or a value that does not exist."""
    from tui.commands.arguments import config_of, parse
    from tui.commands.run import command_parser

    return config_of(parse(command_parser(), arguments))
