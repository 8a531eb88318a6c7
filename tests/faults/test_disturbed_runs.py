"""Runs that are disturbed anywhere, each start a process of its own: nothing that was acknowledged is lost, nothing stands twice,
the exit code is the right one, and in the end there are the bytes of a run that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
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

MADE = (layout.PAIRS_JSONL, layout.TRAIN_JSONL, layout.EVAL_JSONL, f"{layout.ADAPTER_DIR}/{layout.ADAPTER_WEIGHTS}")
DISK, NUMBERS, STOPPED, ABORTED, KILLED = 6, 8, 143, -signal.SIGABRT, -signal.SIGKILL
CODES = {"nan": NUMBERS, "term": STOPPED, "int": 130, "abort": ABORTED, "kill": KILLED}
"""Of every other action: a full or broken disk."""


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = server.run(tiny(folder), stages=MAKING)
    assert ended.code == 0, ended.errors
    return folder, ended


def made(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in MADE}


# -- what holds after every end of a process -----------------------------------------------------------------------------


def check(folder: Path, ended: Ended) -> None:
    """Whatever happened: a person can read what failed, and what the journal told is on disk, once."""
    assert "Traceback" not in ended.errors, ended.errors
    entries = list(read_entries(folder / layout.EVENTS_JSONL))
    numbers = [entry.seq for entry in entries]
    assert numbers == sorted(set(numbers))
    check_pairs(folder, entries)
    check_training(folder, entries)
    stages = Run(folder).manifest["stages"]  # raises for a file that is not whole
    for stage, done in last_told(entries).items():
        assert not done or stages[stage]["status"] in ("done", "skipped"), f"{stage} was told to be done"


def check_pairs(folder: Path, entries: list[Entry]) -> None:
    acknowledged = {entry.event.id for entry in entries if isinstance(entry.event, (PairMade, PairFailed))}
    path = folder / layout.PAIRS_JSONL
    whole = path.read_bytes().rpartition(b"\n")[0].split(b"\n") if path.exists() else []
    there = [json.loads(line)["id"] for line in whole if line]
    assert acknowledged <= set(there) and len(there) == len(set(there))


def check_training(folder: Path, entries: list[Entry]) -> None:
    saved = [entry.event.step for entry in entries if isinstance(entry.event, CheckpointSaved)]
    there = [step_of(path) for path in by_step(folder / layout.CHECKPOINTS_DIR)]
    assert max(there, default=0) >= max(saved, default=0)


def last_told(entries: list[Entry]) -> dict[str, bool]:
    """Of each stage: whether the last that was told of it is that it is done."""
    told: dict[str, bool] = {}
    for event in (entry.event for entry in entries):
        if isinstance(event, StageStarted):
            told[event.stage] = False
        elif isinstance(event, StageFinished):
            told[event.stage] = event.outcome in ("done", "skipped")
    return told


def check_whole(folder: Path, undisturbed: Path, ended: Ended) -> None:
    """The end of it all."""
    check(folder, ended)
    assert ended.code == 0, ended.errors
    assert made(folder) == made(undisturbed)
    assert not list(folder.rglob(".*.part"))


# -- a call that fails ---------------------------------------------------------------------------------------------------


def expected(action: str) -> int:
    return CODES.get(action, DISK)


def disturb(server: ForkServer, folder: Path, rules: str) -> Ended:
    ended = server.run(tiny(folder), rules=rules, stages=MAKING)
    check(folder, ended)
    return ended


FEW = (
    "manifest=ENOSPC@2", "append=EDQUOT@9+", "event=EIO@12+", "sync=kill@24+", "append=term@8", "rename=kill@3", "rename=EROFS@9",
    "checkpoint=abort@2", "loss=nan@1", "sync=ENOSPC@20", "checkpoint=kill@5", "loss=term@1", "rename=ENOSPC@6",
)  # fmt: skip
"""Each in a start of its own, in this order, on one run: they reach from its first second to its last. `+` where the call
may be that of a reading of the machine, without which a run goes on.
"""


@pytest.mark.fault("B6", "A2", "D15")
def test_a_run_that_fails_at_every_start_ends_with_the_bytes_of_an_undisturbed_run(
    server: ForkServer, undisturbed: tuple[Path, Ended], tmp_path: Path
):
    folder, fired = tmp_path / "run", 0
    for rule in FEW:
        ended = disturb(server, folder, rule)
        action = rule.partition("=")[2].partition("@")[0]
        assert ended.code == (expected(action) if ended.fired or ended.code < 0 else 0), f"{rule}: {ended}"
        fired += ended.code != 0
    assert fired >= 7, "the others met nothing that was left to do"
    check_whole(folder, undisturbed[0], server.run(tiny(folder), stages=MAKING))


POINTS = ("manifest", "append", "event", "sync", "rename", "checkpoint", "loss")


@pytest.mark.slow
@pytest.mark.fault("B6")
@pytest.mark.parametrize("action", ["ENOSPC", "EIO", "kill", "term", "abort"])
@pytest.mark.parametrize("point", POINTS)
def test_a_run_survives_a_failure_of_the_nth_call_in_its_nth_start_for_every_n(
    server: ForkServer, undisturbed: tuple[Path, Ended], tmp_path: Path, point: str, action: str
):
    """The N-th start gets N calls further than the one before ended: so all of the run's calls are reached in turn."""
    folder = tmp_path / "run"
    for number in range(1, 60):
        ended = disturb(server, folder, f"{point}={action}@{number}")
        if ended.code == 0:
            break
        assert ended.code == expected(action), f"{point}={action}@{number}: {ended}"
    assert number >= (2 if action == "term" else 3), "a run that is asked to stop makes steps until it hears it"
    check_whole(folder, undisturbed[0], server.run(tiny(folder), stages=MAKING))


