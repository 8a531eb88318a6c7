"""Downloads by the real libraries in their own process, from a Hub on localhost: every error is recognised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_hub import FIRST_COMMIT, FakeHub, fake_hub
from tests.support.hub_in_process import CANARY

ROOT = Path(__file__).parents[2]

# huggingface_hub sleeps for up to 23 s between its tries, and for as long as the Hub asks. The child does not sleep, but
# records how long it would have been.
CHILD = """
import json, os, sys, time
from engine.process.environment import quiet_libraries
quiet_libraries()
asleep = []
time.sleep = asleep.append
from huggingface_hub import constants, hf_hub_download, snapshot_download
constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = 0.3
from engine.core.config import load_config
from engine.machine.error_mapping import as_stage3_error
from engine.hub import limit_requests

limit_requests()
token = os.environ.pop("CANARY")
def dataset(repo, **split):
    from engine.pairs.generation.prompts import load_prompts
    repo, _, revision = repo.partition("@")
    chosen = {"dataset": repo, "split": "test[:2]", "dataset_revision": revision or "main", **split}
    config = load_config(chosen, environment={})
    return [prompt.text for prompt in load_prompts(config, token)]
def width(repo):
    from transformers import AutoConfig
    return AutoConfig.from_pretrained(repo, token=token).hidden_size
WAYS = {
    "file": lambda repo: open(hf_hub_download(repo, "config.json", token=token)).read(),
    "snapshot": lambda repo: sorted(os.listdir(snapshot_download(repo, token=token))),
    "transformers": width,
    "datasets": dataset,
    "datasets, train": lambda repo: dataset(repo, split="train"),
    "datasets, default": lambda repo: dataset(repo, split="test[:1000]+train[:1500]"),
}
for way, repo in json.loads(sys.argv[1]):
    asleep.clear()
    outcome = {"way": way, "repo": repo}
    try:
        outcome["got"] = WAYS[way](repo)
    except Exception as error:
        known = as_stage3_error(error)
        outcome |= {"bug": repr(error)} if known is None else known.as_dict()
    print(json.dumps({**outcome, "asleep": sum(asleep)}), flush=True)
"""
CONFIG = b'{"model_type": "gemma", "hidden_size": 24}'
ROWS = b"".join(json.dumps({"prompt": f"Question {number}?"}).encode() + b"\n" for number in range(3))
WAYS = ("file", "snapshot", "transformers", "datasets")


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with fake_hub() as server:
        yield server


def put(fake: FakeHub, repo: str, mood: Any) -> str:
    """Add a repository that is both a model and a dataset."""
    fake.repos[repo] = mood
    fake.files[repo] = {"config.json": CONFIG, "test.jsonl": ROWS}
    return repo


def download(fake: FakeHub, home: Path, *wanted: tuple[str, str], **environment: str) -> list[dict[str, Any]]:
    """The outcome for each (library, repository), in one process; for `datasets` also repository@revision."""
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": fake.endpoint,
        "HF_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "CANARY": CANARY,
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(wanted)],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(outcome["way"], outcome["repo"]) for outcome in outcomes] == list(wanted)
    return outcomes


def test_a_missing_split_is_named_and_the_default_takes_the_existing_ones(fake: FakeHub, tmp_path: Path) -> None:
    repo = put(fake, "a/fine", "ok")
    refused, default = download(fake, tmp_path, ("datasets, train", repo), ("datasets, default", repo))
    assert (
        refused["what"] == "--split 'train': the dataset a/fine has no split 'train'."
        and "Its splits: test." in refused["why"]
    )
    assert len(default["got"]) == 3


def test_every_library_downloads_also_through_redirects(fake: FakeHub, tmp_path: Path) -> None:
    moods = {"a/fine": "ok", "a/renamed": "redirect", "a/stored-elsewhere": {"head": "redirect elsewhere"}}
    repos = [put(fake, repo, mood) for repo, mood in moods.items()]
    right = {"file": CONFIG.decode(), "snapshot": ["config.json", "test.jsonl"], "transformers": 24}
    right["datasets"] = ["Question 1?", "Question 0?"]
    for outcome in download(fake, tmp_path, *((way, repo) for repo in repos for way in right)):
        assert outcome.get("got") == right[outcome["way"]], outcome
    assert fake.elsewhere and all(request.authorization == "" for request in fake.elsewhere)
    assert all(request.authorization == f"Bearer {CANARY}" for request in fake.requests if request.method == "GET")


ERRORS = {
    "401": (4, "rejected the token (401)"),
    "gated": (4, "has not accepted its licence"),
    "awaiting": (4, "is still pending"),
    "fine-grained": (4, "fine-grained token"),
    "403": (4, "No access to"),
    "404": (4, "does not exist or is private"),
    "private": (4, "does not exist or is private"),
    "429": (5, "429: too many requests"),
    "503": (5, "503"),
    "portal": (5, "is not from the Hub"),
    "short": (5, "was interrupted"),
}
DATASETS_ERROR = "gated, private or does not exist"
"""datasets hides the Hub's response behind its own exception."""


