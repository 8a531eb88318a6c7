"""`doctor --bundle`: canaries in every place that the archive is made from, and none in any member."""

from __future__ import annotations

import json
import socket
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from engine.core.errors import ConfigError, PreconditionError
from engine.core.events import Check, Message, PairMade
from engine.packaging.support_text import Phrases, SupportText
from engine.pipeline.support_archive import SupportArchive, write_support_archive
from engine.run.folder import Run
from engine.run.journal import Journal
from engine.security.secrets import Secret
from engine.storage.jsonl import dumps
from tests.support.made_up_run import make_run

TOKEN = "hf_" + "Qz7" * 11
OTHER_TOKEN = "sk-live-9f8e7d6c5b4a39281706f5e4"
PROMPT = "How can the run stop if the training is done and the gate is open"  # words of the program, all of them
REPLY = "Ask the model for the token of the batch, and save the file."
ODD_PROMPT = "purplewalrus marmalade lanterns"
USER, HOME, HOST = "quincezanzibar", "kestrelhome", "gpu7-mandolin"
INTERNAL, ADDRESS = "llm.tangerinecorp.internal", "10.77.31.9"
SERVER_SAID = "marzipanfalcon"
CANARIES = (TOKEN, OTHER_TOKEN, PROMPT, REPLY, *ODD_PROMPT.split(), USER, HOME, HOST, INTERNAL, "tangerinecorp", ADDRESS,
            SERVER_SAID, "Qz7Qz7", "stop if the training", "token of the batch")  # fmt: skip

TRACEBACK = f"""2026-11-29 10:00:01,123 ERROR engine.stages.pairs: the stage failed
Traceback (most recent call last):
  File "{Path(__file__).parents[2]}/engine/stages/pairs.py", line 61, in run
    yield from _make(context, prompts)
  File "/home/{HOME}/plugins/{SERVER_SAID}.py", line 7, in complete
    raise ValueError(reply)
ValueError: no reply for {PROMPT!r}: {REPLY} {SERVER_SAID}
2026-11-29 10:00:02,123 WARNING engine.models.server: http://{INTERNAL}:8000/v1 at {ADDRESS} did not answer {USER}@{HOST} in time
2026-11-29 10:00:03,123 INFO engine.hub: Authorization: Bearer {TOKEN} and {OTHER_TOKEN}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in this user's home, with a canary in every file about it."""
    home = tmp_path / HOME
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", USER)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", f"https://{INTERNAL}/hub")
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    Secret(OTHER_TOKEN)
    folder = home / "work of the lab" / "run"
    make_run(folder)
    pair = PairMade("id-1", PROMPT, REPLY, f"{ODD_PROMPT} {REPLY}", f"The draft says {ODD_PROMPT}.")
    with (folder / layout.PAIRS_JSONL).open("a") as file:
        file.write(dumps(pair.as_dict() | {"messages": [{"role": "user", "content": PROMPT}]}) + "\n")
        file.write(dumps({"id": "id-2", "prompt": ODD_PROMPT}) + "\n")
    journal = Journal(folder / layout.EVENTS_JSONL)
    for event in (
        pair,
        Check("folder", "ok", f"{folder} belongs to {USER} on {HOST}"),
        Message("warning", f"The server {INTERNAL} said {SERVER_SAID} of “{PROMPT}” ({TOKEN})."),
    ):
        journal.append(event)
    journal.close()
    (folder / layout.RUN_LOG).write_text(TRACEBACK)
    run = Run(folder)
    run.manifest["config"] |= {
        "base_model_id": str(home / "models" / "secret"), "dataset": "Anthropic/hh-rlhf", "server_url": f"http://{INTERNAL}:1",
        "accept_quality": f"{USER} looked at it", "beta": 0.1, "push_to_hub": f"{USER}/adapter",
    }  # fmt: skip
    run.record_stage("credentials", status="done", result={"account": USER, "summary": f"{USER} may read {ODD_PROMPT}"})
    for name in (layout.PAIRS_PLAN, layout.PILOT_REPORT):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({"rows": 12, "examples": [PROMPT], "why": f"{REPLY} {folder}/{USER}"}))
    return folder


def bundle(folder: Path, path: Path) -> tuple[SupportArchive, dict[str, str]]:
    found = [
        Check("GPU 0", "ok", f"NVIDIA L4, process 7 ({USER}) holds 3 GiB"),
        PreconditionError(f"No room in {folder}.", f"{USER} has 3 GiB left.", "Free some space."),
    ]
    written = write_support_archive(path, folder, found, config={"output_dir": str(folder)})
    with zipfile.ZipFile(path) as packed:
        return written, {name.partition("/")[2]: packed.read(name).decode() for name in packed.namelist()}


