"""SIGKILL at random moments while pairs of real prompts are generated: nothing acknowledged is lost or duplicated.

The default suite kills full runs of the demo (tests/faults/test_disturbed_runs.py).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.core import layout
from tests.conftest import needs_shared_data

ROOT = Path(__file__).parents[2]


def kill_and_resume(folder: Path, prompts: int, kills: int, seed: int) -> list[dict]:
    """Start the run, kill it `kills` times at random moments, and let it finish. Returns its records, which it checks
    after every kill.
    """
    data = needs_shared_data("hh-rlhf-harmless-base-test.jsonl.gz")
    command = [
        sys.executable, "-m", "tui.cli", "--auto", "--demo", "--json", "--output-dir", str(folder),
        "--dataset", str(data), "--split", "train", "--num-examples", str(prompts), "--generation-batch-size", "8",
        "--max-new-tokens", "16", "--pilot-prompts", "0", "--until", "pairs",
        "--accept-quality", "prompts that the demo cannot answer",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rng = random.Random(seed)
    acknowledged: set[str] = set()
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder.parent)
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["kind"] == "progress" and event["stage"] == "pairs":
                break
        time.sleep(rng.uniform(0.0, 1.5))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")
        process.wait()
        acknowledged |= {row["id"] for row in map(_parsed, rest) if row.get("kind") in ("pair_made", "pair_failed")}
        assert acknowledged <= {record["id"] for record in _complete_records(folder)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, cwd=folder.parent)
    records = _complete_records(folder)
    assert len(records) == len({record["id"] for record in records}) == prompts
    assert acknowledged <= {record["id"] for record in records}
    return records


def _parsed(line: str) -> dict:
    try:
        return json.loads(line)
    except ValueError:  # the last line, truncated by the kill
        return {}


def _complete_records(folder: Path) -> list[dict]:
    raw = (folder / layout.PAIRS_JSONL).read_bytes()
    return [json.loads(line) for line in raw[: raw.rfind(b"\n") + 1].split(b"\n") if line]


@pytest.mark.fault("A1")
@pytest.mark.slow
def test_nothing_is_lost_if_a_run_of_500_prompts_is_killed_ten_times(tmp_path: Path):
    records = kill_and_resume(tmp_path / "run", prompts=500, kills=10, seed=7)
    assert any(len(record["messages"]) > 1 for record in records)
