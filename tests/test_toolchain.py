"""Stage 2 with programs on a PATH of the test's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from engine.config import load_config
from engine.context import Context
from engine.errors import PreconditionError
from engine.events import Check, Event
from engine.run import Run
from engine.stages import toolchain
from engine.stages.base import StageResult
from engine.telemetry import Gpus


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty; Python itself is elsewhere, with nothing beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python/bin/python"))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def drive(tmp_path: Path, **options: Any) -> tuple[StageResult, dict[str, Check], list[Event]]:
    context = Context(config=load_config(options, environment={}), run=Run(tmp_path / "run"))
    events: list[Event] = []
    stage = toolchain.run(context)
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            return end.value, {event.name: event for event in events if isinstance(event, Check)}, events


def test_every_tool_is_named_with_its_version(tmp_path: Path, programs: Path) -> None:
    program(programs, "uv", "echo 'uv 0.9.1 (abc 2026-01-01)'")
    program(programs, "git", "echo 'git version 2.39.5'")
    program(programs, "tmux", "echo 'tmux 3.3a'")
    result, checks, _ = drive(tmp_path, device="cpu")
    assert {name: check.status for name, check in checks.items() if name != "NVIDIA driver"} == {
        "python": "ok", "uv": "ok", "git": "ok", "tmux": "ok",
    }  # fmt: skip
    assert (result.facts["uv"], result.facts["git"], result.facts["tmux"]) == ("0.9.1", "2.39.5", "3.3a")
    assert checks["python"].detail.startswith(".".join(map(str, sys.version_info[:3])))


def test_what_is_missing_warns_and_says_how_to_get_it(tmp_path: Path, programs: Path) -> None:
    result, checks, _ = drive(tmp_path)
    assert {checks[name].status for name in ("uv", "git", "tmux")} == {"warning"}
    assert "astral.sh/uv" in checks["uv"].detail and "apt install tmux" in checks["tmux"].detail
    assert "without uv, git, tmux" in result.summary


def test_a_missing_git_is_a_failure_only_where_something_is_to_be_cloned(tmp_path: Path, programs: Path) -> None:
    with pytest.raises(PreconditionError, match="git is missing"):
        drive(tmp_path, repo_url="https://example.org/a.git")


def test_a_broken_tool_counts_as_missing_and_its_words_cannot_drive_the_terminal(
    tmp_path: Path, programs: Path
) -> None:
    program(programs, "uv", "printf 'segfault\\033[2J'; exit 139")
    result, checks, _ = drive(tmp_path)
    assert result.facts["uv"] is None and checks["uv"].status == "warning"
    assert "segfault␛[2J" in checks["uv"].detail


def test_uv_is_installed_with_pip_where_asked(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = tmp_path / "python/bin"
    beside.mkdir(parents=True)
    # A Python whose `-m pip install … uv` puts a uv beside itself.
    program(
        beside,
        "python",
        f"echo \"Collecting $*\"; printf '#!/bin/sh\\necho uv 1.2.3\\n' > {beside}/uv; /bin/chmod +x {beside}/uv",
    )
    result, checks, events = drive(tmp_path, install=True)
    assert checks["uv"].status == "ok" and result.facts["uv"] == "1.2.3"
    assert "-m pip install" in str(events)


def test_an_installation_that_fails_is_told_and_does_not_end_the_stage(tmp_path: Path, programs: Path) -> None:
    beside = tmp_path / "python/bin"
    beside.mkdir(parents=True)
    program(beside, "python", "echo 'No module named pip' >&2; exit 1")
    result, checks, events = drive(tmp_path, install=True)
    assert checks["uv"].status == "warning" and result.facts["uv"] is None
    assert "No module named pip" in str(events)


def test_a_cpu_run_needs_no_driver(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gpus, "driver_version", lambda self: None)
    assert drive(tmp_path, device="cpu")[1]["NVIDIA driver"].status == "skipped"
    assert drive(tmp_path)[1]["NVIDIA driver"].status == "warning"