def test_no_canary_is_in_any_member(folder: Path, tmp_path: Path):
    written, members = bundle(folder, tmp_path / "support.zip")
    assert set(members) == {name for name, *_ in written.members} and len(members) == 8
    for name, text in members.items():
        for canary in CANARIES:
            assert canary.casefold() not in text.casefold(), f"{canary} in {name}: {text}"
    assert written.taken.keys() >= {
        "tokens",
        "addresses",
        "paths",
        "prompts and replies",
        "names of people and machines",
    }
    assert stat.S_IMODE((tmp_path / "support.zip").stat().st_mode) == 0o600


def test_helpful_details_are_kept(folder: Path, tmp_path: Path):
    _, members = bundle(folder, tmp_path / "support.zip")
    log = members["run.log"]
    assert 'File "engine/stages/pairs.py", line 61, in run' in log and "ValueError: no reply for" in log
    assert "Traceback (most recent call last):" in log
    assert "WARNING engine.models.server: […]" in log and "did not answer" in log
    config = json.loads(members["run.json"])["config"]
    assert config["beta"] == 0.1 and config["dataset"] == "Anthropic/hh-rlhf" and config["base_model_id"] == "[…]"
    events = [json.loads(line) for line in members["events.jsonl"].splitlines()]
    assert events[-1]["kind"] == "message" and "The server […] said" in events[-1]["text"]
    assert any(event["kind"] == "train_step" and event["loss"] > 0 for event in events)
    machine = json.loads(members["machine.json"])
    assert machine["variables"]["HF_TOKEN"] == "set" and "NVIDIA L4" in machine["found"][0]["detail"]
    assert machine["found"][1]["exit_code"] == 3
    assert json.loads(members["versions.json"])["packages"]["torch"]
    assert json.loads(members["plan.json"]) == {"rows": 12, "examples": "[removed]", "why": "[…]. RUN_DIR/[…]"}
    assert "Removed:" in members["about.txt"]


def test_without_a_run_the_bundle_still_describes_the_machine(tmp_path: Path):
    written, members = bundle(tmp_path / "none", tmp_path / "support.zip")
    assert set(members) == {"about.txt", "versions.json", "machine.json"}
    assert "run.json (no file)" in written.missing and "run.log (no file)" in members["about.txt"]


def test_a_damaged_run_is_bundled_as_far_as_it_can_be_read(folder: Path, tmp_path: Path):
    (folder / layout.RUN_JSON).write_text("[" * 100_000)
    with (folder / layout.EVENTS_JSONL).open("ab") as file:
        file.write(b"\xff{not json\n")
    (folder / layout.RUN_LOG).write_bytes(b"\xff\x1b[2J" * 500_000)
    written, members = bundle(folder, tmp_path / "support.zip")
    assert any(name.startswith("run.json (") for name in written.missing)
    assert '"damaged line"' in members["events.jsonl"].splitlines()[-1]
    assert len(members["run.log"]) < 300_000


def test_an_existing_archive_is_not_replaced(folder: Path, tmp_path: Path):
    path = tmp_path / "support.zip"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        bundle(folder, path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("CUDA is not there", "CUDA is not there"),
        ("see https://huggingface.co/acme/secret for more", "see huggingface.co […] for more"),
        ("http://10.0.0.1:8000/v1", "[…]"),
        ("the file /srv/teams/x/prompts.jsonl is missing", "the file […] is missing"),
        ("~/notes.txt and ../other/notes.txt", "[…] and […]"),
        ("RUN: 0.6931 at step 12 of 3e4, 2.13.0", "RUN: 0.6931 at step 12 of 3e4, 2.13.0"),
        ("sha256 0f3a9c2b1d4e5f60", "sha256 0f3a9c2b1d4e5f60"),
        ("somebody at host7.lan", "somebody at […]"),
        ("Prüfungsfragen für 漢字", "[…]"),
    ],
)
def test_text_loses_words_that_the_program_would_not_use(tmp_path: Path, text: str, clean: str):
    assert SupportText(tmp_path / "run", {}, Phrases([text], [])).text(text) == clean


def test_phrases_match_in_any_case_and_short_prompts_only_as_a_whole():
    shown = "It said: THE Cat, sat on the mat again. The cat."
    phrases = Phrases([shown], ["Once the cat sat on the mat again", "the dog", "again the"])
    assert [shown[a:b] for a, b in phrases.spans_in(shown)] == ["THE Cat, sat on the mat again. The"]


def test_the_command_writes_the_bundle_and_lists_its_contents(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from tui.commands import doctor

    monkeypatch.setattr(doctor, "examine", lambda config: iter([Check("git", "ok", "2.39.5")]))
    monkeypatch.chdir(tmp_path)
    arguments: list[Any] = ["--output-dir", str(folder), "--bundle"]
    assert doctor.main(arguments) == 0
    (made,) = tmp_path.glob("stage3-tui-support-*.zip")
    output = capsys.readouterr().out
    assert made.name in output and "run.log" in output and "Removed:" in output and "Nothing was sent." in output
