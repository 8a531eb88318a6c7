"""Continue in a fresh process: exec replaces this process by a new one, which resumes the run.

Memory that a CUDA context holds or has fragmented is freed only when the process ends (pytorch#18853), and a context that
broke stays broken (pytorch#2300). The process keeps its id and its parent, so whatever waits for it, a shell or a
scheduler, sees one process from start to end.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from engine.security.secrets import Secret


def resume_command(folder: Path, *, auto: bool, until: str, json: bool = False, verbose: bool = False) -> list[str]:
    """The command that continues the run in `folder`: this program as it was started, with the run's recorded options."""
    chosen = [flag for flag, wanted in {"--auto": auto, "--json": json, "--verbose": verbose}.items() if wanted]
    return [*program(), "--restarted", *chosen, "--until", until, "--output-dir", str(folder)]


def program() -> list[str]:
    """This program as it was started, without its arguments."""
    return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]]


def reexec(command: list[str], token: Secret | None) -> NoReturn:
    """Replace this process by `command`; the caller has released the run and left the terminal as it was."""
    for number in (int(name) for name in os.listdir("/proc/self/fd")):  # noqa: PTH208
        if number > 2:  # the driver frees memory when the last of its files is closed
            _close_at_exec(number)
    if token is not None:
        command = [*command, "--token-fd", str(_pipe_with(token.reveal()))]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


def _pipe_with(text: str) -> int:
    """The read end of a pipe with the text, which so appears neither in the process list nor in a file."""
    read, write = os.pipe()
    os.write(write, text.encode() + b"\n")
    os.close(write)
    os.set_inheritable(read, True)
    return read


def _close_at_exec(number: int) -> None:
    try:
        os.set_inheritable(number, False)
    except OSError:
        return  # the directory listing's own, closed by now