# -- SIGKILL at any moment -----------------------------------------------------------------------------------------------


def kill_at_random(
    server: ForkServer,
    whole: Path,
    seconds: float,
    *,
    folder: Path,
    kills: int,
    seed: int,
) -> dict[str, int]:
    """SIGKILL so many times, at any moment of what is left to do; whatever run is at work then goes on to its end.

    seconds   that an undisturbed run takes

    Returns how many of the kills met which stage.
    """  # fmt: skip
    moments, met, number = random.Random(seed), dict[str, int](), 0
    while sum(met.values()) < kills:
        run = folder / f"run-{number}"
        server.start(demo_arguments(run))
        ended = server.end(kill_after=moments.uniform(0.0, seconds * 0.7))
        check(run, ended)
        if ended.code == 0:
            check_whole(run, whole, ended)
            number += 1
            continue
        assert ended.code == KILLED, ended
        count(met, stage_at_work(run))
    run = folder / f"run-{number}"
    check_whole(run, whole, server.run(demo_arguments(run)))
    return met


def count(met: dict[str, int], stage: str) -> None:
    met[stage] = met.get(stage, 0) + 1


def stage_at_work(folder: Path) -> str:
    path = folder / layout.EVENTS_JSONL
    entries = read_entries(path) if path.exists() else ()
    began = [entry.event.stage for entry in entries if isinstance(entry.event, StageStarted)]
    return began[-1] if began else "none yet"


MARKS = {"stage_started", "stage_finished", "pair_made", "pair_failed", "train_step", "checkpoint_saved"}


class Marks:
    """What a run has come to: stages begun and ended, pairs, steps, checkpoints. Reads what its journal gets, as it grows."""

    def __init__(self, folder: Path) -> None:
        self._path, self._read = folder / layout.EVENTS_JSONL, 0
        self.found: list[tuple[str, ...]] = []

    def now(self) -> list[tuple[str, ...]]:
        if self._path.exists():
            with self._path.open("rb") as journal:
                journal.seek(self._read)
                lines = journal.read().rpartition(b"\n")[0]
            self._read += len(lines)  # the next one begins with the newline, and a line without text is none
            events = [json.loads(line) for line in lines.split(b"\n") if line]
            self.found += [mark_of(event) for event in events if event["kind"] in MARKS]
        return self.found


