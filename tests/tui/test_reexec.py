"""Restarting a run in a fresh process: what requests it, how often, and its arguments."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.core.errors import ExitCode, RestartNeeded, Stage3Error
from engine.core.events import Message, RunFinished
from engine.core.layout import EVENTS_JSONL, STOP_REQUEST
from engine.pipeline import loop
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.journal import read_entries
from engine.security.secrets import Secret
from tests.support.pseudo_terminal import LEAVES_ALTERNATE_SCREEN, SHOWS_CURSOR, PseudoTerminal
from tests.support.small_stages import SmallStage, finished_stages, run_all, small_stages
from tui.commands.arguments import recorded_config
from tui.commands.run import command_parser
from tui.process.reexec import resume_command
from tui.runs.runner import Runner

ROOT = Path(__file__).parents[2]
BROKEN = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, SmallStage]:
    return small_stages(monkeypatch)


def until_restart(context: Context) -> list[Any]:
    events = []
    with pytest.raises(RestartNeeded):
        events.extend(loop.run_pipeline(context))
    return events


def test_a_stage_that_needs_a_fresh_process_is_not_a_failure_and_continues_there(stages: Any, context: Any):
    stages["training"].failure = RestartNeeded("Memory ran out.", "2 GiB", "It goes on.")
    at_work, events = context(), []
    generator = loop.run_pipeline(at_work)
    with pytest.raises(RestartNeeded):
        for event in generator:
            events.append(event)
    assert events[-1] == Message("warning", "Memory ran out. 2 GiB It goes on.", "training")
    assert not [event for event in events if isinstance(event, RunFinished)]
    assert at_work.run.stage("training")["status"] == "running" and at_work.run.manifest.get("error") is None
    stages["training"].failure = None
    _, code = run_all(Context(at_work.config, Run(at_work.run.folder)))
    assert code is ExitCode.DONE and stages["training"].ran == 2 and stages["quality"].ran == 1
    assert not (at_work.run / "superseded").exists()


@pytest.mark.fault("D9")
def test_a_broken_device_gets_one_fresh_process_per_stage_and_then_fails(stages: Any, context: Any):
    stages["pairs"].failure = RuntimeError(BROKEN)
    at_work = context()
    until_restart(at_work)
    again = Context(at_work.config, Run(at_work.run.folder))
    events, code = run_all(again)
    assert code is ExitCode.BUG and stages["pairs"].ran == 2
    assert (
        "xid" in finished_stages(events)["pairs"].what_to_do
        and "illegal memory access" in finished_stages(events)["pairs"].why
    )


def test_a_request_to_stop_comes_before_a_restart(stages: Any, context: Any):
    at_work = context()

    class Asked(SmallStage):
        def run(self, context: Context) -> Any:
            yield Message("info", "at work", self.name)
            context.stop.request("SIGTERM", ExitCode.TERMINATED)
            raise RestartNeeded("Memory ran out.")

    stages["training"] = Asked("training")
    events, code = run_all(at_work)
    assert code == 143 and finished_stages(events)["training"].outcome == "stopped"


def test_the_new_process_has_the_options_that_the_run_recorded_and_no_others(
    config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    made = Run(folder)
    made.manifest["config"] = config(output_dir=folder, num_examples=7, beta=0.3).model_dump(mode="json")
    made.save()
    monkeypatch.setenv("STAGE3_NUM_EXAMPLES", "99")  # the command line had 7, and comes first
    command = resume_command(folder, auto=True, until="training", json=True)
    given = command_parser().parse_args(command[command.index("--restarted") :])
    assert recorded_config(given).model_dump() == config(output_dir=folder, num_examples=7, beta=0.3).model_dump()
    assert (given.auto, given.json, given.until, given.redo_from) == (True, True, "training", None)


FRESH = """
import os, sys
from pathlib import Path
from engine.security.secrets import Secret
from tui.process.reexec import reexec
if len(sys.argv) == 1:
    kept = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(kept, True)
    os.environ["KEPT"] = str(kept)
    print("first", os.getpid(), flush=True)
    reexec([sys.executable, *sys.orig_argv[1:], "again"], Secret("hf_secret"))
try:
    os.fstat(int(os.environ["KEPT"]))
    left = "open"
except OSError:
    left = "closed"
