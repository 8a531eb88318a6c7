"""Edit a text in the user's editor, while the screen is suspended and the run continues."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from engine.process.children import environment_without_secrets
from tui.terminal.driver import WizardDriver

FALLBACKS = ("sensible-editor", "nano", "vim", "vi")


def editor_command() -> list[str]:
    """The command in $VISUAL or $EDITOR, else an installed editor. Raises ValueError, with a message for the user."""
    for name in ("VISUAL", "EDITOR"):
        if words := shlex.split(os.environ.get(name, "")):
            return words
    found = next((path for name in FALLBACKS if (path := shutil.which(name))), None)
    if found is None:
        raise ValueError("No editor found: set EDITOR, or press e to edit here.")
    return [found]


async def edit_externally(driver: WizardDriver | None, folder: Path, text: str) -> str | None:
    """The edited text; None if the editor failed or the text is empty.

    driver   the driver of the terminal that the editor may use; without one the editor gets no terminal

    Raises ValueError if there is no editor or it cannot be started, OSError if the file cannot be written.
    """
    command = editor_command()
    handle, name = tempfile.mkstemp(prefix="edit-", suffix=".txt", dir=folder / "pairs")  # mode 0600
    path = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text if text.endswith("\n") else text + "\n")
        code = await _with_the_terminal(driver, [*command, name])
        edited = path.read_text(encoding="utf-8", errors="backslashreplace")
    except (FileNotFoundError, PermissionError) as error:
        raise ValueError(f"Cannot start {command[0]}: {error.strerror}.") from error
    finally:
        path.unlink(missing_ok=True)
    if code != 0 or not edited.strip():
        return None
    return edited if text.endswith("\n") else edited.removesuffix("\n")


async def _with_the_terminal(driver: WizardDriver | None, command: list[str]) -> int:
    """Run a program on the terminal while the screen is suspended; signals are still handled."""
    if driver is None:
        screen = (subprocess.DEVNULL, subprocess.DEVNULL)
    else:
        screen = (driver.fileno, driver.terminal_file)
        driver.suspend("")
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            stdin=screen[0],
            stdout=screen[1],
            stderr=screen[1],
            env=environment_without_secrets(),
            check=False,
        )
    finally:
        if driver is not None:
            driver.resume()
    return done.returncode
