"""Every call of every fail point fails once, in each part that writes or sends: everything acknowledged is on disk, and
the next try succeeds.

As in SQLite's I/O error tests, N counts from 1 until nothing fails any more. Full runs are in `test_disturbed_runs.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from engine.core import layout
from engine.core.config import load_config
from engine.core.errors import ExitCode, NetworkError, Stage3Error
from engine.core.events import Message, StageFinished, StageStarted
from engine.core.failpoints import Armed, failing
from engine.dpo.training.checkpoints import by_step, newest_good, rotate, step_of, write_checkpoint
from engine.machine.error_mapping import as_stage3_error
from engine.packaging.archive import build_archive, verified_archive
from engine.pipeline.loop import run_pipeline
from engine.push import request_limits
from engine.push.push import push
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.journal import Journal, read_entries
from engine.run.stop import StopToken
from engine.security.secrets import Secret
from engine.stages import adapter as adapter_stage
from engine.storage.files import sha256_of_file, write_json
from engine.storage.jsonl import JsonlAppender, read_jsonl
from tests.conftest import run_stage
from tests.support.fake_hub_files import FilesHub, files_hub
from tests.support.fake_hub_push import FakeHubPush, fake_hub_push
from tests.support.finished_run import copied, finished_run
from tests.support.tiny_models import build_context

FULL_DISK, BROKEN_DISK = "ENOSPC", "EIO"


@pytest.fixture(autouse=True)
def quick_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync does nothing: thousands of real ones would take a minute."""
    monkeypatch.setattr("os.fsync", lambda file: None)


MAX_CALLS = 400
"""A loop with more calls than this would never end."""


def each_failure(
    points: tuple[str, ...],
    actions: tuple[str, ...],
    act: Callable[[Path], object],
    check: Callable[[Path], None],
    folder: Path,
    prepare: Callable[[Path], object] = lambda folder: None,
) -> int:
    """Run `act` in a fresh folder with the N-th call of a point failing, then `check`; for N from 1 until none fails.

    Returns the number of failures.
    """
    failures = 0
    for point in points:
        for action in actions:
            for number in range(1, MAX_CALLS):
                fresh = folder / f"{point}-{action.strip('+')}-{'ever' * action.endswith('+')}-{number}"
                fresh.mkdir()
                prepare(fresh)
                armed = act_with(f"{point}={action.strip('+')}@{number}{'+' * action.endswith('+')}", act, fresh)
                check(fresh)
                if not armed.fired:
                    break
                failures += 1
            else:
                raise AssertionError(f"{point} was reached {MAX_CALLS} times")
    return failures


def act_with(rules: str, act: Callable[[Path], object], folder: Path) -> Armed:
    """Run `act` with these fail points. A failure must be an error that a person can fix, or memory that runs out."""
    with failing(rules) as armed:
        try:
            act(folder)
        except Exception as error:
            mapped = as_stage3_error(error)
            assert armed.fired, f"it failed without a fail point: {error!r}"
            expected = ExitCode.MEMORY if "memory" in rules else ExitCode.DISK
            assert mapped is not None and mapped.exit_code is expected, f"{rules}: {error!r}"
            assert mapped.what and mapped.what_to_do
    return armed


# -- lines and small files ---------------------------------------------------------------------------------------------


@pytest.mark.fault("B6", "B1", "B5")
def test_a_record_is_on_disk_exactly_if_it_was_acknowledged_whatever_fails(tmp_path: Path):
    acknowledged: dict[Path, list[int]] = {}

    def act(folder: Path) -> None:
        done = acknowledged.setdefault(folder, [])
        with JsonlAppender(folder / "pairs.jsonl") as appender:
            for number in range(5):
                appender.append({"number": number, "text": "x" * 300})
                done.append(number)

    def check(folder: Path) -> None:
        path, done = folder / "pairs.jsonl", acknowledged[folder]
        with JsonlAppender(path) as appender:
            assert not appender.torn
            for number in range(len(done), 5):
                appender.append({"number": number})
        assert [row["number"] for _, row in read_jsonl(path) if isinstance(row, dict)] == list(range(5))

    assert each_failure(("append", "sync"), (FULL_DISK, BROKEN_DISK, "EDQUOT", "EROFS"), act, check, tmp_path) == 4 * 10


