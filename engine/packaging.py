"""The archive: the same bytes for the same run, by an allow-list of names, reopened and loaded before it gets its name.

Run as a program (`python -m engine.packaging`), with a request on standard input, it is the fresh process that loads an
archive.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from engine import names
from engine.children import clean_environment
from engine.config import Stage3Config
from engine.errors import DamagedState, PreconditionError, UnsafeError
from engine.files import sha256_of_file, sync_folder, write_atomically
from engine.models.adapters.files import PICKLE_SUFFIXES
from engine.models.loading import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_local, local_path
from engine.run import Run

MANIFEST = "MANIFEST.json"
RUN_FILES = (
    names.RUN_JSON,
    names.PAIRS_JSONL,
    names.EDITS_JSONL,
    names.SCORES_JSONL,
    names.PAIRS_REPORT,
    names.TRAIN_JSONL,
    names.EVAL_JSONL,
    names.EVALUATION_REPORT,
    names.METRICS_JSON,
)
ADAPTER_FILES = (
    ADAPTER_WEIGHTS,
    ADAPTER_CONFIG,
    "README.md",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
REQUIRED = (f"{names.ADAPTER_DIR}/{ADAPTER_WEIGHTS}", f"{names.ADAPTER_DIR}/{ADAPTER_CONFIG}")
FOLDERS = ("pairs", "dpo_dataset", "models", "evaluation")
DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can tell
MODE = stat.S_IFREG | 0o644
UNIX = 3
OF_THE_MOMENT = frozenset({"started", "seconds", "free_bytes", "error"})
LEVEL = 6
LOAD_SECONDS = 1800
# A path from the root, in free text; not a part of an address (https://…) or of a relative path.
_ABSOLUTE = re.compile(r"(?<![\w:/.~<])/(?:[\w.@+~ -]*[\w.@+~-]/)+[\w.@+~-]*")


@dataclass(frozen=True)
class Archive:
    path: Path
    sha256: str
    bytes: int
    files: int
    left_out: tuple[str, ...]
    """Names in the adapter's folder that are not on the list."""


def build_archive(run: Run, check: Callable[[Path], None] | None = None) -> Archive:
    """Pack `run` into `run.archive`, and its hash beside it.

    check   called with the finished file under its temporary name; what it raises keeps the archive from its name

    Raises UnsafeError for a link, a device or a pickle where files are packed, PreconditionError without an adapter,
    DamagedState where the written archive does not read back as it was meant.
    """
    _refuse_pickles(run)
    members = {name: _private_words_removed(run, name, _read(run, name)) for name in packed_names(run)}
    for name in REQUIRED:
        if name not in members:
            raise PreconditionError(f"There is no {run / name}.", "The stage training writes it.", "Train first.")
    members[MANIFEST] = _manifest(members)
    part = run.archive.with_name(f".{run.archive.name}.part")
    try:
        _write(part, run.folder.name, members)
        read_back(part)
        if check is not None:
            check(part)
        digest, size = sha256_of_file(part), part.stat().st_size
        part.replace(run.archive)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(run.archive.parent)
    write_atomically(hash_file(run), f"{digest}  {run.archive.name}\n".encode())
    return Archive(run.archive, digest, size, len(members), tuple(unlisted_names(run)))


def hash_file(run: Run) -> Path:
    return run.archive.with_name(run.archive.name + ".sha256")


def packed_names(run: Run) -> list[str]:
    """The files of the run that the archive takes, sorted: those on the list that are there."""
    wanted = [*RUN_FILES, *(f"{names.ADAPTER_DIR}/{name}" for name in ADAPTER_FILES)]
    return sorted(name for name in wanted if os.path.lexists(run / name))


def unlisted_names(run: Run) -> list[str]:
    """What lies in the adapter's folder and is not packed."""
    folder = run / names.ADAPTER_DIR
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in ADAPTER_FILES)


def read_back(archive: Path) -> dict[str, str]:
    """Hash of each file in an archive. Raises DamagedState where it is not what its own manifest says."""
    fault = ""
    try:
        with zipfile.ZipFile(archive) as packed:
            fault = _fault(packed)
            hashes = {} if fault else _hashes(packed)
    except (zipfile.BadZipFile, OSError, ValueError, KeyError) as error:
        fault = str(error)
    if fault:
        raise DamagedState(
            f"The archive {archive} does not read back as it was written.",
            fault,
            "Nothing got its name; look at the disk's health, then run `stage3-tui --auto --from packaging`.",
        )
    return hashes


