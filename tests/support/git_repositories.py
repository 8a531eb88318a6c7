"""Real git repositories for the tests of stage workspace, and helpers for its events."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine.core.config import load_config
from engine.core.events import Check, Event
from engine.run.context import Context
from engine.run.folder import Run
from engine.stages import workspace
from engine.stages.base import StageEnd

NO_CONFIGURATION = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
"""Keeps the tests' own git from reading this machine's configuration."""


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", *identity, "-c", "protocol.file.allow=always", "-C", str(folder), *arguments],
        check=True, capture_output=True, text=True, env={**os.environ, **NO_CONFIGURATION},
    )  # fmt: skip
    return done.stdout.strip()


def make_upstream(folder: Path) -> Path:
    """A repository with two commits on main, a tag on the first, and a symbolic link."""
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "readme").write_text("first")
    (folder / "link").symlink_to("/etc/passwd")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    git(folder, "tag", "-a", "v1", "-m", "v1")
    (folder / "readme").write_text("second")
    git(folder, "commit", "-qam", "second")
    return folder


def context(tmp_path: Path, **options: Any) -> Context:
    options = {"base_model_id": str(tmp_path), "dataset": str(tmp_path), **options}
    return Context(config=load_config(options, environment={}), run=Run(tmp_path / "run"))


def drive(given: Context) -> tuple[StageEnd, list[Event]]:
    """Run the stage and record its result as the pipeline does."""
    events: list[Event] = []
    stage = workspace.run(given)
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            given.run.record_stage("workspace", status="done", result=dict(end.value.facts))
            return end.value, events


def detail(events: list[Event], name: str) -> str:
    return next(event.detail for event in events if isinstance(event, Check) and event.name == name)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def program(folder: Path, name: str, script: str) -> Path:
    """Write a fake program; `folder` goes first on PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)
    return folder / name


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    return make_upstream(tmp_path / "upstream")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
