"""SIGKILL at random moments while pairs are made of real prompts: nothing that a reader was told of is lost, or there twice."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from tests.conftest import needs_shared_data
from tests.support.fork_server import ForkServer
from tests.support.waiting import wait_until


def kill_and_go_on(server: ForkServer, folder: Path, prompts: int, kills: int, seed: int) -> list[dict[str, Any]]:
    """Start the run, kill it `kills` times at random moments, let it end; returns the records. Checks every promise."""
    data = needs_shared_data("hh-rlhf-harmless-base-test.jsonl.gz")
    arguments = [
        "--auto", "--demo", "--json", "--output-dir", str(folder), "--dataset", str(data), "--split", "train",
        "--num-examples", str(prompts), "--generation-batch-size", "8", "--max-new-tokens", "16", "--pilot-prompts", "0",
        "--until", "pairs", "--accept-quality", "prompts that the demo cannot answer",
    ]  # fmt: skip
    moments, told = random.Random(seed), server.scratch / "stdout"
    acknowledged: set[str] = set()
    for _ in range(kills):
        server.start(arguments)
        wait_until(lambda: is_at_pairs(told), "pairs")
        ended = server.end(kill_more_after=moments.uniform(0.0, 1.5))
        acknowledged |= {event["id"] for event in events(told) if event.get("kind") in ("pair_made", "pair_failed")}
        assert acknowledged <= {record["id"] for record in whole_records(folder)}, ended
    ended = server.run(arguments)
    assert ended.code == 0, ended.errors
    records = whole_records(folder)
    assert len(records) == len({record["id"] for record in records}) == prompts
    assert acknowledged <= {record["id"] for record in records}
    return records


def is_at_pairs(told: Path) -> bool:
    return any((event.get("kind"), event.get("stage")) == ("progress", "pairs") for event in events(told))


def events(told: Path) -> list[dict[str, Any]]:
    """The last line may be torn by the kill."""
    return [json.loads(line) for line in told.read_bytes().split(b"\n")[:-1]]


def whole_records(folder: Path) -> list[dict[str, Any]]:
    raw = (folder / layout.PAIRS_JSONL).read_bytes()
    return [json.loads(line) for line in raw.split(b"\n")[:-1]]


@pytest.mark.fault("A1")
def test_killed_twice_among_24_prompts_nothing_is_lost(server: ForkServer, tmp_path: Path):
    records = kill_and_go_on(server, tmp_path / "run", prompts=24, kills=2, seed=3)
    assert any(len(record["messages"]) > 1 for record in records)


@pytest.mark.fault("A1")
@pytest.mark.slow
def test_killed_ten_times_among_500_prompts_nothing_is_lost(server: ForkServer, tmp_path: Path):
    kill_and_go_on(server, tmp_path / "run", prompts=500, kills=10, seed=7)