number = int(sys.argv[sys.argv.index("--token-fd") + 1])
print("second", os.getpid(), os.read(number, 99).decode().strip(), left)
"""


def test_reexec_keeps_the_pid_passes_the_token_on_a_pipe_and_closes_all_else():
    done = subprocess.run(
        [sys.executable, "-c", FRESH], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    first, second = (line.split() for line in done.stdout.splitlines())
    assert first[1] == second[1] and second[2] == "hf_secret"
    assert second[3] == "closed"  # though it was inheritable: what a GPU's driver holds open keeps its memory


FOUND = """
import sys
from engine.process.environment import quiet_libraries
quiet_libraries()
from engine.core.errors import RestartNeeded
from engine.security.secrets import Secret
from engine.stages import toolchain
real = toolchain.run
def finds_a_token_and_is_spent(context):
    if context.token is None:
        context.token = Secret("hf_found_on_the_way")
        raise RestartNeeded("Memory ran out.", "2 GiB", "It goes on.")
    (context.run.folder.parent / "heard").write_text(context.token.reveal())
    return (yield from real(context))
toolchain.run = finds_a_token_and_is_spent
from tui.cli import main
sys.exit(main())
"""


def test_a_token_found_during_the_run_is_passed_on_without_a_terminal_too(tmp_path: Path):
    options = ["--auto", "--demo", "--until", "toolchain", "--output-dir", str(tmp_path / "run")]
    subprocess.run(
        [sys.executable, "-c", FOUND, *options],
        check=True, capture_output=True, timeout=60, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (tmp_path / "heard").read_text() == "hf_found_on_the_way"


def test_the_wizards_runner_records_the_last_stage_for_the_restart(config: Callable[..., Any], tmp_path: Path):
    class Session:
        def __init__(self, *_: Any) -> None: ...

        def run(self, **_: Any) -> ExitCode:
            raise RestartNeeded("Memory ran out.")

        def close(self) -> None: ...

    runner = Runner(config(output_dir=tmp_path), Run(tmp_path), token=Secret("hf_x"), session_factory=Session)
    runner.start(until="training")
    runner.join()
    assert runner.restart_until == "training" and runner.exit_code is None and runner.snapshot().finished is None


# -- the wizard, on a real pseudo-terminal -----------------------------------------------------------------------------

WIZARD = """
import sys
from pathlib import Path
from engine.process.environment import quiet_libraries
quiet_libraries()
from engine.core.errors import RestartNeeded
from engine.stages import toolchain
real, folder = toolchain.run, Path(sys.argv[-1])
def spent_once(context):
    if not (folder.parent / "spent").exists():
        (folder.parent / "spent").touch()
        if (folder.parent / "wait").exists():
            import time
            yield from ()
            time.sleep(2)
        raise RestartNeeded("Memory ran out.", "2 GiB", "It goes on.")
    return (yield from real(context))
toolchain.run = spent_once
from tui.cli import main
sys.exit(main())
"""


def spent(folder: Path) -> PseudoTerminal:
    """The wizard whose first process runs out of memory in the second stage."""
    terminal = PseudoTerminal([sys.executable, "-c", WIZARD, "--demo", "--output-dir", str(folder)])
    terminal.wait_for("Workspace")
    return terminal


def starts(folder: Path) -> int:
    return sum(entry.event.kind() == "run_started" for entry in read_entries(folder / EVENTS_JSONL))


def stage_status(folder: Path, stage: str) -> str:
    try:
        return str(Run(folder).stage(stage).get("status", ""))
    except Stage3Error:
        return ""


def test_the_wizard_restarts_and_the_run_continues_by_itself(tmp_path: Path):
    folder = tmp_path / "run"
    opened = spent(folder)
    opened.press("a")
    opened.until(lambda: stage_status(folder, "toolchain") == "done", "the stage, in a fresh process")
    assert starts(folder) == 2
    (folder / STOP_REQUEST).touch()
    opened.until(lambda: Run(folder).manifest.get("error") is not None, "the stop")
    before = len(opened.seen)
    opened.wait_for("stopped")
    opened.press("q")
    assert opened.end() == 143  # the run's own: it was stopped
    assert LEAVES_ALTERNATE_SCREEN in opened.seen[before:] and SHOWS_CURSOR in opened.seen[before:]
    assert Run(folder).owner() is None


def test_a_detached_run_continues_without_a_screen(tmp_path: Path):
    folder = tmp_path / "run"
    (tmp_path / "wait").touch()
    opened = spent(folder)
    wizard = opened.child
    opened.press("a")
    opened.until(lambda: stage_status(folder, "toolchain") == "running", "the stage")
    opened.hang_up()
    os.waitpid(opened.pid, 0)
    end = time.monotonic() + 30
    while stage_status(folder, "toolchain") != "done":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert starts(folder) == 2 and Run(folder).owner().pid == wizard.pid
    (folder / STOP_REQUEST).touch()
    _, alive = psutil.wait_procs([wizard], timeout=40)
    assert not alive
