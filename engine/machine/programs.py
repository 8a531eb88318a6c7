"""The programs that a run uses: their paths and versions, the oldest supported version and why, and how to install them."""

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
GIT_PURPOSE = "git clones --repo-url."
"""Why git is needed."""


@dataclass(frozen=True)
class Program:
    name: str
    find: Callable[[], str | None]
    """Finds its path; returns None if it is missing."""
    version_option: str
    """The option that prints its version."""
    oldest: tuple[int, ...]
    why_not_older: str
    how_to_install: str
    """How to install or upgrade it."""


@dataclass(frozen=True)
class FoundProgram:
    """The result of looking for a program."""

    program: Program
    path: str | None = None
    version: str | None = None
    fault: str = ""
    """Why it is unusable (missing, too old, broken), without the remedy; empty if it is usable."""

    @property
    def ok(self) -> bool:
        return not self.fault

    def as_error(self, why: str) -> PreconditionError:
        """The error for a run that needs the program for `why`."""
        return PreconditionError(
            f"{self.program.name}: {self.fault}.", why, f"Install it with {self.program.how_to_install}."
        )


def find_uv() -> str | None:
    """The path of uv: on PATH, next to this Python, where its installer puts it (often not on PATH over ssh), or in the package
    uv.
    """
    other_folders = (
        str(Path(sys.executable).parent),
        *(str(Path.home() / folder) for folder in (".local/bin", ".cargo/bin")),
    )
    if found := shutil.which("uv", path=os.pathsep.join((os.environ.get("PATH", os.defpath), *other_folders))):
        return found
    if importlib.util.find_spec("uv") is None:
        return None
    import uv  # type: ignore[import-not-found,unused-ignore]

    try:
        return str(uv.find_uv_bin())
    except (AttributeError, FileNotFoundError):  # another package of this name, or uv without its program
        return None


UV = Program(
    "uv",
    find_uv,
    "--version",
    (0, 7, 14),
    "from this version, --torch-backend, which picks torch's build for the driver, is stable",
    "`curl -LsSf https://astral.sh/uv/install.sh | sh`",
)
GIT = Program(
    "git",
    lambda: shutil.which("git"),
    "--version",
    (2, 15),
    "it added --no-optional-locks, which reads a checkout without locking it",
    f"`apt install git`, {PACKAGE_MANAGER}",
)
TMUX = Program(
    "tmux",
    lambda: shutil.which("tmux"),
    "-V",
    (2, 2),
    "it added 24-bit colours; older versions draw the themes in 256",
    f"`apt install tmux`, {PACKAGE_MANAGER}",
)


def find_program(program: Program) -> FoundProgram:
    """Find a program and its version. It is unusable if it does not print a version or is too old."""
    path = program.find()
    if path is None:
        return FoundProgram(program, fault="missing")
    try:
        result = run_child([path, program.version_option], limit_seconds=ASK_SECONDS)
    except PreconditionError as error:
        return FoundProgram(program, path, fault=f"{error.what.rstrip('.')} ({error.why})")
    match = re.search(r"\d+(\.\w+)+", " ".join(result.output))
    if not result.ok or match is None:
        return FoundProgram(
            program, path, fault=f"{visible_line(path)} does not print its version ({visible_line(result.ending, 200)})"
        )
    if version_numbers(match[0]) < program.oldest:
        oldest = ".".join(map(str, program.oldest))
        fault = f"{match[0]} is too old; it must be at least {oldest} ({program.why_not_older})"
        return FoundProgram(program, path, match[0], fault)
    return FoundProgram(program, path, match[0])


def require(program: Program, why: str) -> FoundProgram:
    """Find a program that is needed for `why`. Raises PreconditionError if it is unusable."""
    found = find_program(program)
    if not found.ok:
        raise found.as_error(why)
    return found


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers in a version. In each part, anything after the number is ignored: `3.3a` is (3, 3)."""
    return tuple(int(match[0]) for part in version.split(".") if (match := re.match(r"\d+", part)))
