"""The archive: the same bytes for the same run, nothing in it that does not belong, and it loads somewhere else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from engine import names
from engine.context import Context
from engine.errors import DamagedState, PreconditionError, Stage3Error, UnsafeError
from engine.files import sha256_of_file, write_json
from engine.models.loading import load_tokenizer
from engine.models.tensors import file_tensors, hash_tensors
from engine.packaging import (
    MANIFEST,
    build_archive,
    hash_file,
    load_archive,
    load_in_fresh_process,
    read_back,
    redacted,
)
from engine.stages import packaging as stage
from tests.conftest import run_stage
from tests.tiny_models import build_adapter, build_base, build_context, pairs, write_rows

WEIGHTS = f"{names.ADAPTER_DIR}/adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def context(base: Path, tmp_path: Path) -> Context:
    """A run that looks as the stage training leaves it."""
    folder = tmp_path / "run"
    adapter = build_adapter(folder / names.ADAPTER_DIR, base, seed=23)
    context = build_context(folder, base, adapter)
    load_tokenizer(context.config).save_pretrained(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    write_json(adapter / "adapter_config.json", {**settings, "base_model_name_or_path": "base"})
    (adapter / "README.md").write_text("# The card\n")
    write_rows(context.run / names.TRAIN_JSONL, pairs(3))
    write_rows(context.run / names.EVAL_JSONL, pairs(5)[3:])
    write_json(context.run / names.METRICS_JSON, {"verdict": "cannot tell", "seconds": 12.5})
    (context.run / "logs").mkdir()
    (context.run / "logs/events.jsonl").write_text('{"kind":"message","text":"hf_secret"}\n')
    (context.run / "checkpoints/checkpoint-2").mkdir(parents=True)
    (context.run / "checkpoints/checkpoint-2/optimizer.pt").write_bytes(b"\x80\x04.")
    context.run.manifest["config"] = context.config.model_dump(mode="json")
    context.run.record_stage(
        "training", status="done", result={"tensors_sha256": hash_tensors(file_tensors(context.run / WEIGHTS))}
    )
    return context


def test_two_archives_of_one_run_have_the_same_bytes_wherever_and_whenever_they_are_made(context: Context):
    context.run.record_stage(
        "workspace", status="done", started=3.5, seconds=1.75, result={"free_bytes": 55, "commit": "c0ffee"}
    )
    first = build_archive(context.run).sha256
    old_umask, old_zone = os.umask(0o077), os.environ.get("TZ")
    os.environ["TZ"] = "Pacific/Kiritimati"
    time.tzset()
    try:
        for number, path in enumerate(sorted(context.run.folder.rglob("*"))):
            path.chmod(0o700)
            os.utime(path, (3e8 + number, 3e8 + number))
        context.run.record_stage("packaging", status="running", started=time.time())
        context.run.record_stage(
            "workspace", status="done", started=9.5, seconds=2.25, result={"free_bytes": 77, "commit": "c0ffee"}
        )
        second = build_archive(context.run)
    finally:
        os.umask(old_umask)
        os.environ.pop("TZ") if old_zone is None else os.environ.update(TZ=old_zone)
        time.tzset()
    assert second.sha256 == first == sha256_of_file(context.run.archive)
    assert list(context.run.folder.parent.glob(".*.part")) == []


def test_the_archive_holds_the_list_and_nothing_else(context: Context):
    (context.run / names.ADAPTER_DIR / "notes.txt").write_text("mine")
    archive = build_archive(context.run)
    with zipfile.ZipFile(archive.path) as packed:
        inside = set(packed.namelist())
    assert inside == {
        f"run/{name}"
        for name in (
            MANIFEST, names.RUN_JSON, names.TRAIN_JSONL, names.EVAL_JSONL, names.METRICS_JSON, WEIGHTS,
            *(f"{names.ADAPTER_DIR}/{name}" for name in (
                "adapter_config.json", "README.md", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
            )),
        )
    }  # fmt: skip
    assert archive.left_out == ("notes.txt",)


def test_sha256sum_and_unzip_read_it(context: Context, tmp_path: Path):
    build_archive(context.run)
    done = subprocess.run(
        ["sha256sum", "-c", hash_file(context.run).name], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "run_artifacts.zip: OK\n"
    home = tmp_path / "home"
    subprocess.run(["unzip", "-q", str(context.run.archive), "-d", str(home)], check=True)
    assert (home / "run" / WEIGHTS).read_bytes() == (context.run / WEIGHTS).read_bytes()


def link(run_file: Path, outside: Path) -> None:
    run_file.unlink(missing_ok=True)
    run_file.symlink_to(outside)


def hard_link(run_file: Path, outside: Path) -> None:
    run_file.unlink(missing_ok=True)
    os.link(outside, run_file)


def fifo(run_file: Path, outside: Path) -> None:
    run_file.unlink(missing_ok=True)
    os.mkfifo(run_file)


def linked_folder(run_file: Path, outside: Path) -> None:
    moved = run_file.parent.rename(outside.parent / "elsewhere")
    run_file.parent.symlink_to(moved)


def pickle_beside(run_file: Path, outside: Path) -> None:
    (run_file.parent / "training_args.bin").write_bytes(b"\x80\x04.")


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (link, "a symbolic link"),
        (hard_link, "a hard link"),
        (fifo, "no regular file"),
        (linked_folder, "a symbolic link"),
        (pickle_beside, "is a pickle"),
    ],
)
def test_what_is_no_file_of_the_run_is_refused(
    plant: Callable[[Path, Path], None], reason: str, context: Context, tmp_path: Path
):
    outside = tmp_path / "secret"
    outside.write_text("a secret of somebody else")
    plant(context.run / names.ADAPTER_DIR / "README.md", outside)
    with pytest.raises(UnsafeError, match=reason):
        build_archive(context.run)
    assert not context.run.archive.exists()


def test_without_an_adapter_there_is_no_archive(context: Context):
    (context.run / WEIGHTS).unlink()
    with pytest.raises(PreconditionError, match=r"There is no .*adapter_model\.safetensors"):
        build_archive(context.run)


def test_this_machines_names_stay_here(context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-anna"))
    monkeypatch.setenv("LOGNAME", "anna.example")
    host = socket.gethostname()
    facts = {
        "folder": str(context.run / "pairs"),
        "cache": str(tmp_path / "home-of-anna/.cache/hub"),
        "driver": "/usr/lib/x86_64/libcuda.so.1 on " + host,
        "by": "anna.example",
        "page": "https://huggingface.co/google/gemma-2b-it",
        "share": "12/40",
    }
    context.run.record_stage("workspace", status="done", result=facts)
    metrics = {"verdict": "worse", "log": f"{context.run.folder}/logs", "sample": "Use /usr/bin/env, she said."}
    write_json(context.run / names.METRICS_JSON, metrics)
    build_archive(context.run)
    with zipfile.ZipFile(context.run.archive) as packed:
        run_json = packed.read("run/run.json").decode()
        everything = b"".join(packed.read(name) for name in packed.namelist() if name.endswith(".json")).decode()
        packed_metrics = json.loads(packed.read("run/metrics.json"))
    assert str(tmp_path) not in everything
    assert "home-of-anna" not in everything
    assert "anna.example" not in run_json and "/usr/lib" not in run_json
    assert len(host) <= 3 or host not in run_json
    kept = json.loads(run_json)["stages"]["workspace"]["result"]
    assert (kept["page"], kept["share"]) == (facts["page"], facts["share"])
    assert packed_metrics["sample"] == metrics["sample"]


def test_redaction_keeps_what_is_no_path():
    data = {"a": ["1/2", "https://x.org/a/b", "see /etc/ssl/cert.pem.", "google/gemma-2b-it", 7, None]}
    assert redacted(data, {}, paths=True) == {
        "a": ["1/2", "https://x.org/a/b", "see cert.pem.", "google/gemma-2b-it", 7, None]
    }


def test_the_archive_loads_in_a_fresh_process(context: Context, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 51000 192.0.2.44 22")
    events, result = run_stage(stage.run(context))
    details = {event.name: event.detail for event in events if event.kind() == "check"}
    assert "changes a logit" in details["loads"]
    assert "@192.0.2.44:" in details["bring it home"] and details["bring it home"].startswith("scp ")
    assert "unzip run_artifacts.zip" in details["check and unpack"]
    assert result.facts["sha256"] == sha256_of_file(context.run.archive)
    before = stage.depends_on(context)
    context.run.record_stage("packaging", status="done", result=dict(result.facts))
    assert stage.depends_on(context) == before
    context.run.archive.unlink()
    assert stage.depends_on(context) != before


def test_an_adapter_that_is_not_the_trained_one_gets_no_archive(context: Context, monkeypatch: pytest.MonkeyPatch):
    from engine import packaging

    class Answer:
        returncode, stderr = 0, ""
        stdout = json.dumps({"effect": 0.7, "tensors_sha256": "of something else"})

    monkeypatch.setattr(packaging.subprocess, "run", lambda *_, **__: Answer)
    with pytest.raises(DamagedState, match="not the one that was trained"):
        build_archive(context.run, lambda part: load_in_fresh_process(part, context.config, "as recorded") and None)
    assert not context.run.archive.exists()


def test_an_adapter_full_of_nan_is_not_packed(context: Context):
    tensors = {name: tensor * float("nan") for name, tensor in load_file(context.run / WEIGHTS).items()}
    save_file(tensors, context.run / WEIGHTS)
    request = {"base_model_id": context.config.base_model_id, "device": "cpu", "dtype": "float32"}
    with pytest.raises(Stage3Error, match="NaN or infinity"):
        build_archive(context.run, lambda part: load_archive({**request, "archive": str(part)}) and None)
    assert not context.run.archive.exists()
    assert [path.name for path in context.run.folder.parent.iterdir() if "zip" in path.name] == []


def rewritten(archive: Path, change: Callable[[str, bytes], tuple[str, bytes]]) -> Path:
    made = archive.with_name("changed.zip")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.infolist():
            name, data = change(entry.filename, old.read(entry))
            new_entry = zipfile.ZipInfo(name)
            new_entry.external_attr = entry.external_attr
            new.writestr(new_entry, data)
    return made


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda n, d: (n, d + b" " if n.endswith("README.md") else d), "not those of its manifest"),
        (lambda n, d: (n.replace("run/metrics", "run/../../metrics"), d), "leaves the folder"),
        (lambda n, d: (n.replace("run/metrics", "other/metrics"), d), "one folder"),
    ],
)
def test_an_archive_that_was_changed_does_not_read_back(
    change: Callable[[str, bytes], tuple[str, bytes]], reason: str, context: Context
):
    archive = build_archive(context.run).path
    with pytest.raises(DamagedState, match=reason):
        read_back(rewritten(archive, change))


def test_an_archive_with_a_flipped_bit_does_not_read_back(context: Context):
    archive = build_archive(context.run).path
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    with pytest.raises(DamagedState):
        read_back(archive)
