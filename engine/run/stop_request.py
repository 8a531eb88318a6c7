"""The file with which another process requests a run to save and stop (`stage3-tui stop`, `attach`)."""

from __future__ import annotations

from pathlib import Path

from engine.core import layout


def exists(folder: Path) -> bool:
    return (folder / layout.STOP_REQUEST).is_file()


def create(folder: Path) -> None:
    (folder / layout.STOP_REQUEST).touch()


def remove(folder: Path) -> None:
    """Remove the request. Anything other than a file, such as a folder of that name, is not a request and stays."""
    if exists(folder):
        (folder / layout.STOP_REQUEST).unlink(missing_ok=True)
