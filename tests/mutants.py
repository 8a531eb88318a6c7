"""Remove one safeguard at a time from a copy of the code, and run the tests that protect it: some must fail each time.

    python -m tests.mutants [NAME…]        (make mutants)

Prints a table of the removed safeguards and the tests that failed. Exits with 1 if no test notices a removal, or if
tests fail before anything is removed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("engine", "tui", "themes", "tests", "pyproject.toml")
MAX_SHOWN = 3
TIMEOUT_SECONDS = 600.0
"""Without a limit, some code never ends: a test that takes this long counts as failed."""


@dataclass(frozen=True)
class Mutant:
    """A safeguard, and the code without it."""

    name: str
    file: str
    before: str
    """The code of the safeguard, which must occur in the file exactly once."""
    after: str
    tests: tuple[str, ...]
    """Files or single tests that protect the safeguard."""

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        path.write_text(self.mutated(path.read_text(encoding="utf-8")), encoding="utf-8")

    def mutated(self, code: str) -> str:
        """The code without the safeguard. Raises LookupError if the code has changed and this table has not."""
        if code.count(self.before) != 1:
            raise LookupError(
                f"{self.name}: {self.file} contains {self.before!r} {code.count(self.before)} times, not once"
            )
        return code.replace(self.before, self.after)


ORDER = "tests/faults/test_order_of_writes.py"
RECORD, SMALL_FILE, CHECKPOINT, FOLDER, ARCHIVE = (
    f"{ORDER}::test_a_record_is_synced_when_its_append_returns",
    f"{ORDER}::test_a_small_file_is_synced_before_its_rename_and_its_folder_afterwards",
    f"{ORDER}::test_every_file_of_a_checkpoint_is_synced_before_its_rename",
    f"{ORDER}::test_everything_in_a_folder_is_synced_before_its_rename",
    f"{ORDER}::test_the_archive_is_synced_before_its_rename",
)
FILES, LIMITS = "tests/faults/test_files.py", "tests/faults/test_response_limits.py"
UNTRUSTED = "tests/faults/test_untrusted_files.py"
ARCHIVES = "tests/packaging/test_archive.py"
TRAINING = "tests/dpo/test_training.py"
CONVERSATION = "tests/process/test_interactive_child.py"
SYNC = """            failpoint("sync")
            os.fsync(file.fileno())
"""
MUTANTS = (
    Mutant(
        "sync of a record",
        "engine/storage/jsonl.py",
        """                    failpoint("sync")
                    os.fsync(self._file)
""",
        "                    pass\n",
        (RECORD,),
    ),
    Mutant(
        "sync of a small file",
        "engine/storage/files.py",
        f"            file.flush()\n{SYNC}",
        "            file.flush()\n",
        (SMALL_FILE,),
    ),
    Mutant(
        "sync of a folder's files",
        "engine/storage/files.py",
        f"        with open_file(path) as file:\n{SYNC}    sync_folder(part)",
        "        continue\n    sync_folder(part)",
        (FOLDER,),
    ),
    Mutant("sync of a checkpoint", "engine/dpo/training/checkpoints.py", SYNC, "            pass\n", (CHECKPOINT,)),
    Mutant(
        "sync of the archive",
        "engine/packaging/zip_writer.py",
        """        failpoint("sync")
        os.fsync(file.fileno())