def load_in_fresh_process(archive: Path, config: Stage3Config, expected_tensors: str | None = None) -> float:
    """Load the archive's adapter over the base in a process that has nothing of ours in memory; its largest effect.

    Raises DamagedState with what that process said.
    """
    base = str(local_path(config.base_model_id)) if is_local(config.base_model_id) else config.base_model_id
    request = {
        "archive": str(archive),
        "base_model_id": base,
        "base_model_revision": config.base_model_revision,
        "device": config.device,
        "dtype": config.dtype,
    }
    root = str(Path(__file__).parents[1])
    # The base is in the cache by now: offline, the child needs no token, and gets none.
    extra = {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1", **{k: os.environ[k] for k in ("HF_HOME",) if k in os.environ}}
    done = subprocess.run(
        [sys.executable, "-m", "engine.packaging"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LOAD_SECONDS,
        env=clean_environment(extra),
        cwd=archive.parent,
    )
    answer = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr[-600:]}
    if "error" in answer:
        raise DamagedState(
            "The adapter in the archive does not load in a fresh process.",
            str(answer["error"]),
            "Train again, or report it.",
        )
    if expected_tensors is not None and answer["tensors_sha256"] != expected_tensors:
        raise DamagedState(
            "The adapter in the archive is not the one that was trained.",
            f"Its tensors have the SHA-256 {answer['tensors_sha256']}, the training recorded {expected_tensors}.",
            "Something changed models/lora_adapters after the training: run `stage3-tui --auto --from training`.",
        )
    return float(answer["effect"])


def load_archive(request: Mapping[str, str]) -> dict[str, Any]:
    """What the fresh process does: unpack beside the archive, load, switch the adapter on and off."""
    from engine.models.adapters.effect import effect_on_logits
    from engine.models.adapters.weights import read_tensors, refuse_bad_numbers
    from engine.models.loading import load_base, load_policy, load_tokenizer
    from engine.models.tensors import hash_tensors

    archive = Path(request["archive"])
    config = Stage3Config(**{key: value for key, value in request.items() if key != "archive"})  # type: ignore[arg-type]
    scratch = Path(tempfile.mkdtemp(prefix=f".{archive.name}.", dir=archive.parent))
    try:
        read_back(archive)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(scratch)  # read_back has refused every name that would leave the folder
        adapter = next(scratch.glob(f"*/{names.ADAPTER_DIR}"))
        tensors = read_tensors(adapter)
        refuse_bad_numbers(tensors)
        effect = effect_on_logits(load_policy(load_base(config), adapter), load_tokenizer(config))
        return {"effect": effect, "tensors_sha256": hash_tensors(tensors)}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def redacted(value: Any, words: Mapping[str, str], *, paths: bool) -> Any:
    """Plain data without this machine's names: `words` replaced; with `paths`, absolute ones cut to their last part."""
    if isinstance(value, dict):
        return {key: redacted(inner, words, paths=paths) for key, inner in value.items()}
    if isinstance(value, list):
        return [redacted(inner, words, paths=paths) for inner in value]
    if not isinstance(value, str):
        return value
    for word, instead in words.items():
        value = value.replace(word, instead)
    return _ABSOLUTE.sub(lambda match: PurePosixPath(match[0]).name, value) if paths else value


def private_words(run: Run) -> dict[str, str]:
    """What tells where this machine keeps things, and what stands in its place; longer ones first."""
    config = run.manifest.get("config", {})
    words = {str(run.folder): run.folder.name, str(run.folder.parent): ".", str(Path.home()): "~"}
    for key in ("base_model_id", "adapter_path", "dataset", "repo_root", "constitution"):
        if config.get(key) and is_local(str(config[key])):
            words |= {
                str(local_path(str(config[key]))): Path(str(config[key])).name,
                str(config[key]): Path(config[key]).name,
            }
    return {
        word: words[word] for word in sorted(words, key=len, reverse=True) if word.startswith("/") and len(word) > 2
    }


def _private_words_removed(run: Run, name: str, data: bytes) -> bytes:
    """JSON without this machine's paths. Pairs and weights are packed as they are."""
    if not name.endswith(".json"):
        return data
    words = private_words(run)
    if name != names.RUN_JSON:
        # Its strings can be what people and models wrote: only what is surely this machine's is replaced.
        if not any(word.encode() in data for word in words):
            return data
        return _json_bytes(redacted(json.loads(data), words, paths=False))
    manifest = json.loads(data)
    manifest["stages"] = {
        stage: _without_the_moment(facts) for stage, facts in manifest.get("stages", {}).items() if stage != "packaging"
    }
    manifest.pop("error", None)
    identity = {word: "somewhere" for word in (socket.gethostname(), _user()) if len(word) > 3 and word != "root"}
    clean = redacted(manifest, words, paths=True)
    for word, instead in identity.items():
        clean = _word_replaced(clean, re.compile(rf"(?<!\w){re.escape(word)}(?!\w)"), instead)
    return _json_bytes(clean)


def _without_the_moment(facts: dict[str, Any]) -> dict[str, Any]:
    """A stage's record without times, and without what the machine had free: two archives of one run are the same."""
    kept = {key: value for key, value in facts.items() if key not in OF_THE_MOMENT}
    if facts.get("fingerprint") is None:
        kept.pop("summary", None)  # such a stage looks anew each time, and tells what it sees
    result = facts.get("result")
    if isinstance(result, dict):
        kept["result"] = {key: value for key, value in result.items() if key not in OF_THE_MOMENT}
    return kept


def _word_replaced(value: Any, pattern: re.Pattern[str], instead: str) -> Any:
    if isinstance(value, dict):
        return {key: _word_replaced(inner, pattern, instead) for key, inner in value.items()}
    if isinstance(value, list):
        return [_word_replaced(inner, pattern, instead) for inner in value]
    return pattern.sub(instead, value) if isinstance(value, str) else value


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""  # a user without a name has none to leak


def _refuse_pickles(run: Run) -> None:
    for folder in FOLDERS:
        for path in sorted((run / folder).rglob("*")):
            if path.suffix.lower() in PICKLE_SUFFIXES:
                raise UnsafeError(
                    f"{path} is a pickle, in a folder that is packed.",
                    "Opening it can run any program; stage3-tui writes none there.",
                    "Find out where it comes from, remove it, and start again.",
                )


def _read(run: Run, name: str) -> bytes:
    """The bytes of one regular file of the run. Raises UnsafeError for anything else, links on the way included."""
    path = run / name
    for parent in [path, *path.parents[: len(PurePosixPath(name).parts) - 1]]:
        if parent.is_symlink():
            raise _unsafe(parent, "a symbolic link: it could bring any file of this machine into the archive")
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # O_NONBLOCK: a FIFO must not wait
    with os.fdopen(file, "rb") as opened:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode):
            raise _unsafe(path, "no regular file")
        if facts.st_nlink > 1:
            raise _unsafe(path, "a hard link: another name of a file that lies somewhere else")
        return opened.read()


