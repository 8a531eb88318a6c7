"""`stage3-tui doctor --bundle`: what a maintainer needs to know about a run and its machine, without any of its texts."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil

import engine
from engine.core import layout
from engine.core.errors import ConfigError, DiskError, Stage3Error
from engine.core.events import Check
from engine.core.reading import open_file
from engine.packaging.secret_scan import find_secrets, refuse_secrets
from engine.packaging.support_text import Phrases, SupportText, private_texts, texts
from engine.packaging.zip_writer import write_zip
from engine.storage.documents import read_json
from engine.storage.jsonl import BadLine, read_jsonl

DISTRIBUTION = "stage3-tui"
LAST_EVENTS = 400
LAST_READINGS = 60
"""Telemetry is written every second and would crowd out the rest."""
LOG_BYTES = 256 << 10
LARGEST_JSON = 16 << 20
REPORTS = {"plan.json": layout.PAIRS_PLAN, "preflight.json": layout.PILOT_REPORT, "metrics.json": layout.METRICS_JSON}
WITH_PRIVATE_TEXTS = (
    layout.PAIRS_JSONL, layout.PILOT_PAIRS, layout.EDITS_JSONL, layout.TRAIN_JSONL, layout.EVAL_JSONL, layout.EVENTS_JSONL,
)  # fmt: skip
REPORTS_WITH_PRIVATE_TEXTS = (layout.EVALUATION_REPORT, layout.PAIRS_REPORT, layout.PILOT_REPORT)
VARIABLES = ("STAGE3_", "HF_", "CUDA_", "PYTORCH_", "OMP_", "MKL_", "LC_")
"""Prefixes of the variables that affect a run; for a token, only that it is set."""


@dataclass(frozen=True)
class SupportArchive:
    path: Path
    members: tuple[tuple[str, int, str], ...]
    """Name, bytes, and description."""
    taken: Mapping[str, int]
    """How often each kind of text was removed."""
    missing: tuple[str, ...]
    """Files of the run that are missing or unreadable."""


ABOUT = {
    "about.txt": "what this is, and what was removed",
    "versions.json": "program, Python, packages, system",
    "machine.json": "what doctor found: driver, GPU, disk, tools",
    "run.json": "options, and how each stage ended",
    "plan.json": "the batch plan of stage pairs",
    "preflight.json": "the pilot's figures",
    "metrics.json": "the figures of the training and the verdict",
    "events.jsonl": f"the last {LAST_EVENTS} events, and {LAST_READINGS} readings of the machine",
    "run.log": "the end of the log",
}


def write_support_archive(
    path: Path, run_folder: Path, findings: Sequence[Check | Stage3Error], *, config: Mapping[str, Any]
) -> SupportArchive:
    """Write the archive as a new file of mode 0600.

    findings   the events of `engine.pipeline.doctor.examine`
    config     the current options; those recorded by the run take precedence

    Raises ConfigError if `path` exists, DiskError if it cannot be written, UnsafeError if a secret were in it.
    """
    if path.exists() or path.is_symlink():
        raise ConfigError(
            f"{path} already exists.", "A support archive never overwrites a file.", "Use another --bundle FILE."
        )
    found, missing = _read(run_folder)
    found["versions.json"], found["machine.json"] = _versions(), _machine(run_folder, findings)
    recorded = found.get("run.json", {}).get("config", {})
    clean = SupportText(
        run_folder,
        {**config, **(recorded if isinstance(recorded, dict) else {})},
        Phrases(texts(list(found.values())), _private_texts_of(run_folder)),
        public=[*found["versions.json"]["packages"], platform.release(), *_names_of_gpus(findings)],
    )
    files = {name: _encoded(name, clean.data(value)) for name, value in found.items()}
    taken = {kind: number for kind, number in clean.removed.items() if number > 0}
    files["about.txt"] = _about(taken, missing).encode()
    refuse_secrets(find_secrets(files, {}), accepted=False)
    _write(path, files)
    members = tuple((name, len(files[name]), ABOUT[name]) for name in ABOUT if name in files)
    return SupportArchive(path, members, taken, tuple(missing))


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        write_zip(part, path.stem, files)
        part.chmod(0o600)
        part.rename(path)
    except OSError as error:
        raise DiskError(f"Cannot write {path}.", str(error), "Use another --bundle FILE.") from error
    finally:
        part.unlink(missing_ok=True)


def _encoded(name: str, value: Any) -> bytes:
    if name.endswith(".json"):
        return (json.dumps(value, indent=2) + "\n").encode()
    return "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in value).encode()


def _about(taken: Mapping[str, int], missing: Sequence[str]) -> str:
    lines = ["A support archive of stage3-tui. Made on request; nothing was sent anywhere.", "", "Removed:"]
    lines += [f"  {number:>6}  {kind}" for kind, number in sorted(taken.items())] or ["  nothing"]
    lines += ["", "Missing:", *(f"  {name}" for name in missing)] if missing else []
    return "\n".join(lines) + "\n"


# -- what is read -------------------------------------------------------------------------------------------------------


def _read(run_folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The members as on disk, and those that could not be read."""
    found: dict[str, Any] = {}
    missing = []
    for name, file in {"run.json": layout.RUN_JSON, **REPORTS}.items():
        value = _json_of(run_folder / file)
        if isinstance(value, dict):
            found[name] = value
        else:
            missing.append(f"{file} ({value})")
    for name, file, read in (
        ("events.jsonl", layout.EVENTS_JSONL, _last_events),
        ("run.log", layout.RUN_LOG, _end_of_log),
    ):
        if _is_file(run_folder / file):
            found[name] = read(run_folder / file)
        else:
            missing.append(f"{file} (no file)")
    return found, missing