""",
        "",
        (ARCHIVE,),
    ),
    Mutant(
        "hashes of a checkpoint's manifest",
        "engine/dpo/training/checkpoints.py",
        "or sha256_of_file(path) != facts",
        "or not facts",
        (f"{TRAINING}::test_every_damage_to_a_checkpoint_is_seen",),
    ),
    Mutant(
        "hash of the archive",
        "engine/packaging/archive.py",
        "if digest not in expected or len(expected) > 1:",
        "if False:",
        ("tests/push/test_push.py::test_an_archive_that_is_not_the_recorded_one_is_not_pushed",),
    ),
    Mutant(
        "sanitiser",
        "engine/security/sanitize.py",
        '_UNSAFE.sub(_escaped, text.replace("\\r\\n", "\\n").replace("\\r", "\\n"))',
        "text",
        ("tests/security/test_sanitize.py",),
    ),
    Mutant(
        "sanitiser of one line",
        "engine/security/sanitize.py",
        '_UNSAFE.sub(_escaped, re.sub(r"\\s+", " ", text).strip())',
        "text",
        ("tests/security/test_sanitize.py",),
    ),
    Mutant(
        "redactor of known secrets",
        "engine/security/redaction.py",
        "            text = text.replace(value, MASK)",
        "            pass",
        ("tests/security/test_redaction.py",),
    ),
    Mutant(
        "redactor of anything shaped like a token",
        "engine/security/redaction.py",
        '_LOOKS_LIKE_A_TOKEN.sub(MASK, text) if "hf_" in text else text',
        "text",
        ("tests/security/test_redaction.py",),
    ),
    Mutant(
        "lock",
        "engine/run/lock.py",
        """            self._lock(file)
""",
        "",
        ("tests/run/test_folder.py::test_a_second_process_is_refused_with_the_owner_of_the_run",),
    ),
    Mutant(
        "owner record in addition to the kernel's lock",
        "engine/run/lock.py",
        "if owner is not None and not owner.hands_over_to_this_process:",
        "if False:",
        ("tests/faults/test_owner.py::test_the_owner_record_keeps_a_second_process_out_even_if_flock_does_nothing",),
    ),
    Mutant(
        "signals to a whole job are blocked in processes that train",
        "engine/process/interactive_child.py",
        "        with job_signals_blocked():",
        "        if True:",
        (f"{CONVERSATION}::test_a_signal_to_all_processes_of_a_job_does_not_end_the_child",),
    ),
    Mutant(
        "their workers end only by a signal from their launcher",
        "engine/process/job_signals.py",
        ".si_pid != os.getppid():",
        ".si_pid == 0:",
        (f"{CONVERSATION}::test_a_worker_of_the_child_ends_only_by_a_signal_from_its_parent",),
    ),
    Mutant(
        "check for a finite loss and gradient",
        "engine/dpo/training/trl_trainer.py",
        "        if not math.isfinite(logs[name]):",
        "        if False:",
        (
            f"{TRAINING}::test_a_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint",
            f"{TRAINING}::test_a_nan_gradient_under_a_finite_loss_stops_the_run",
        ),
    ),
    Mutant(
        "no link followed into the archive",
        "engine/packaging/contents.py",
        "flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC",
        "flags = os.O_RDONLY | os.O_CLOEXEC",
        (f"{ARCHIVES}::test_a_file_replaced_by_a_link_after_the_check_is_not_read",),
    ),
    Mutant(
        "no link followed by what writes the archive",
        "engine/packaging/zip_writer.py",
        """    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
