"""Any change to an archive's bytes is noticed before its content is used."""

from __future__ import annotations

import json
import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.core import layout
from engine.core.errors import DamagedState
from engine.packaging.archive import build_archive, hash_file, verified_archive
from engine.packaging.verify import read_back
from engine.packaging.zip_writer import MANIFEST
from engine.run.folder import Run
from tests.support.finished_run import CARD, finished_run

Entries = list[tuple[zipfile.ZipInfo, bytes]]


@pytest.fixture(scope="module")
def run(stage2: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with its archive."""
    context = finished_run(tmp_path_factory.mktemp("archive") / "run", stage2[0])
    build_archive(context.run)
    return context.run


def rewritten(archive: Path, made: Path, change: Callable[[Entries], Entries]) -> Path:
    """A copy of an archive with changed entries."""
    with zipfile.ZipFile(archive) as old:
        entries = change([(entry, old.read(entry)) for entry in old.infolist()])
    with zipfile.ZipFile(made, "w") as new:
        for entry, data in entries:
            new.writestr(entry, data)
    return made


def named(name: str, data: bytes = b"{}", mode: int = stat.S_IFREG | 0o644) -> tuple[zipfile.ZipInfo, bytes]:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry, data


def renamed(entries: Entries, old: str, new: str) -> Entries:
    return [named(new, data) if entry.filename == old else (entry, data) for entry, data in entries]


def with_manifest(entries: Entries, change: Callable[[dict], object]) -> Entries:
    changed = []
    for entry, data in entries:
        if entry.filename == f"run/{MANIFEST}":
            manifest = json.loads(data)
            change(manifest)
            data = json.dumps(manifest).encode()
        changed.append((entry, data))
    return changed


@pytest.mark.fault("H7")
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: [*e, named("run/../evil.json")], "leaves the folder"),
        (lambda e: [*e, named("run/pairs/../../evil.json")], "leaves the folder"),
        (lambda e: [*e, named("run/pairs\\..\\evil.json")], "leaves the folder"),
        (lambda e: [*e, named("run/./metrics.json")], "leaves the folder"),
        (lambda e: [*e, named("run//etc/passwd")], "leaves the folder"),
        (lambda e: [*e, named("run/C:evil.json")], "leaves the folder"),
        (lambda e: [*e, named("run/pairs/pairs\n.jsonl")], "leaves the folder"),
        (lambda e: [*e, named("/run/metrics.json")], "do not all start with the same folder"),
        (lambda e: [*e, named("other/metrics.json")], "do not all start with the same folder"),
        (lambda e: [*e, named("run/metrics.json")], "a name occurs twice"),
        (lambda e: [*e, named("run/METRICS.json")], "a name occurs twice"),
        (lambda e: [*e, named("run/evil.json")], "not on the allow-list"),
        (lambda e: [*e, named("run/pairs/edits.jsonl", b"/etc/passwd", stat.S_IFLNK | 0o777)], "not a regular file"),
        (lambda e: [*e, named("run/pairs/edits.jsonl")], "not in its manifest"),
        (lambda e: [pair for pair in e if pair[0].filename != "run/metrics.json"], "metrics.json is not in it"),
        (lambda e: [pair for pair in e if MANIFEST not in pair[0].filename], "has no manifest"),
        (lambda e: [(n, d + b" ") if CARD in n.filename else (n, d) for n, d in e], "does not match its manifest"),
        (lambda e: with_manifest(e, lambda m: m["files"][CARD].update(bytes=1)), "does not match its manifest"),
        (lambda e: with_manifest(e, lambda m: m.pop("files")), "'files'"),
        (lambda e: with_manifest(e, lambda m: m.update(files=[])), "."),
        (lambda e: renamed(e, f"run/{CARD}", f"run/{layout.ADAPTER_DIR}/readme.MD"), "not on the allow-list"),
        (lambda e: [], "do not all start with the same folder"),
    ],
)
def test_a_changed_archive_does_not_read_back(
    change: Callable[[Entries], Entries], reason: str, run: Run, tmp_path: Path
):
    with pytest.raises(DamagedState) as noticed:
        read_back(rewritten(run.archive, tmp_path / "changed.zip", change))
    assert reason.lower() in noticed.value.why.lower()


def test_an_archive_rewritten_with_the_same_files_reads_back(run: Run, tmp_path: Path):
    """This shows that the cases above are refused only for their damage."""
    assert read_back(rewritten(run.archive, tmp_path / "same.zip", lambda entries: entries)) == read_back(run.archive)


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bits_and_truncation_never_yield_other_files(seed: int, run: Run, tmp_path: Path):
    draw = random.Random(seed)
    data = bytearray(run.archive.read_bytes())
    for _ in range(draw.randint(1, 3)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    if seed % 5 == 0:
        del data[draw.randrange(len(data)) :]
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(data)
    try:
        found = read_back(damaged)
    except DamagedState:
        return
    assert found == read_back(run.archive)  # the bit is not part of the content: a time, a comment's length


def test_an_archive_is_verified_against_the_hash_beside_it_and_the_one_in_run_json(
    stage2: tuple[Path, Path], tmp_path: Path
):
    run = finished_run(tmp_path / "run", stage2[0]).run
    made = build_archive(run)
    assert verified_archive(run)[0].sha256 == made.sha256
    run.record_stage("packaging", result={"sha256": made.sha256})
    assert dict(verified_archive(run)[0].contents) == dict(made.contents)
    run.record_stage("packaging", result={"sha256": "0" * 64})
    with pytest.raises(DamagedState, match="not the one this run made"):
        verified_archive(run)
    run.record_stage("packaging", result={"sha256": made.sha256})
    run.archive.write_bytes(run.archive.read_bytes() + b"\n")
    with pytest.raises(DamagedState, match="not the one this run made"):
        verified_archive(run)
    run.archive.unlink()
    with pytest.raises(DamagedState, match="not the one this run made") as gone:
        verified_archive(run)
    assert "--from packaging" in gone.value.what_to_do


def test_without_a_recorded_hash_an_archive_is_not_accepted(stage2: tuple[Path, Path], tmp_path: Path):
    run = finished_run(tmp_path / "run", stage2[0]).run
    build_archive(run)
    hash_file(run).unlink()
    with pytest.raises(DamagedState, match="not the one this run made"):
        verified_archive(run)
