"""The archive: its bytes are reproducible, it contains nothing but the listed files, and it loads on other machines."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.core import layout
from engine.core.errors import ExitCode, PreconditionError, Stage3Error, UnsafeError
from engine.packaging.archive import build_archive, hash_file
from engine.packaging.contents import read_file
from engine.packaging.zip_writer import MANIFEST
from engine.pairs.data.edits import write_edit
from engine.run.context import Context
from engine.stages.packaging import evidence
from engine.storage.files import sha256_of_file
from tests.support.finished_run import CARD, WEIGHTS, copied

ROOT = Path(__file__).parents[2]


@pytest.fixture
def context(trained: Context, tmp_path: Path) -> Context:
    return copied(trained, tmp_path / "run")


# -- reproducible bytes -------------------------------------------------------------------------------------------------

BUILD = """
import os, sys, time
from pathlib import Path
umask, now, folder = sys.argv[1:]
os.umask(int(umask, 8))
time.time = lambda: float(now)
from engine.packaging import build_archive
from engine.run.folder import Run
print(build_archive(Run(Path(folder))).sha256)
"""


def hash_when_built(context: Context, *, umask: str, zone: str, now: float, modified: float) -> str:
    """Change the files' times and modes, build in a process with this umask, time zone and clock, and return the hash."""
    for number, path in enumerate(sorted(context.run.folder.rglob("*"))):
        path.chmod(0o700 if number % 2 else 0o755)
        os.utime(path, (modified + number, modified + number))
    done = subprocess.run(
        [sys.executable, "-c", BUILD, umask, str(now), str(context.run.folder)],
        env={**os.environ, "TZ": zone, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        cwd=context.run.folder.parent,
    )
    assert done.stdout.strip() == sha256_of_file(context.run.archive)
    return done.stdout.strip()


@pytest.mark.fault("H4")
def test_two_archives_of_one_run_have_the_same_bytes_wherever_and_whenever_they_are_made(context: Context):
    first = hash_when_built(context, umask="022", zone="UTC", now=1.7e9, modified=1.6e9)
    assert hash_when_built(context, umask="077", zone="Pacific/Kiritimati", now=9.9e9, modified=3e8) == first
    assert (
        hash_when_built(context, umask="000", zone="America/St_Johns", now=1.0, modified=-1e6) == first
    )  # before 1970
    assert hash_when_built(context, umask="027", zone="Asia/Kathmandu", now=2e9, modified=5e9) == first  # and in 2128
    assert list(context.run.folder.parent.glob(".*.part")) == []


def test_results_that_vary_from_start_to_start_change_no_byte(context: Context):
    run = context.run

    def record(started: float, probe: float, account: str) -> None:
        run.record_stage("workspace", status="done", started=started, seconds=2.5, result={"free_bytes": int(started)})
        run.record_stage("dependencies", status="done", summary=f"{probe} s", result={"probe": {"seconds": probe}})
        run.record_stage("credentials", status="done", result={"account": account, "role": account, "source": account})

    record(3.5, 1.5, "anna")
    first = build_archive(run).sha256
    run.forget_stage("workspace")  # it returns at another position in run.json
    record(9.5, 4.5, "hedwig")
    run.record_stage("packaging", status="running", started=7.0)
    run.manifest["config"] |= {"push_to_hub": "anna/stage3", "push_public": True, "theme": "paper"}
    run.manifest["error"] = {"stage": "packaging", "what": "Nothing was pushed."}
    run.save()
    assert build_archive(run).sha256 == first


# -- contents -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("H2")
def test_the_archive_contains_the_listed_files_and_nothing_else(context: Context):
    (context.run / layout.ADAPTER_DIR / "notes.txt").write_text("mine")
    archive = build_archive(context.run)
    with zipfile.ZipFile(archive.path) as packed:
        inside = set(packed.namelist())
        sizes = {entry.filename: entry.file_size for entry in packed.infolist()}
    assert inside == {
        f"run/{name}"
        for name in (
            MANIFEST, layout.RUN_JSON, layout.PAIRS_JSONL, layout.TRAIN_JSONL, layout.EVAL_JSONL, layout.METRICS_JSON,
            layout.EVALUATION_REPORT, WEIGHTS,
            *(f"{layout.ADAPTER_DIR}/{name}" for name in (
                "adapter_config.json", "README.md", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
            )),
        )
    }  # fmt: skip
    assert archive.left_out == ("notes.txt",)
    assert {f"run/{name}": size for name, size in archive.contents} == sizes


def test_sha256sum_and_unzip_read_it(context: Context, tmp_path: Path):
    build_archive(context.run)
    done = subprocess.run(
        ["sha256sum", "-c", hash_file(context.run).name], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "run_artifacts.zip: OK\n"
    home = tmp_path / "home"
    subprocess.run(["unzip", "-q", str(context.run.archive), "-d", str(home)], check=True)
    assert (home / "run" / WEIGHTS).read_bytes() == (context.run / WEIGHTS).read_bytes()


# -- refusals -----------------------------------------------------------------------------------------------------------


def link(run: Path, outside: Path) -> Path:
    (run / CARD).unlink()
    (run / CARD).symlink_to(outside)
    return run / CARD


def link_beside(run: Path, outside: Path) -> Path:
    (run / "pairs/more.jsonl").symlink_to(outside)
    return run / "pairs/more.jsonl"


def link_at_the_top(run: Path, outside: Path) -> Path:
    (run / "notes").symlink_to(outside.parent)
    return run / "notes"


def linked_folder(run: Path, outside: Path) -> Path:
    moved = (run / layout.ADAPTER_DIR).rename(outside.parent / "elsewhere")
    (run / layout.ADAPTER_DIR).symlink_to(moved)
    return run / layout.ADAPTER_DIR


def hard_link(run: Path, outside: Path) -> Path:
    (run / CARD).unlink()
    os.link(outside, run / CARD)
    return run / CARD


def fifo(run: Path, outside: Path) -> Path:
    (run / CARD).unlink()
    os.mkfifo(run / CARD)
    return run / CARD


def a_socket(run: Path, outside: Path) -> Path:
    (run / CARD).unlink()
    here = os.open(run / layout.ADAPTER_DIR, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/README.md")  # a socket's address must be short
    os.close(here)
    return run / CARD


def pickle_by_name(run: Path, outside: Path) -> Path:
    (run / layout.ADAPTER_DIR / "training_args.bin").write_bytes(b"whatever")
    return run / layout.ADAPTER_DIR / "training_args.bin"


def pickle_at_the_top(run: Path, outside: Path) -> Path:
    (run / "state.PKL").write_bytes(b"whatever")
    return run / "state.PKL"


def pickle_by_content(run: Path, outside: Path) -> Path:
    (run / CARD).write_bytes(b"\x80\x04\x95.")
    return run / CARD


def backslash(run: Path, outside: Path) -> Path:
    (run / "evaluation/..\\..\\evil.json").write_text("{}")
    return run / "evaluation/..\\..\\evil.json"


def dots(run: Path, outside: Path) -> Path:
    (run / "pairs/..evil").write_text("{}")
    return run / "pairs/..evil"


def line_break(run: Path, outside: Path) -> Path:
    (run / "pairs/two\nlines").write_text("{}")
    return run / "pairs/two lines"  # as the error shows it


@pytest.mark.fault("H1", "H3")
@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (link, "a symbolic link"),
        (link_beside, "a symbolic link"),
        (link_at_the_top, "a symbolic link"),
        (linked_folder, "a symbolic link"),
        (hard_link, "a hard link"),
        (fifo, "a named pipe"),
        (a_socket, "a socket"),
        (pickle_by_name, "is a pickle"),
        (pickle_at_the_top, "is a pickle"),
        (pickle_by_content, "is a pickle"),
        (backslash, "may read as a path"),
        (dots, "may read as a path"),
        (line_break, "may read as a path"),
    ],
)
def test_anything_but_regular_files_is_refused_by_name_with_what_to_do(
    plant: Callable[[Path, Path], Path], reason: str, context: Context, tmp_path: Path
):
    outside = tmp_path / "outside/secret"
    outside.parent.mkdir()
    outside.write_text("a secret of somebody else")
    planted = plant(context.run.folder, outside)
    with pytest.raises(UnsafeError, match=reason) as refused:
        build_archive(context.run)
    assert refused.value.exit_code == ExitCode.UNSAFE == 12
    assert str(planted) in refused.value.what and refused.value.what_to_do
    assert not context.run.archive.exists()


@pytest.mark.fault("H3")
def test_a_run_folder_with_a_dangerous_name_is_refused(trained: Context, tmp_path: Path):
    context = copied(trained, tmp_path / "a\\b")
    with pytest.raises(UnsafeError, match="may read as a path"):
        build_archive(context.run)


def test_checkpoints_and_logs_may_be_links_to_another_disk(context: Context, tmp_path: Path):
    for name in ("checkpoints", "logs"):
        shutil.move(context.run / name, tmp_path / f"big-disk-{name}")
        (context.run / name).symlink_to(tmp_path / f"big-disk-{name}")
    assert not any("checkpoint" in name or "logs" in name for name, _ in build_archive(context.run).contents)


@pytest.mark.fault("H1", "F2-2")
@pytest.mark.parametrize("name", [CARD, "pairs/pairs.jsonl"])
def test_a_file_replaced_by_a_link_after_the_check_is_not_read(name: str, context: Context, tmp_path: Path):
    """No link on the way to a file is followed, be it the file or a folder above it."""
    outside = tmp_path / "outside"
    (context.run / "pairs").rename(outside)
    (context.run / "pairs").symlink_to(outside)
    (context.run / CARD).unlink()
    (context.run / CARD).symlink_to("/etc/passwd")
    with pytest.raises(UnsafeError, match="not a regular file"):
        read_file(context.run, name)


@pytest.mark.fault("B10")
def test_a_link_at_the_temporary_name_is_not_followed(context: Context, tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    context.run.archive.with_name(f".{context.run.archive.name}.part").symlink_to(precious)
    archive = build_archive(context.run)
    assert precious.read_text() == "mine"
    assert stat.S_ISREG(archive.path.lstat().st_mode)


@pytest.mark.fault("H6")
@pytest.mark.parametrize("change", ["rewritten", "gone", "new", "a link now"])
def test_a_file_that_changes_while_it_is_packed_is_noticed(change: str, context: Context, tmp_path: Path):
    path = context.run / (layout.EDITS_JSONL if change == "new" else layout.TRAIN_JSONL)

    def change_meanwhile(part: Path) -> None:
        assert part.exists()
        if change in ("gone", "a link now"):
            path.rename(tmp_path / "moved")
        if change == "a link now":
            path.symlink_to(tmp_path / "moved")
        if change in ("rewritten", "new"):
            path.write_text('{"id": "p1", "action": "reject", "time": 1}\n')

    with pytest.raises(Stage3Error, match=path.name) as noticed:
        build_archive(context.run, change_meanwhile)
    assert noticed.value.exit_code == (ExitCode.UNSAFE if change == "a link now" else ExitCode.DAMAGED)
    assert not context.run.archive.exists() and not hash_file(context.run).exists()


@pytest.mark.parametrize("read", [0, 1])
def test_decisions_made_after_stage_quality_are_not_packed_and_change_nothing(read: int, context: Context):
    path = context.run / layout.EDITS_JSONL
    for number in range(read):
        write_edit(path, f"early-{number}", "accept")
    early = path.read_bytes() if read else b""
    sets = {"train_sha256": "a", "eval_sha256": "b"}
    context.run.record_stage("quality", status="done", result={**sets, "edits_bytes": len(early)})
    write_edit(path, "late", "reject")
    archive = build_archive(context.run, lambda _: write_edit(path, "later", "reject"))
    with zipfile.ZipFile(archive.path) as opened:
        packed = {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}
    assert packed.get(layout.EDITS_JSONL, b"") == early
    before = evidence(context)
    write_edit(path, "last", "reject")
    assert evidence(context) == before, "the archive would be rebuilt with the same content"
    context.run.record_stage("quality", result={**sets, "edits_bytes": path.stat().st_size})
    assert evidence(context) != before


def test_without_an_adapter_there_is_no_archive(context: Context):
    (context.run / WEIGHTS).unlink()
    with pytest.raises(PreconditionError, match=r"adapter_model\.safetensors does not exist"):
        build_archive(context.run)