""",
        "    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)\n",
        (f"{ARCHIVES}::test_a_link_at_the_temporary_name_is_not_followed",),
    ),
    Mutant(
        "no link followed by a reader of run files",
        "engine/core/reading.py",
        "(0 if follow_links else os.O_NOFOLLOW)",
        "0",
        (f"{FILES}::test_status_refuses_a_pipe_or_a_link_in_place_of_a_file",),
    ),
    Mutant(
        "no link followed by an appender",
        "engine/storage/jsonl.py",
        "os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_CLOEXEC | os.O_NONBLOCK",
        (f"{FILES}::test_an_appender_refuses_a_link_in_place_of_its_file",),
    ),
    Mutant(
        "no link followed by what writes a small file",
        "engine/storage/files.py",
        "os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW",
        "os.O_TRUNC | os.O_CLOEXEC",
        (f"{FILES}::test_writing_a_file_follows_no_link_at_its_temporary_name",),
    ),
    Mutant(
        "limit on the bytes of a file",
        "engine/core/reading.py",
        "if len(data) > max_bytes:",
        "if False:",
        (f"{FILES}::test_an_oversized_document_is_not_read_to_its_end",),
    ),
    Mutant(
        "limit on the bytes of a response, ten times as high",
        "engine/core/response_limits.py",
        "MAX_RESPONSE_BYTES = 64 << 20",
        "MAX_RESPONSE_BYTES = 640 << 20",
        (f"{LIMITS}::test_an_endless_or_undecodable_response_of_a_server_is_a_network_error[endless]",),
    ),
    Mutant(
        "limit on what an archive expands to",
        "engine/packaging/verify.py",
        "if sum(entry.file_size for entry in entries) > max(ALWAYS_ALLOWED_BYTES, MAX_DECOMPRESSION_RATIO * size):",
        "if False:",
        (f"{LIMITS}::test_a_zip_bomb_is_not_unpacked",),
    ),
    Mutant(
        "limit on headers that drip",
        "engine/hub/client.py",
        "    limit_read_rate(client)\n",
        "",
        (f"{LIMITS}::test_dripping_headers_also_end_requests_of_the_hub_library_itself",),
    ),
    Mutant(
        "crash check of an untrusted file in a child process",
        "engine/process/crash_check.py",
        "if result.timed_out or result.killed_by:",
        "if False:",
        (
            f"{UNTRUSTED}::test_a_file_that_crashes_its_library_is_refused_and_the_signal_is_named",
            f"{UNTRUSTED}::test_a_tokenizer_that_aborts_the_process_is_refused",
        ),
    ),
    Mutant(
        "crash check of a table",
        "engine/pairs/formats/containers.py",
        "    check_table(source, name)\n",
        "",
        (f"{UNTRUSTED}::test_a_table_is_checked_in_a_child_before_it_is_read",),
    ),
    Mutant(
        "limit on the parts of a model",
        "engine/models/oversized.py",
        "value > MAX_PARTS",
        "value > 10**12",
        (f"{UNTRUSTED}::test_a_model_with_a_billion_layers_is_not_built",),
    ),
    Mutant(
        "report of damaged lines before pairs are made",
        "engine/stages/pairs.py",
        "    require_whole_lines(context.run / layout.PAIRS_JSONL)\n",
        "",
        ("tests/stages/test_pairs.py::test_a_damaged_line_is_reported_before_anything_is_made",),
    ),
)


def main(names: Sequence[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = copy_code(Path(folder) / "code")
        tests = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
        failed, seconds = run(copy, tests)
        print(f"Before any removal, {len(failed)} tests fail ({len(tests)} selected, {seconds:.0f} s).", *failed)
        print("\n| removed safeguard | failed tests | |\n|---|---|--:|", flush=True)
        survivors = sum(not caught(mutant, copy) for mutant in chosen)
    print(f"{len(chosen) - survivors} of {len(chosen)} removals are noticed.")
    return int(bool(survivors or failed))


def caught(mutant: Mutant, copy: Path) -> bool:
    """Whether a test fails without the safeguard. Prints a row of the table."""
    path = copy / mutant.file
    code = path.read_text(encoding="utf-8")
    mutant.apply(copy)
    try:
        failed, seconds = run(copy, mutant.tests)
    finally:
        path.write_text(code, encoding="utf-8")
    more = f" and {len(failed) - MAX_SHOWN} more" if len(failed) > MAX_SHOWN else ""
    names = ", ".join(name.rpartition("::")[2] for name in failed[:MAX_SHOWN]) + more
    print(f"| {mutant.name} | {names or 'NOTHING FAILED'} | {seconds:.0f} s |", flush=True)
    return bool(failed)


def copy_code(folder: Path) -> Path:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "snapshots"))
        else:
            shutil.copy(source, folder / name)
    return folder


def run(folder: Path, tests: Sequence[str]) -> tuple[list[str], float]:
    """The names of the failed tests, and the seconds taken. Raises RuntimeError if pytest itself fails."""
    started = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        "-rfE",
        "--maxfail=10",
        *tests,
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return ["it hangs"], TIMEOUT_SECONDS
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest exited with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return list(failed_in(done.stdout)), time.monotonic() - started


def failed_in(output: str) -> Iterator[str]:
    for line in output.splitlines():
        if found := re.match(r"(?:FAILED|ERROR) (.+?)(?: - |$)", line):
            yield found[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
