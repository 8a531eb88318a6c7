"""The command line as users see it: a process, its output and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import __version__
from engine.core.layout import EVENTS_JSONL
from engine.core.options import options
from engine.core.stage_table import STAGES
from engine.run.folder import Run
from tests.conftest import needs_shared_data

ROOT = Path(__file__).parents[2]


def stage3(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tui.cli", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=env, stdin=subprocess.DEVNULL, timeout=120
    )


def test_version_and_help_print():
    assert stage3("--version").stdout == f"stage3-tui {__version__}\n"
    shown = stage3("--help-all").stdout
    for option in options():
        assert option.flag in shown
    for command in ("attach", "stop", "status", "validate", "push", "doctor"):
        assert f"stage3-tui {command}" in shown


def test_help_responds_before_a_person_notices():
    """Not a benchmark: the fastest of five against twice what was measured here (0.10 s)."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        stage3("--help")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--num-exampels", "3"], "--num-examples"),
        (["--until", "trainig"], "training"),
        (["statsu"], "stage3-tui status"),
        (["--json"], "--auto"),
        (["--auto", "--top-p", "2"], "top_p"),
        (["--auto", "--config", "nowhere.toml"], "--config"),
        (["status", "nowhere"], "folder of a run"),
        (["validate", "nowhere.jsonl"], "JSONL"),
        ([], "--auto"),
    ],
)
def test_a_usage_error_prints_what_to_do_and_exits_2(arguments: list[str], hint: str, tmp_path: Path):
    done = stage3(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("failed: ") and hint in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_another_distributions_package_in_place_of_ours_is_detected(tmp_path: Path):
    (tmp_path / "themes").mkdir()
    (tmp_path / "themes" / "__init__.py").write_text("")
    done = stage3("status", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}", cwd=tmp_path)
    # `-m` puts the working folder first, as an editable install puts its own.
    assert done.returncode == 3 and "uv tool install stage3-tui" in done.stderr


def test_validate_reads_the_notebooks_pairs_and_refuses_with_9():
    path = needs_shared_data("gemma-2b-it-pairs.jsonl")
    done = stage3("validate", path)
    assert done.returncode == 9
    assert "1,291 pairs" in done.stdout and "488 with a revision byte-identical" in done.stdout
    report = json.loads(stage3("validate", path, "--json").stdout)
    assert (report["pairs"], report["figures"]["byte_identical"], report["gate"]["open"]) == (1291, 488, False)
    assert set(report["verdicts"][0]) == {"line", "usable", "reasons"}


def test_validate_opens_for_pairs_that_can_teach(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": f"How do I mend thing {i}?",
            "base_response": f"Kick thing {i} {'very ' * (i % 5)}hard.",
            "revised_response": f"Glue thing {i} {'gently ' * (i % 3)}.",
        }
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert stage3("validate", path, "--min-pairs", "40").returncode == 0
    assert stage3("validate", path, "--min-pairs", "41").returncode == 9


def test_auto_json_prints_only_events_and_status_agrees(tmp_path: Path):
    run = tmp_path / "run"
    done = stage3("--auto", "--demo", "--json", "--until", "toolchain", "--output-dir", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert events[0]["kind"] == "run_started" and events[-1] == {**events[-1], "kind": "run_finished", "exit_code": 0}
    assert done.stdout == (run / EVENTS_JSONL).read_text()
    status = json.loads(stage3("status", run, "--json").stdout)
    assert list(status["stages"]) == list(STAGES)
    assert [stage["status"] for stage in status["stages"].values()][:3] == ["done", "done", "waiting"]
    assert "toolchain" in stage3("status", run).stdout


def test_the_wizard_continues_with_the_options_that_the_run_was_started_with(tmp_path: Path):
    import argparse

    from tui.commands.arguments import config_of

    run = Run(tmp_path / "run")
    run.manifest["config"] = {"num_examples": 77, "beta": 0.7, "output_dir": "elsewhere", "of_another_version": 1}
    run.save()
    given = argparse.Namespace(output_dir=str(tmp_path / "run"), beta="0.3")
    resumed = config_of(given, continues=True)
    assert (resumed.num_examples, resumed.beta, resumed.output_dir) == (77, 0.3, tmp_path / "run")
    assert config_of(given).num_examples == 2500


def test_a_failed_run_prints_what_failed_why_and_what_to_do(tmp_path: Path):
    run = tmp_path / "run"
    done = stage3("--auto", "--demo", "--until", "workspace", "--repo-url", tmp_path / "none", "--output-dir", run)
    assert done.returncode == 3
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["failed", "why", "next"]
    assert json.loads((run / "run.json").read_text())["error"]["what_to_do"].startswith("Pass an https://")