def test_the_libraries_exceptions_are_mapped_to_the_errors_of_the_stage(fake: FakeHub, tmp_path: Path) -> None:
    repos = {put(fake, f"a/{mood}", mood): mood for mood in ERRORS}
    wanted = [(way, repo) for repo in repos for way in WAYS]
    for outcome in download(fake, tmp_path, *wanted):
        mood = repos[outcome["repo"]]
        code, what = ERRORS[mood]
        matches = (outcome.get("exit_code"), what in outcome.get("what", "")) == (code, True)
        hidden = outcome["way"] == "datasets" and DATASETS_ERROR in outcome.get("what", "")
        assert matches or (hidden and code == 4), outcome
        assert "cache" not in outcome["what"] and outcome["why"] and outcome["what_to_do"]
        # 1, 2, 4, 8 and 8 s between the library's tries, and none of the 3600 s that a 429 asks for.
        assert outcome["asleep"] <= 24, outcome


@pytest.mark.fault("F4")
def test_a_download_that_hangs_runs_into_the_timeout(fake: FakeHub, tmp_path: Path) -> None:
    put(fake, "a/silent", "hang")
    put(fake, "a/stalled", {"file": "hang in the middle"})
    for outcome in download(fake, tmp_path, ("snapshot", "a/silent"), ("file", "a/silent"), ("file", "a/stalled")):
        assert (outcome.get("exit_code"), "does not respond" in outcome.get("what", "")) == (5, True), outcome


@pytest.mark.fault("F4")
def test_after_an_interruption_the_next_download_completes(fake: FakeHub, tmp_path: Path) -> None:
    tries = 6  # of the library, before it gives up
    put(fake, "a/cut", {"file": [*["short"] * tries, "ok"]})
    put(fake, "a/smaller", {"file": ["smaller", "ok"]})
    wanted = [("file", "a/cut"), ("file", "a/cut"), ("file", "a/smaller"), ("file", "a/smaller")]
    cut, again, smaller, once_more = download(fake, tmp_path, *wanted)
    for failed in (cut, smaller):
        assert (failed.get("exit_code"), "interrupted" in failed.get("what", "")) == (5, True), failed
    for complete in (again, once_more):
        assert complete.get("got") == CONFIG.decode(), complete
    left = [path for path in tmp_path.rglob("*.incomplete") if path.is_file()]
    assert left == []


def test_offline_the_requested_commit_is_read(fake: FakeHub, tmp_path: Path) -> None:
    """On its own, datasets would read its newest copy."""
    put(fake, "a/b", "ok")
    now = "2" * 40
    download(fake, tmp_path, ("datasets", f"a/b@{FIRST_COMMIT}"))
    fake.commits["a/b"] = now
    fake.files["a/b"] = {"test.jsonl": ROWS.replace(b"Question", b"Riddle")}
    download(fake, tmp_path, ("datasets", f"a/b@{now}"))
    fake.requests.clear()
    wanted = [("datasets", f"a/b@{commit}") for commit in (FIRST_COMMIT, now)]
    old, new = download(fake, tmp_path, *wanted, HF_HUB_OFFLINE="1")
    assert (sorted(old["got"]), sorted(new["got"])) == (["Question 0?", "Question 1?"], ["Riddle 0?", "Riddle 1?"])
    assert fake.requests == []
