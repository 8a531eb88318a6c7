"""The programs around a run: where each is, its version, how old it may be and why, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.core.errors import PreconditionError
from engine.process.children import run_child
from engine.security.sanitize import visible_line

ASK_SECONDS = 20.0
PACKAGE_MANAGER = "or your system's package manager"
CLONING = "--repo-url is cloned with it."
"""What git is needed for."""


@dataclass(frozen=True)
class Program:
    name: str
    find: Callable[[], str | None]
    """Its path; None where it is not there."""
    ask: str
    """The option with which it says its version."""
    oldest: tuple[int, ...]
    why_not_older: str
    get: str
    """How to get it, or a newer one."""


@dataclass(frozen=True)
class FoundProgram:
    """What was found of a program."""

    program: Program
    path: str | None = None
    version: str | None = None
    fault: str = ""
    """Why it is of no use (missing, too old, broken), without what mends that; empty where it is of use."""

    @property
    def ok(self) -> bool:
        return not self.fault

    def refusal(self, why: str) -> PreconditionError:
        """For a run that cannot do without it. `why` says what it is needed for."""
        return PreconditionError(f"{self.program.name}: {self.fault}.", why, f"Get it with {self.program.get}.")


def find_uv() -> str | None:
    """On PATH, beside this Python, where its installer puts it (no part of PATH in many ssh sessions), or in the package uv."""
    beside = (str(Path(sys.executable).parent), *(str(Path.home() / folder) for folder in (".local/bin", ".cargo/bin")))
    if found := shutil.which("uv", path=os.pathsep.join((os.environ.get("PATH", os.defpath), *beside))):
        return found
    if importlib.util.find_spec("uv") is None:
        return None
    import uv  # type: ignore[import-not-found,unused-ignore]

    try:
        return str(uv.find_uv_bin())
    except (AttributeError, FileNotFoundError):  # some other package of this name, or one without its program
        return None


UV = Program(
    "uv",
    find_uv,
    "--version",
    (0, 7, 14),
    "from then on --torch-backend, which picks torch's build by the driver, is no preview",
    "`curl -LsSf https://astral.sh/uv/install.sh | sh`",
)
GIT = Program(
    "git",
    lambda: shutil.which("git"),
    "--version",
    (2, 15),
    "--no-optional-locks came with it: looking at a checkout must take no lock there",
    f"`apt install git`, {PACKAGE_MANAGER}",
)
TMUX = Program(
    "tmux",
    lambda: shutil.which("tmux"),
    "-V",
    (2, 2),
    "24-bit colours came with it; an older one draws the themes in 256",
    f"`apt install tmux`, {PACKAGE_MANAGER}",
)


def find_program(program: Program) -> FoundProgram:
    """Find a program and ask it for its version. One that does not answer, or is too old, is of no use."""
    path = program.find()
    if path is None:
        return FoundProgram(program, fault="missing")
    try:
        answer = run_child([path, program.ask], limit_seconds=ASK_SECONDS)
    except PreconditionError as error:
        return FoundProgram(program, path, fault=f"{error.what.rstrip('.')} ({error.why})")
    match = re.search(r"\d+(\.\w+)+", " ".join(answer.output))
    if not answer.ok or match is None:
        return FoundProgram(
            program, path, fault=f"{visible_line(path)} does not say its version ({visible_line(answer.ending, 200)})"
        )
    if version_numbers(match[0]) < program.oldest:
        oldest = ".".join(map(str, program.oldest))
        fault = f"{match[0]} is too old, {oldest} is the oldest of use ({program.why_not_older})"
        return FoundProgram(program, path, match[0], fault)
    return FoundProgram(program, path, match[0])


def require(program: Program, why: str) -> FoundProgram:
    """The program. Raises PreconditionError where it is of no use; `why` says what it is needed for."""
    found = find_program(program)
    if not found.ok:
        raise found.refusal(why)
    return found


def version_numbers(version: str) -> tuple[int, ...]:
    """`3.3a` is (3, 3); what follows the numbers of a part does not count."""
    return tuple(int(match[0]) for part in version.split(".") if (match := re.match(r"\d+", part)))
