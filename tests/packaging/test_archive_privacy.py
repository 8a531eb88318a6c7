"""No kind of file in an archive may reveal paths, users or machines, and everything else must stay unchanged."""

from __future__ import annotations

import json
import socket
import zipfile
from pathlib import Path

import pytest

from engine.core import layout
from engine.core.errors import DamagedState
from engine.packaging import scrubber
from engine.packaging.archive import build_archive
from engine.packaging.scrubber import Scrubber, map_strings
from engine.run.context import Context
from engine.storage.files import write_json
from tests.support.finished_run import CARD, WEIGHTS, copied, write_pairs

CONFIG = f"{layout.ADAPTER_DIR}/adapter_config.json"
TOKENIZER = f"{layout.ADAPTER_DIR}/tokenizer.json"
TOKENIZER_CONFIG = f"{layout.ADAPTER_DIR}/tokenizer_config.json"
TEMPLATE = f"{layout.ADAPTER_DIR}/chat_template.jinja"


@pytest.fixture
def context(trained: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A run of the user anna.example on the machine gpu-box-17, with a home folder that JSON escapes."""
    monkeypatch.setenv("HOME", "/srv/hömes/anna")
    monkeypatch.setenv("LOGNAME", "anna.example")
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-box-17.lab.example")
    return copied(trained, tmp_path / "run")


def packed(context: Context) -> dict[str, bytes]:
    build_archive(context.run)
    with zipfile.ZipFile(context.run.archive) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


@pytest.mark.fault("H5")
def test_no_file_reveals_this_machine(context: Context, tmp_path: Path):
    home, run = Path.home(), context.run
    private = f"{home}/secret/plan.txt, {run.folder}/logs and anna.example@gpu-box-17.lab.example:{home}"
    ascii_only = json.dumps(private)[1:-1]
    assert "\\u00f6" in ascii_only
    run.record_stage(
        "workspace",
        status="done",
        result={"folder": str(run / "pairs"), "cache": f"{home}/.cache/hub", "by": "anna.example", "on": "gpu-box-17"},
    )
    run.record_stage(
        "dependencies", status="done", result={"environment": {"host": "vm", "python": "/usr/bin/python3"}}
    )
    run.record_stage("credentials", status="done", result={"account": "anna-on-the-hub"})
    write_json(run / layout.METRICS_JSON, {"log": private, f"{home}/key": 1})
    write_json(run / layout.EVALUATION_REPORT, {"samples": [{"stage3": private}]})
    write_json(run / layout.PAIRS_REPORT, {"left_out": [private]})
    (run / layout.PAIRS_JSONL).write_text(
        f'{{"id":"p1","prompt":"{ascii_only}"}}\n{{"id":"p2","prompt":"{private}"}}\n'
        f'{{"id":"p3","prompt":"{json.dumps(str(home))[1:-1]}"}}\n'
    )
    write_pairs(run / layout.TRAIN_JSONL, [{"chosen": [{"role": "assistant", "content": f"See\n{private}"}]}])
    write_pairs(run / layout.EDITS_JSONL, [{"id": "p1", "action": "note", "text": private, "time": 1}])
    write_pairs(run / layout.SCORES_JSONL, [{"id": "p1", "detail": {"said": private}}])
    (run / CARD).write_text(f"# Card\n\nMade by anna.example on gpu-box-17 in {run.folder}, with /opt/models/gemma.\n")
    write_json(run / TOKENIZER_CONFIG, {"name_or_path": "/opt/models/gemma", "chat_template": f"{{# {home} #}}"})
    (run / TEMPLATE).write_text(f"{{# {private} #}}")
    write_json(run / CONFIG, {"base_model_name_or_path": str(home / "base"), "r": 3, "eva_config": "/opt/eva/x"})
    for name, data in packed(context).items():
        text = data.decode("utf-8", errors="replace")
        for word in (
            str(tmp_path),
            str(home),
            json.dumps(str(home))[1:-1],
            "gpu-box-17",
            "anna",
            "/opt/",
            "/usr/bin",
            '"vm"',
        ):
            assert word not in text, (name, word)


@pytest.mark.fault("H5")
def test_the_adapter_names_its_base_by_repository_and_commit(context: Context):
    context.run.manifest["config"] |= {"base_model_id": "google/gemma-2b-it", "base_model_revision": "main"}
    context.run.record_stage("adapter", result={"base_model_commit": "c0ffee"})
    write_json(context.run / CONFIG, {"base_model_name_or_path": "/opt/models/gemma", "revision": None, "r": 3})
    settings = json.loads(packed(context)[CONFIG])
    assert settings == {"base_model_name_or_path": "google/gemma-2b-it", "revision": "c0ffee", "r": 3}


def test_a_local_base_is_named_only_by_its_folder(context: Context):
    write_json(context.run / CONFIG, {"base_model_name_or_path": context.config.base_model_id, "r": 3})
    settings = json.loads(packed(context)[CONFIG])
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("base", None)


def test_texts_of_people_and_models_are_packed_unchanged(context: Context):
    """An answer may contain a common path, a URL, or a person with the user's name."""
    texts = [
        "Use /usr/bin/env, /root/.bashrc or /home/user, she said.",
        "See https://example.org/a/b and </a/b>; 1/2 of google/gemma-2b-it.",
        "Dear anna.example, write to anna.example@example.org about gpu-box-17.",
        "\x85line\u2028separators\r stay",
    ]
    rows = [{"id": f"p{number}", "prompt": text} for number, text in enumerate(texts)]
    write_pairs(context.run / layout.PAIRS_JSONL, rows)
    write_json(context.run / layout.EVALUATION_REPORT, {"samples": texts})
    files = packed(context)
    assert files[layout.PAIRS_JSONL] == (context.run / layout.PAIRS_JSONL).read_bytes()
    assert files[layout.EVALUATION_REPORT] == (context.run / layout.EVALUATION_REPORT).read_bytes()


def test_only_private_lines_are_rewritten_and_a_torn_line_is_kept(context: Context):
    first, torn = b'{"id": "p1",  "prompt": "as it was"}\n', f'{{"id":"p3","prompt":"{context.run.folder}/pai'
    private = json.dumps({"id": "p2", "prompt": f'"{context.run.folder}/x"\n'}) + "\n"
    (context.run / layout.PAIRS_JSONL).write_bytes(first + private.encode() + torn.encode())
    data = packed(context)[layout.PAIRS_JSONL]
    assert data == first + b'{"id":"p2","prompt":"\\"run/x\\"\\n"}\n' + b'{"id":"p3","prompt":"run/pai'


def test_weights_and_vocabulary_are_never_rewritten(context: Context):
    home = str(Path.home())
    tokenizer = json.loads((context.run / TOKENIZER).read_text())
    tokenizer["model"]["vocab"][home] = 9999
    write_json(context.run / TOKENIZER, {**tokenizer, "note": f"made in {home}"})
    files = packed(context)
    assert files[WEIGHTS] == (context.run / WEIGHTS).read_bytes()
    clean = json.loads(files[TOKENIZER])
    assert clean["model"] == {**tokenizer["model"]} and clean["note"] == "made in ~"


@pytest.mark.parametrize("name", [layout.METRICS_JSON, CONFIG, TOKENIZER_CONFIG])
@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_file_is_named(name: str, text: str, context: Context):
    (context.run / name).write_text(f"{text} {context.run.folder}" if text == "{" else f'["{context.run.folder}"]')
    with pytest.raises(DamagedState, match=Path(name).name):
        build_archive(context.run)


def test_common_user_and_machine_names_stay_in_the_text(context: Context, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOGNAME", "ubuntu")
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    (context.run / CARD).write_text("# Trained on ubuntu, at localhost\n")
    assert packed(context)[CARD] == (context.run / CARD).read_bytes()


def test_a_name_is_only_replaced_as_a_word_and_not_in_a_repository_name(
    context: Context, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LOGNAME", "anna")
    clean = Scrubber.of(context.run).scrub_records
    assert clean("anna, (anna) anna: anna@x") == "somebody, (somebody) somebody: somebody@x"
    assert clean("annabel anna-2 anna/base join-anna savanna") == "annabel anna-2 anna/base join-anna savanna"


def test_a_path_that_only_begins_with_a_private_one_is_kept():
    private = Scrubber({"/data/anna": "~"}, {}, ())
    assert private.scrub_text("/data/anna/x '/data/anna' /data/anna.") == "~/x '~' ~."
    assert private.scrub_text("/data/annabel/x, /data/anna-2") == "/data/annabel/x, /data/anna-2"


def test_settings_lose_every_absolute_path_and_keep_everything_else():
    clean = Scrubber({}, {}, ()).scrub_settings
    data = {
        "a": ["1/2", "https://x.org/a/b", "see /etc/ssl/cert.pem.", "google/gemma-2b-it", 7, None],
        "/a/b": "</a/b>",
    }
    assert map_strings(data, clean) == {
        "a": ["1/2", "https://x.org/a/b", "see cert.pem.", "google/gemma-2b-it", 7, None],
        "b": "</a/b>",
    }


def test_a_user_without_a_name_has_none_to_leak(monkeypatch: pytest.MonkeyPatch):
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(scrubber.getpass, "getuser", nobody)
    assert scrubber._user() == ""