@pytest.mark.fault("B6")
def test_no_record_is_duplicated_after_memory_runs_out_in_an_append(tmp_path: Path):
    """Between its write and its sync a line may be on disk although it was not acknowledged."""

    def act(folder: Path) -> None:
        with JsonlAppender(folder / "pairs.jsonl") as appender:
            for number in range(3):
                appender.append({"number": number})

    def check(folder: Path) -> None:
        path = folder / "pairs.jsonl"
        numbers = [row["number"] for _, row in read_jsonl(path) if isinstance(row, dict)]
        assert numbers == list(range(len(numbers)))

    assert each_failure(("append", "sync"), ("memory",), act, check, tmp_path) == 6


@pytest.mark.fault("B6", "B5")
def test_a_small_file_is_the_old_or_the_new_version_and_no_temporary_file_remains(tmp_path: Path):
    def act(folder: Path) -> None:
        for version in range(3):
            write_json(folder / "report.json", {"version": version})

    def check(folder: Path) -> None:
        names = {path.name for path in folder.iterdir()}
        assert names <= {"report.json"}
        if names:
            assert json.loads((folder / "report.json").read_text())["version"] in range(3)

    assert each_failure(("sync", "rename"), (FULL_DISK, BROKEN_DISK, "EACCES"), act, check, tmp_path) == 3 * 9


@pytest.mark.fault("B6")
def test_run_json_records_a_stage_completely_or_not_at_all(tmp_path: Path):
    def act(folder: Path) -> None:
        run = Run(folder / "run")
        for stage in ("adapter", "pairs", "quality"):
            run.record_stage(stage, status="done")

    def check(folder: Path) -> None:
        recorded = Run(folder / "run").manifest["stages"]
        assert list(recorded) == ["adapter", "pairs", "quality"][: len(recorded)]
        act(folder)
        assert len(Run(folder / "run").manifest["stages"]) == 3

    assert each_failure(("manifest", "sync", "rename"), (FULL_DISK, BROKEN_DISK), act, check, tmp_path) == 2 * (
        3 + 6 + 3
    )


@pytest.mark.fault("B6")
def test_the_journal_has_exactly_the_acknowledged_events_and_their_numbers_continue(tmp_path: Path):
    acknowledged: dict[Path, list[int]] = {}

    def act(folder: Path) -> None:
        journal = Journal(folder / "events.jsonl")
        try:
            for number in range(4):
                entry = journal.append(Message("info", str(number)))
                acknowledged.setdefault(folder, []).append(entry.seq)
        finally:
            journal.close()

    def check(folder: Path) -> None:
        act(folder)
        numbers = [entry.seq for entry in read_entries(folder / "events.jsonl")]
        assert numbers == acknowledged[folder] == list(range(len(numbers)))

    assert each_failure(("event", "append", "sync"), (FULL_DISK, BROKEN_DISK), act, check, tmp_path) == 2 * (4 + 4 + 4)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def fill(part: Path) -> None:
    (part / "adapter_model.safetensors").write_bytes(part.name.encode() * 40)
    (part / "optimizer.pt").write_bytes(b"moments of " + part.name.encode())


@pytest.mark.fault("B6", "B2", "D14")
def test_training_can_continue_from_the_newest_reported_checkpoint(tmp_path: Path):
    reported: dict[Path, list[int]] = {}

    def act(folder: Path) -> None:
        for step in (2, 4, 6):
            write_checkpoint(folder, step, fill, "right")
            reported.setdefault(folder, []).append(step)
            rotate(folder, 2)

    def check(folder: Path) -> None:
        newest, _ = newest_good(folder, "right")
        assert (step_of(newest) if newest else 0) >= reported.get(folder, [0])[-1]
        assert not list(folder.glob(".*.part"))
        act(folder)
        newest, messages = newest_good(folder, "right")
        assert newest is not None and step_of(newest) == 6 and not messages and len(by_step(folder)) == 2

    points = ("checkpoint", "delete", "sync", "rename")
    assert each_failure(points, (FULL_DISK, BROKEN_DISK), act, check, tmp_path) == 2 * (6 + 1 + 15 + 6)
    assert each_failure(("checkpoint", "rename"), ("memory",), act, check, tmp_path) == 6 + 6


# -- the archive, the Hub ----------------------------------------------------------------------------------------------


@pytest.mark.fault("B6", "B3")
def test_the_archive_is_published_completely_or_not_at_all(trained: Context, tmp_path: Path):
    expected = build_archive(copied(trained, tmp_path / "good" / "run").run)

    def act(folder: Path) -> None:
        build_archive(Run(folder / "run"))

    def check(folder: Path) -> None:
        run = Run(folder / "run")
        assert not list(folder.glob(".*.part"))
        if run.archive.exists():
            assert sha256_of_file(run.archive) == expected.sha256
        act(folder)
        assert verified_archive(run)[0].sha256 == expected.sha256

    files, syncs, renames = len(expected.contents), 4, 2
    failures = each_failure(
        ("zip", "sync", "rename"),
        (FULL_DISK,),
        act,
        check,
        tmp_path,
        prepare=lambda folder: shutil.copytree(trained.run.folder, folder / "run"),
    )
    assert failures == files + syncs + renames


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHubPush]:
    monkeypatch.setattr(request_limits, "TRIES", 1)
    monkeypatch.setattr(request_limits, "TIMEOUT_SECONDS", 20)
    with fake_hub_push() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server


