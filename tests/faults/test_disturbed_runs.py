"""Runs that are disturbed at any point, each start in its own process: nothing that was acknowledged is lost, nothing is
duplicated, the exit code is right, and the final bytes are those of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from engine.core import layout
from engine.core.events import CheckpointSaved, PairFailed, PairMade, StageFinished, StageStarted, TrainStep
from engine.dpo.training.checkpoints import MANIFEST, by_step, step_of
from engine.run.folder import Run
from engine.run.journal import Entry, read_entries
from tests.support.finished_demo import demo_arguments
from tests.support.fork_server import MAKING, Ended, ForkServer, tiny
from tests.support.short_run import short_demo_arguments
from tests.support.waiting import wait_until
from tui.process.signals import SAME_SECONDS

OUTPUTS = (layout.PAIRS_JSONL, layout.TRAIN_JSONL, layout.EVAL_JSONL, f"{layout.ADAPTER_DIR}/{layout.ADAPTER_WEIGHTS}")
DISK, NUMBERS, STOPPED, ABORTED, KILLED = 6, 8, 143, -signal.SIGABRT, -signal.SIGKILL
CODES = {"nan": NUMBERS, "term": STOPPED, "int": 130, "abort": ABORTED, "kill": KILLED}
"""Exit codes of actions; every other action is a full or broken disk."""


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = server.run(tiny(folder), stages=MAKING)
    assert ended.code == 0, ended.errors
    return folder, ended


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


# -- what holds whenever a process has ended ---------------------------------------------------------------------------


def check(folder: Path, ended: Ended) -> None:
    """Whatever happened: the error is readable, and everything that the journal reports is on disk, exactly once."""
    assert "Traceback" not in ended.errors, ended.errors
    entries = list(read_entries(folder / layout.EVENTS_JSONL))
    numbers = [entry.seq for entry in entries]
    assert numbers == sorted(set(numbers))
    check_pairs(folder, entries)
    check_training(folder, entries)
    stages = Run(folder).manifest["stages"]  # raises if the file is damaged
    for stage, done in finished_stages(entries).items():
        assert not done or stages[stage]["status"] in ("done", "skipped"), f"{stage} was reported as done"


def check_pairs(folder: Path, entries: list[Entry]) -> None:
    acknowledged = {entry.event.id for entry in entries if isinstance(entry.event, (PairMade, PairFailed))}
    path = folder / layout.PAIRS_JSONL
    complete_lines = path.read_bytes().rpartition(b"\n")[0].split(b"\n") if path.exists() else []
    recorded = [json.loads(line)["id"] for line in complete_lines if line]
    assert acknowledged <= set(recorded) and len(recorded) == len(set(recorded))


def check_training(folder: Path, entries: list[Entry]) -> None:
    reported = [entry.event.step for entry in entries if isinstance(entry.event, CheckpointSaved)]
    on_disk = [step_of(path) for path in by_step(folder / layout.CHECKPOINTS_DIR)]
    assert max(on_disk, default=0) >= max(reported, default=0)


def finished_stages(entries: list[Entry]) -> dict[str, bool]:
    """For each stage, whether the last event about it says that it is done."""
    finished: dict[str, bool] = {}
    for event in (entry.event for entry in entries):
        if isinstance(event, StageStarted):
            finished[event.stage] = False
        elif isinstance(event, StageFinished):
            finished[event.stage] = event.outcome in ("done", "skipped")
    return finished


def check_finished(folder: Path, undisturbed: Path, ended: Ended) -> None:
    """Check a run that has succeeded against the undisturbed one."""
    check(folder, ended)
    assert ended.code == 0, ended.errors
    assert outputs(folder) == outputs(undisturbed)
    assert not list(folder.rglob(".*.part"))


# -- a call that fails -------------------------------------------------------------------------------------------------


def expected(action: str) -> int:
    return CODES.get(action, DISK)


def disturb(server: ForkServer, folder: Path, rules: str) -> Ended:
    ended = server.run(tiny(folder), rules=rules, stages=MAKING)
    check(folder, ended)
    return ended


RULES = (
    "manifest=ENOSPC@2", "append=EDQUOT@9+", "event=EIO@12+", "sync=kill@24+", "append=term@8", "rename=kill@3", "rename=EROFS@9",
    "checkpoint=abort@2", "loss=nan@1", "sync=ENOSPC@20", "checkpoint=kill@5", "loss=term@1", "rename=ENOSPC@6",
)  # fmt: skip
"""Each disturbs one start of the same run, in this order; together they reach from its first second to its last. A rule
has a `+` if its call may belong to telemetry, without which a run continues.
"""


@pytest.mark.fault("B6", "A2", "D15")
def test_a_run_that_fails_at_every_start_ends_with_the_bytes_of_an_undisturbed_run(
    server: ForkServer, undisturbed: tuple[Path, Ended], tmp_path: Path
):
    folder, fired = tmp_path / "run", 0
    for rule in RULES:
        ended = disturb(server, folder, rule)
        action = rule.partition("=")[2].partition("@")[0]
        assert ended.code == (expected(action) if ended.fired or ended.code < 0 else 0), f"{rule}: {ended}"
        fired += ended.code != 0
    assert fired >= 7, "the other rules were never reached"
    check_finished(folder, undisturbed[0], server.run(tiny(folder), stages=MAKING))


POINTS = ("manifest", "append", "event", "sync", "rename", "checkpoint", "loss")


@pytest.mark.slow
@pytest.mark.fault("B6")
@pytest.mark.parametrize("action", ["ENOSPC", "EIO", "kill", "term", "abort"])
@pytest.mark.parametrize("point", POINTS)
def test_a_run_survives_a_failure_of_the_nth_call_in_its_nth_start_for_every_n(
    server: ForkServer, undisturbed: tuple[Path, Ended], tmp_path: Path, point: str, action: str
):
    """The N-th start gets N calls beyond the end of the one before it, so all calls of the run are reached in turn."""
    folder = tmp_path / "run"
    for number in range(1, 60):
        ended = disturb(server, folder, f"{point}={action}@{number}")
        if ended.code == 0:
            break
        assert ended.code == expected(action), f"{point}={action}@{number}: {ended}"
    assert number >= (2 if action == "term" else 3), "after a signal a run still takes a step before it stops"
    check_finished(folder, undisturbed[0], server.run(tiny(folder), stages=MAKING))


# -- SIGKILL at any moment ---------------------------------------------------------------------------------------------


def kill_at_random(
    server: ForkServer,
    undisturbed: Path,
    seconds: float,
    *,
    folder: Path,
    kills: int,
    seed: int,
) -> Counter[str]:
    """Kill runs at random moments of what is left to do, `kills` times in total, then let the last one finish.

    seconds   duration of an undisturbed run

    Returns the number of kills in each stage.
    """  # fmt: skip
    rng, kills_by_stage, number = random.Random(seed), Counter[str](), 0
    while kills_by_stage.total() < kills:
        run = folder / f"run-{number}"
        server.start(demo_arguments(run))
        ended = server.end(kill_after=rng.uniform(0.0, seconds * 0.7))
        check(run, ended)
        if ended.code == 0:
            check_finished(run, undisturbed, ended)
            number += 1
            continue
        assert ended.code == KILLED, ended
        kills_by_stage[current_stage(run)] += 1
    run = folder / f"run-{number}"
    check_finished(run, undisturbed, server.run(demo_arguments(run)))
    return kills_by_stage


def current_stage(folder: Path) -> str:
    path = folder / layout.EVENTS_JSONL
    entries = read_entries(path) if path.exists() else ()
    started = [entry.event.stage for entry in entries if isinstance(entry.event, StageStarted)]
    return started[-1] if started else "none yet"


MILESTONES = {"stage_started", "stage_finished", "pair_made", "pair_failed", "train_step", "checkpoint_saved"}


class Milestones:
    """Milestones of a run so far: stages begun and ended, pairs, steps, checkpoints. Reads the journal as it grows."""

    def __init__(self, folder: Path) -> None:
        self._path, self._offset = folder / layout.EVENTS_JSONL, 0
        self.found: list[tuple[str, ...]] = []

    def read(self) -> list[tuple[str, ...]]:
        if self._path.exists():
            with self._path.open("rb") as journal:
                journal.seek(self._offset)
                lines = journal.read().rpartition(b"\n")[0]
            self._offset += len(lines)  # the next read begins with the newline, which makes an empty line
            events = [json.loads(line) for line in lines.split(b"\n") if line]
            self.found += [milestone_of(event) for event in events if event["kind"] in MILESTONES]
        return self.found


def in_order(selected: list[tuple[str, ...]], milestones: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return sorted(selected, key=milestones.index)


def milestone_of(event: dict[str, object]) -> tuple[str, ...]:
    return tuple(str(event.get(name)) for name in ("kind", "stage", "id", "step"))


@pytest.mark.fault("A1", "A2", "C7", "D15")
def test_a_short_demo_killed_six_times_at_random_ends_with_the_same_bytes(
    server: ForkServer, short_run: Path, tmp_path: Path
):
    """Each start is killed shortly after the next of six milestones of an undisturbed run: three pairs, two steps of
    training, and the start of packaging.
    """
    run, rng, killed_stages = tmp_path / "stage3", random.Random(9), set[str]()
    milestones = Milestones(short_run).read()
    chosen = [
        milestone
        for kind, kills in (("pair_made", 3), ("train_step", 2))
        for milestone in in_order(rng.sample([each for each in milestones if each[0] == kind], kills), milestones)
    ]
    for milestone in [*chosen, milestone_of({"kind": "stage_started", "stage": "packaging"})]:
        server.start(short_demo_arguments(run))
        reached = Milestones(run)
        wait_until(lambda target=milestone, reached=reached: target in reached.read(), f"{milestone}")
        ended = server.end(kill_more_after=rng.uniform(0.0, 0.2))
        assert ended.code == KILLED, ended
        check(run, ended)
        killed_stages.add(current_stage(run))
    check_finished(run, short_run, server.run(short_demo_arguments(run)))
    assert {"pairs", "training", "packaging"} <= killed_stages


@pytest.mark.slow
@pytest.mark.fault("A1", "A2", "C7", "D15")
def test_the_full_demo_killed_a_hundred_times_at_random_ends_with_the_same_bytes(server: ForkServer, tmp_path: Path):
    folder = tmp_path / "undisturbed"
    ended = server.run(demo_arguments(folder))
    assert ended.code == 0, ended.errors
    kills_by_stage = kill_at_random(server, folder, ended.seconds, folder=tmp_path, kills=100, seed=11)
    print("kills by stage:", dict(kills_by_stage))
    assert {"pairs", "training", "packaging"} <= kills_by_stage.keys()


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("A3")
def test_a_run_killed_while_deleting_a_checkpoint_resumes_from_a_newer_one(
    server: ForkServer, undisturbed: tuple[Path, Ended], tmp_path: Path
):
    folder = tmp_path / "run"
    ended = server.run(tiny(folder), rules="delete=kill@1", stages=MAKING)
    assert ended.code == KILLED
    check(folder, ended)
    assert [step_of(path) for path in by_step(folder / layout.CHECKPOINTS_DIR)] == [1, 2, 3]
    assert not (folder / layout.CHECKPOINTS_DIR / "checkpoint-1" / MANIFEST).exists()
    check_finished(folder, undisturbed[0], server.run(tiny(folder), stages=MAKING))
    steps = [e.event.step for e in read_entries(folder / layout.EVENTS_JSONL) if isinstance(e.event, TrainStep)]
    assert steps == [1, 2, 3], "a step was repeated"


@pytest.mark.fault("A4")
def test_a_second_sigterm_immediately_ends_a_run_that_hangs_in_a_save(
    server: ForkServer, undisturbed: tuple[Path, Ended], tmp_path: Path
):
    folder = tmp_path / "run"
    pid = server.start(tiny(folder), rules="checkpoint=hang@3", stages=MAKING)
    wait_until(lambda: by_step(folder / layout.CHECKPOINTS_DIR), "a checkpoint")
    for _ in range(2):  # the second, from a wrapper that forwards what the whole job received, does not count
        os.kill(pid, signal.SIGTERM)
        time.sleep(SAME_SECONDS / 2)
    assert Run(folder).owner() is not None, "the first signal waits for the save"
    time.sleep(SAME_SECONDS / 2)
    os.kill(pid, signal.SIGTERM)
    ended = server.end()
    assert ended.code == STOPPED
    check(folder, ended)
    check_finished(folder, undisturbed[0], server.run(tiny(folder), stages=MAKING))


@pytest.mark.fault("A7")
def test_ctrl_c_during_a_save_keeps_the_checkpoint_and_a_second_one_ends_the_run_at_once(
    server: ForkServer, undisturbed: tuple[Path, Ended], tmp_path: Path
):
    """In the second part, Ctrl+C is pressed on a terminal."""
    folder = tmp_path / "run"
    saved = server.run(tiny(folder), rules="checkpoint=int@2", stages=MAKING)
    assert saved.code == 130 and "saved" in saved.errors
    check(folder, saved)
    assert step_of(by_step(folder / layout.CHECKPOINTS_DIR)[-1]) in (1, 2), "the next step may have begun"
    with server.terminal() as terminal:
        server.start(tiny(folder), rules="checkpoint=hang@2", stages=MAKING)
        wait_until(lambda: list((folder / layout.CHECKPOINTS_DIR).glob(".*.part")), "a save", terminal)
        os.write(terminal, b"\x03")
        time.sleep(0.3)
        os.write(terminal, b"\x03")
        twice = server.end()
    assert twice.code == 130
    check(folder, twice)
    check_finished(folder, undisturbed[0], server.run(tiny(folder), stages=MAKING))
