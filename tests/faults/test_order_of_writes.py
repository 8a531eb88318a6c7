"""Everything acknowledged, and every file under its final name, survives a power cut. No power is cut here: the order of
the calls guarantees it, so the tests check that order.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.dpo.training.checkpoints import write_checkpoint
from engine.packaging.archive import build_archive
from engine.run.context import Context
from engine.storage.files import publish_folder, write_json
from engine.storage.jsonl import JsonlAppender


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """("sync" or "rename", name of the path) for each call, in order."""
    recorded: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def recording_sync(file: int) -> None:
        recorded.append(("sync", Path(f"/proc/self/fd/{file}").readlink().name))
        fsync(file)

    def recording_rename(before: Path, after: Path) -> None:
        recorded.append(("rename", Path(after).name))
        rename(before, after)

    monkeypatch.setattr(os, "fsync", recording_sync)
    monkeypatch.setattr(os, "rename", recording_rename)
    monkeypatch.setattr(os, "replace", recording_rename)
    return recorded


def test_a_record_is_synced_when_its_append_returns(tmp_path: Path, calls: list[tuple[str, str]]):
    with JsonlAppender(tmp_path / "pairs.jsonl") as appender:
        for number in range(3):
            appender.append({"number": number})
            assert calls == [("sync", "pairs.jsonl")] * (number + 1)


def test_a_small_file_is_synced_before_its_rename_and_its_folder_afterwards(
    tmp_path: Path, calls: list[tuple[str, str]]
):
    write_json(tmp_path / "run.json", {})
    assert calls == [("sync", f".run.json.{os.getpid()}.part"), ("rename", "run.json"), ("sync", tmp_path.name)]


def test_every_file_of_a_checkpoint_is_synced_before_its_rename(tmp_path: Path, calls: list[tuple[str, str]]):
    def fill(part: Path) -> None:
        for name in ("adapter_model.safetensors", "optimizer.pt"):
            (part / name).write_bytes(b"numbers")

    write_checkpoint(tmp_path, 4, fill, "right")
    renamed = calls.index(("rename", "checkpoint-4"))
    assert {("sync", "adapter_model.safetensors"), ("sync", "optimizer.pt"), ("rename", "manifest.json")} <= set(
        calls[:renamed]
    )
    assert calls[renamed + 1 :] == [("sync", tmp_path.name)]


def test_everything_in_a_folder_is_synced_before_its_rename(tmp_path: Path, calls: list[tuple[str, str]]):
    part = tmp_path / ".lora_adapters.part"
    (part / "within").mkdir(parents=True)
    (part / "adapter_model.safetensors").write_bytes(b"numbers")
    (part / "within" / "a").write_bytes(b"a")
    publish_folder(part, tmp_path / "lora_adapters")
    renamed = calls.index(("rename", "lora_adapters"))
    assert {name for _, name in calls[:renamed]} == {"adapter_model.safetensors", "within", "a", part.name}
    assert calls[renamed + 1 :] == [("sync", tmp_path.name)]


def test_the_archive_is_synced_before_its_rename(trained: Context, tmp_path: Path, calls: list[tuple[str, str]]):
    from tests.support.finished_run import copied  # it imports torch

    run = copied(trained, tmp_path / "run").run
    calls.clear()
    build_archive(run)
    names = [name for kind, name in calls if kind == "rename"]
    assert names == ["run_artifacts.zip", "run_artifacts.zip.sha256"]
    assert calls[0] == ("sync", ".run_artifacts.zip.part") and calls[1] == ("rename", "run_artifacts.zip")