@pytest.mark.fault("B6")
def test_a_push_that_fails_anywhere_leaves_no_partial_commit_and_the_next_one_completes(
    hub: FakeHubPush, stage2: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's own retries
    context = finished_run(tmp_path / "run", stage2[0])
    build_archive(context.run)
    failures = 0
    for number in range(1, MAX_CALLS, 3):
        hub.repos.clear(), hub.large.clear()
        with failing(f"push=ECONNRESET@{number}") as armed:
            try:
                push_to_hub(context.run)
            except Stage3Error as error:
                assert armed.fired and isinstance(error, NetworkError), error
        if not armed.fired:
            break
        failures += 1
        assert all(not repo.files or len(repo.commits) == 1 for repo in hub.repos.values())
        push_to_hub(context.run)
        (repo,) = hub.repos.values()
        assert len(repo.commits) == 1 and "adapter_model.safetensors" in repo.files
    assert failures > 10, "requests to the Hub, and reads in the middle of files"


def push_to_hub(run: Run) -> Any:
    token = Secret("hf_CanaryCanaryCanaryCanary")
    return run_stage(push(run, "someone/stage3", token=token, public=False, accept_lookalikes=False, stop=StopToken()))


@pytest.mark.fault("B6")
def test_a_download_that_fails_anywhere_is_a_network_error_and_the_next_start_has_the_adapter(
    stage2: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub.utils import close_session

    from engine.hub import limit_requests

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with files_hub() as server:
        use_hub(server, monkeypatch)
        limit_requests()
        close_session()
        server.push("someone/stage2", stage2[1])
        for number in range(1, MAX_CALLS):
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"cache-{number}"))
            context = build_context(tmp_path / f"run-{number}", *stage2, adapter_path="someone/stage2")
            context.run.forget_stage("adapter")
            with failing(f"download=ECONNRESET@{number}+") as armed:
                try:
                    run_stage(adapter_stage.run(context))
                except Exception as error:
                    mapped = as_stage3_error(error)
                    assert armed.fired and mapped is not None and mapped.exit_code is ExitCode.NETWORK, repr(error)
            if not armed.fired:
                break
            _, end = run_stage(adapter_stage.run(context))
            assert end.outcome == "done"
        assert number > 3


def use_hub(server: FilesHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )


# -- stages that are done again ----------------------------------------------------------------------------------------


def make_done(folder: Path) -> None:
    """A run whose stages are done, with minimal results."""
    run = Run(folder)
    for name in (
        layout.PAIRS_JSONL,
        layout.EDITS_JSONL,
        layout.TRAIN_JSONL,
        f"{layout.CHECKPOINTS_DIR}/checkpoint-2/a",
    ):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("old")
    for stage in ("pairs", "quality", "training"):
        run.record_stage(stage, status="done")


@pytest.mark.fault("B6")
def test_a_redo_that_failed_halfway_reuses_nothing_when_it_is_repeated(tmp_path: Path):
    """`--from pairs` forgets stages, then sets their files aside; after a failure in between, a retry starts over."""

    def act(folder: Path) -> None:
        context = Context(load_config({"output_dir": folder / "run"}, environment={}), Run(folder / "run"))
        pipeline = run_pipeline(context, until="workspace", redo_from="pairs")
        for event in pipeline:
            if isinstance(event, (StageStarted, StageFinished)):
                pipeline.close()
                return

    def check(folder: Path) -> None:
        act(folder)
        old = (layout.PAIRS_JSONL, layout.EDITS_JSONL, layout.TRAIN_JSONL, layout.CHECKPOINTS_DIR)
        assert not [name for name in old if (folder / "run" / name).exists()]
        kept = {path.name for path in (folder / "run" / layout.SUPERSEDED_DIR).rglob("*")}
        assert {Path(name).name for name in old} <= kept
        assert not Run(folder / "run").manifest["stages"]

    failures = each_failure(
        ("manifest", "sync", "rename"), (FULL_DISK,), act, check, tmp_path, lambda folder: make_done(folder / "run")
    )
    assert failures > 10