def in_order(some: list[tuple[str, ...]], marks: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return sorted(some, key=marks.index)


def mark_of(event: dict[str, object]) -> tuple[str, ...]:
    return tuple(str(event.get(name)) for name in ("kind", "stage", "id", "step"))


@pytest.mark.fault("A1", "A2", "C7", "D15")
def test_a_short_demo_killed_six_times_at_random_ends_with_the_same_bytes(
    server: ForkServer, short_run: Path, tmp_path: Path
):
    """At moments of an undisturbed run, in turn: among the pairs, among the steps of the training, and in packaging. Each start
    reaches the next of them, and is killed a little later.
    """
    run, moments, met = tmp_path / "stage3", random.Random(9), dict[str, int]()
    marks = Marks(short_run).now()
    chosen = [
        mark
        for kind, kills in (("pair_made", 3), ("train_step", 2))
        for mark in in_order(moments.sample([mark for mark in marks if mark[0] == kind], kills), marks)
    ]
    for moment in [*chosen, mark_of({"kind": "stage_started", "stage": "packaging"})]:
        server.start(short_demo_arguments(run))
        so_far = Marks(run)
        wait_until(lambda at=moment, so_far=so_far: at in so_far.now(), f"{moment}")
        ended = server.end(kill_more_after=moments.uniform(0.0, 0.2))
        assert ended.code == KILLED, ended
        check(run, ended)
        count(met, stage_at_work(run))
    check_whole(run, short_run, server.run(short_demo_arguments(run)))
    assert {"pairs", "training", "packaging"} <= met.keys(), met


@pytest.mark.slow
@pytest.mark.fault("A1", "A2", "C7", "D15")
def test_the_full_demo_killed_a_hundred_times_at_random_ends_with_the_same_bytes(server: ForkServer, tmp_path: Path):
    folder = tmp_path / "undisturbed"
    ended = server.run(demo_arguments(folder))
    assert ended.code == 0, ended.errors
    met = kill_at_random(server, folder, ended.seconds, folder=tmp_path, kills=100, seed=11)
    print("kills by stage:", met)
    assert {"pairs", "training", "packaging"} <= met.keys()


# -- signals -------------------------------------------------------------------------------------------------------------


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
    check_whole(folder, undisturbed[0], server.run(tiny(folder), stages=MAKING))
    steps = [e.event.step for e in read_entries(folder / layout.EVENTS_JSONL) if isinstance(e.event, TrainStep)]
    assert steps == [1, 2, 3], "none of them was done twice"


@pytest.mark.fault("A4")
def test_a_second_sigterm_immediately_ends_a_run_that_hangs_in_a_save(
    server: ForkServer, undisturbed: tuple[Path, Ended], tmp_path: Path
):
    folder = tmp_path / "run"
    pid = server.start(tiny(folder), rules="checkpoint=hang@3", stages=MAKING)
    wait_until(lambda: by_step(folder / layout.CHECKPOINTS_DIR), "a checkpoint")
    for _ in range(2):  # the second one from a wrapper that passes on what all processes of its job get
        os.kill(pid, signal.SIGTERM)
        time.sleep(SAME_SECONDS / 2)
    assert Run(folder).owner() is not None, "the first one waits for what is being saved"
    time.sleep(SAME_SECONDS / 2)
    os.kill(pid, signal.SIGTERM)
    ended = server.end()
    assert ended.code == STOPPED
    check(folder, ended)
    check_whole(folder, undisturbed[0], server.run(tiny(folder), stages=MAKING))


@pytest.mark.fault("A7")
def test_ctrl_c_during_a_save_keeps_the_checkpoint_and_a_second_one_ends_the_run_at_once(
    server: ForkServer, undisturbed: tuple[Path, Ended], tmp_path: Path
):
    """On a terminal, as a person presses it."""
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
    check_whole(folder, undisturbed[0], server.run(tiny(folder), stages=MAKING))