def _unsafe(path: Path, what: str) -> UnsafeError:
    return UnsafeError(
        f"{path} is {what}.", "Only regular files of the run are packed.", "Put a copy of the file there."
    )


def _manifest(members: Mapping[str, bytes]) -> bytes:
    files = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(members.items())
    }
    return _json_bytes({"schema": 1, "files": files})


def _json_bytes(data: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode(
        "utf-8", errors="backslashreplace"
    )


def _write(part: Path, top: str, members: Mapping[str, bytes]) -> None:
    with part.open("wb") as file:
        with zipfile.ZipFile(file, "w") as packed:
            for name in sorted(members):
                entry = zipfile.ZipInfo(f"{top}/{name}", DATE)
                entry.create_system, entry.external_attr = UNIX, MODE << 16
                entry.compress_type = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
                packed.writestr(entry, members[name], compresslevel=LEVEL)
        file.flush()
        os.fsync(file.fileno())


def _fault(packed: zipfile.ZipFile) -> str:
    """Why an archive is not one of ours; empty where it is."""
    bad = packed.testzip()
    if bad is not None:
        return f"{bad} does not match its checksum"
    found = [entry.filename for entry in packed.infolist()]
    tops = {name.partition("/")[0] for name in found}
    if len(tops) != 1 or len(set(found)) != len(found):
        return "its names do not all begin with one folder, or one comes twice"
    for name in found:
        parts = name.split("/")
        if not all(parts) or ".." in parts or "\\" in name or name.startswith("/"):
            return f"the name {name!r} leaves the folder"
    if any(not stat.S_ISREG(entry.external_attr >> 16) for entry in packed.infolist()):
        return "it holds something else than regular files"
    top = tops.pop()
    files = json.loads(packed.read(f"{top}/{MANIFEST}"))["files"]
    hashes = _hashes(packed)
    hashes.pop(MANIFEST)
    if {name: facts["sha256"] for name, facts in files.items()} != hashes:
        return "its files are not those of its manifest"
    return ""


def _hashes(packed: zipfile.ZipFile) -> dict[str, str]:
    """SHA-256 of each file, by its name without the top folder."""
    return {name.partition("/")[2]: hashlib.sha256(packed.read(name)).hexdigest() for name in packed.namelist()}


def _main() -> int:
    from engine.environment import quiet_libraries
    from engine.errors import Stage3Error

    quiet_libraries()
    try:
        print(json.dumps(load_archive(json.loads(sys.stdin.read()))))
    except Stage3Error as error:
        print(json.dumps({"error": str(error)}))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