def _is_file(path: Path) -> bool:
    """Only a regular file: opening a FIFO blocks until there is a writer."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _json_of(path: Path) -> dict[str, Any] | str:
    """The object, or why it could not be read, in a word or two."""
    try:
        return read_json(path, dict[str, Any], max_bytes=LARGEST_JSON)
    except FileNotFoundError:
        return "no file"
    except (OSError, Stage3Error) as error:
        return type(error).__name__


def _last_events(path: Path) -> list[dict[str, Any]]:
    events: deque[tuple[int, dict[str, Any]]] = deque(maxlen=LAST_EVENTS)
    readings: deque[tuple[int, dict[str, Any]]] = deque(maxlen=LAST_READINGS)
    for number, line in read_jsonl(path):
        if isinstance(line, BadLine):
            events.append((number, {"damaged line": number + 1}))
        else:
            (readings if line.get("kind") == "telemetry" else events).append((number, line))
    return [line for _, line in sorted([*events, *readings], key=lambda entry: entry[0])]


def _end_of_log(path: Path) -> list[str]:
    with open_file(path) as file:
        start = max(0, file.seek(0, os.SEEK_END) - LOG_BYTES)
        file.seek(start)
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    return lines[1 if start else 0 :]


def _private_texts_of(run_folder: Path) -> Iterator[str]:
    for file in WITH_PRIVATE_TEXTS:
        if _is_file(run_folder / file):
            for _, line in read_jsonl(run_folder / file):
                yield from () if isinstance(line, BadLine) else private_texts(line, private=file == layout.EDITS_JSONL)
    for file in REPORTS_WITH_PRIVATE_TEXTS:
        yield from private_texts(_json_of(run_folder / file))


# -- this machine -------------------------------------------------------------------------------------------------------


def _versions() -> dict[str, Any]:
    return {
        "stage3-tui": engine.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "packages": {name: _version(name) for name in _packages()},
    }


def _packages() -> list[str]:
    """The direct requirements of this package; none if it runs from source without metadata."""
    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    return sorted({re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines}, key=str.lower)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _names_of_gpus(findings: Sequence[Check | Stage3Error]) -> list[str]:
    """The GPUs as the driver reports them, without the processes that use them."""
    checks = [one for one in findings if isinstance(one, Check)]
    return [one.detail.partition(",")[0] for one in checks if re.fullmatch(r"GPU \d+", one.name)]


def _machine(run_folder: Path, findings: Sequence[Check | Stage3Error]) -> dict[str, Any]:
    existing = next(folder for folder in (run_folder, *run_folder.parents) if folder.exists())
    disk = shutil.disk_usage(existing)
    variables = {
        name: "set" if "TOKEN" in name else value for name, value in os.environ.items() if name.startswith(VARIABLES)
    }
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "processors": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "disk_bytes": {"free": disk.free, "total": disk.total},
        "found": [asdict(one) if isinstance(one, Check) else one.as_dict() for one in findings],
        "variables": dict(sorted(variables.items())),
    }
