"""Stage packaging: what it verifies before the archive gets its name, what it reports, and when it is reused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from engine.core import layout
from engine.core.errors import DamagedState, Stage3Error, Stopped, UnsafeError
from engine.core.events import Check
from engine.packaging import fresh_process
from engine.packaging.archive import build_archive, existing_archive, hash_file
from engine.packaging.fresh_process import load_archive
from engine.run.context import Context
from engine.stages import packaging as stage
from engine.storage.files import sha256_of_file
from tests.conftest import run_stage
from tests.support.finished_run import CARD, WEIGHTS, copied, write_pairs


@pytest.fixture
def context(trained: Context, tmp_path: Path) -> Context:
    return copied(trained, tmp_path / "run")


def test_the_stage_prints_every_command_that_fetches_the_archive(context: Context, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 51000 192.0.2.44 2222")
    events, result = run_stage(stage.run(context))
    details = {event.name: event.detail for event in events if isinstance(event, Check)}
    assert "changes a logit" in details["loads"]
    assert details["fetch it"].startswith("scp -P 2222 ") and "@192.0.2.44:" in details["fetch it"]
    assert details["check and unpack"] == "sha256sum -c run_artifacts.zip.sha256 && unzip run_artifacts.zip"
    facts = json.loads(json.dumps(dict(result.facts)))  # as run.json keeps them
    assert facts["sha256"] == details["sha256"] == sha256_of_file(context.run.archive)
    assert facts["archive"] == str(context.run.archive) and facts["bytes"] == context.run.archive.stat().st_size
    assert [WEIGHTS, (context.run / WEIGHTS).stat().st_size] in facts["contents"]
    assert len(facts["contents"]) == facts["files"] > 10
    assert facts["scp"] == details["fetch it"]
    assert (facts["check"], facts["unzip"]) == tuple(details["check and unpack"].split(" && "))
    assert facts["load"] == [details["load the base"], details["load the adapter"]]


@pytest.mark.fault("F2-4")
def test_a_finished_stage_is_valid_while_its_archive_exists(context: Context):
    made = build_archive(context.run)
    before = stage.evidence(context)
    context.run.record_stage("packaging", status="done", result={"sha256": made.sha256})
    assert stage.evidence(context) == before
    content = context.run.archive.read_bytes()
    context.run.archive.write_bytes(content[:1000])
    assert stage.evidence(context) != before
    context.run.archive.unlink()
    assert stage.evidence(context) != before
    context.run.archive.with_suffix(".elsewhere").write_bytes(content)
    context.run.archive.symlink_to(context.run.archive.with_suffix(".elsewhere"))
    assert stage.evidence(context) != before, "a link is no archive"


def test_an_archive_of_the_same_files_is_not_made_again(context: Context, monkeypatch: pytest.MonkeyPatch):
    made = build_archive(context.run)
    written = context.run.archive.stat().st_mtime_ns
    # The machine has changed meanwhile, which is no reason to pack again.
    context.run.record_stage("toolchain", status="done", result={"uv": "99"})
    monkeypatch.setattr(stage, "build_archive", lambda *_, **__: pytest.fail("it was packed again"))
    events, result = run_stage(stage.run(context))
    assert result.facts["sha256"] == made.sha256 and context.run.archive.stat().st_mtime_ns == written
    assert any("intact archive" in getattr(event, "text", "") for event in events)


@pytest.mark.parametrize(
    "what", ["a file", "a new file", "the archive", "its hash", "the recorded hash", "another training"]
)
def test_an_archive_of_other_files_is_made_again(what: str, context: Context):
    build_archive(context.run)
    assert existing_archive(context.run) is not None
    if what == "a file":
        (context.run / CARD).write_text("# Another card\n")
    if what == "a new file":
        (context.run / layout.EDITS_JSONL).write_text('{"id":"pair1","action":"accept","time":1}\n')
    if what == "the archive":
        context.run.archive.write_bytes(context.run.archive.read_bytes()[:-1])
    if what == "its hash":
        hash_file(context.run).unlink()
    if what == "the recorded hash":
        context.run.record_stage("packaging", result={"sha256": "0" * 64})
    if what == "another training":
        context.run.record_stage("training", result={"tensors_sha256": "of another adapter"})
    assert existing_archive(context.run) is None


def test_accepted_and_left_out_files_are_in_the_stages_table(context: Context):
    key = "AKIA" + "IOSFODNN7EXAMPLE"
    rows = [{"id": f"p{number}", "prompt": f"{key} of the manual"} for number in range(2)]
    write_pairs(context.run / layout.PAIRS_JSONL, rows)
    write_pairs(context.run / layout.EDITS_JSONL, [{"id": "p0", "action": "reject", "time": 1}])
    (context.run / layout.ADAPTER_DIR / "notes.txt").write_text("mine")
    build_archive(context.run, accept_lookalikes=True)
    with pytest.raises(UnsafeError, match="pair p1"):
        run_stage(stage.run(context))
    context.config = context.config.model_copy(update={"accept_lookalikes": "it is Amazon's own example"})
    events, _ = run_stage(stage.run(context))
    warnings = {event.name: event.detail for event in events if isinstance(event, Check) and event.status == "warning"}
    assert set(warnings) == {"notes.txt", "pair p0", f"{layout.PAIRS_JSONL}:2"}
    assert warnings[f"{layout.PAIRS_JSONL}:2"].endswith("an AWS access key; accepted: it is Amazon's own example")


# -- the fresh process ----------------------------------------------------------------------------------------------------


def test_an_archive_loads_with_the_template_in_it_over_a_base_that_has_none(context: Context, tmp_path: Path):
    bare = Path(shutil.copytree(context.config.base_model_id, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    request = {"base_model_id": str(bare), "device": "cpu", "dtype": "float32"}
    found: list[float] = []
    build_archive(context.run, lambda part: found.append(load_archive({**request, "archive": str(part)})["effect"]))
    assert found[0] > 0


@pytest.mark.fault("H8")
@pytest.mark.parametrize(
    ("factor", "reason"), [(float("nan"), "NaN or infinity"), (0.0, "Every lora_B of the adapter is zero")]
)
def test_an_adapter_of_nan_or_of_nothing_is_not_packed(factor: float, reason: str, context: Context):
    tensors = {name: tensor * factor for name, tensor in load_file(context.run / WEIGHTS).items()}
    save_file(tensors, context.run / WEIGHTS)
    request = {"base_model_id": context.config.base_model_id, "device": "cpu", "dtype": "float32"}
    with pytest.raises(Stage3Error, match=reason):
        build_archive(context.run, lambda part: load_archive({**request, "archive": str(part)}) and None)
    assert_nothing_was_left(context)


@pytest.mark.fault("H7")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            """echo '{"effect": 0.7, "tensors_sha256": "of something else"}'""",
            "of something else; training recorded as it was.",
        ),
        ("""echo '{"error": "Every lora_B of the adapter is zero."}'""", "Every lora_B of the adapter is zero."),
        ("echo Killed >&2; exit 137", "exit code 137: Killed"),
        ("echo hello", "It ended without output."),
        ("", "It ended without output."),
        ("echo '[7]'", "Its output is invalid."),
    ],
)
def test_an_adapter_that_fails_in_the_fresh_process_leaves_no_archive(
    script: str, reason: str, context: Context, monkeypatch: pytest.MonkeyPatch
):
    python = context.run.folder.parent / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(fresh_process.sys, "executable", str(python))
    context.run.record_stage("training", result={"tensors_sha256": "as it was"})
    with pytest.raises(DamagedState) as refused:
        run_stage(stage.run(context))
    assert reason in refused.value.why and refused.value.what_to_do
    assert_nothing_was_left(context)


def test_a_request_to_stop_ends_the_fresh_process_and_leaves_no_archive(context: Context):
    context.stop.request("SIGTERM")
    with pytest.raises(Stopped):
        run_stage(stage.run(context))
    assert_nothing_was_left(context)


def assert_nothing_was_left(context: Context) -> None:
    assert [path.name for path in context.run.folder.parent.iterdir() if "zip" in path.name] == []
