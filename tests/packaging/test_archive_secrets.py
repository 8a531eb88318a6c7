"""No archive contains a secret, known or lookalike, and a refusal names how to continue."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from engine.core import layout
from engine.core.errors import ExitCode, UnsafeError
from engine.packaging.archive import build_archive, existing_archive
from engine.packaging.secret_scan import find_secrets, known_secrets
from engine.packaging.zip_writer import MANIFEST
from engine.run.context import Context
from engine.security.secrets import Secret
from engine.storage.files import write_json
from tests.support.finished_run import CARD, copied, write_pairs

# Assembled here, so that no scanner takes this file for a leak.
LOOKALIKES = {
    "a Hugging Face token": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
    "a Hugging Face token of an OAuth login": "hf_oauth_" + "eyJhbGciOi.JIUzI1NiJ9-x",
    "a private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n",
    "a private key of PGP": "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----",
    "an AWS access key": "AKIA" + "IOSFODNN7EXAMPLE",
    "an AWS secret key": 'aws_secret_access_key = "' + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" + '"',
    "a GitHub token": "ghp_" + "0123456789abcdefghijklmnopqrstuvwxyz",
    "a GitHub token with fine grain": "github_pat_" + "11ABCDEFG0123456789abc_defghij",
    "a GitLab token": "glpat-" + "abcdefghij0123456789",
    "a Google key": "AIza" + "SyA-0123456789abcdefghijklmnopqrstu",
    "a Slack token": "xoxb-" + "123456789012-abcdefghij",
    "a key of OpenAI's kind": "sk-" + "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKL",
    "a key of OpenAI's projects": "sk-proj-" + "abcd_efgh-ijkl0123456789",
    "a key of Anthropic's kind": "sk-ant-api03-" + "abcdefghij0123456789",
}
HARMLESS = (
    "hf_hub_download and hf_your_token_here",
    "self_hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz"[:12],
    "risk-averse-people-like-sk-learn-contrib-packages",
    "-----BEGIN PUBLIC KEY----- and -----BEGIN CERTIFICATE-----",
    "AKIA is a name, AKIAIOSFODNN7EXAMPLEandmore a long one",
    "ghp_short, github_pattern_of_words, glpat-short",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "bash-" + "abcdefghij0123456789abcdefghij",
)
TOKEN = Secret("not-like-any-pattern-at-all")


@pytest.fixture
def context(trained: Context, tmp_path: Path) -> Context:
    return copied(trained, tmp_path / "run")


def refused(context: Context, **arguments: object) -> UnsafeError:
    with pytest.raises(UnsafeError) as error:
        build_archive(context.run, **arguments)  # type: ignore[arg-type]
    assert error.value.exit_code == ExitCode.UNSAFE == 12
    assert not context.run.archive.exists()
    return error.value


def with_text(context: Context, text: str) -> None:
    """Write two pairs, the second of which contains `text`."""
    rows = [{"id": "p0", "prompt": "Hello"}, {"id": "p1", "prompt": "And?", "base_response": f"Take {text} and go"}]
    write_pairs(context.run / layout.PAIRS_JSONL, rows)


@pytest.mark.fault("H2")
@pytest.mark.parametrize("what", LOOKALIKES)
def test_a_lookalike_is_refused_with_its_file_line_and_pair(what: str, context: Context):
    with_text(context, LOOKALIKES[what])
    error = refused(context)
    assert what.partition(" of ")[0].partition(" with ")[0] in error.what
    assert "pairs/pairs.jsonl, line 2 (pair p1)" in error.what
    assert LOOKALIKES[what][-12:-2] not in str(error)
    assert "reject that pair" in error.what_to_do and "--accept-lookalikes" in error.what_to_do


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_passes(text: str, context: Context):
    with_text(context, text)
    assert build_archive(context.run).accepted == ()


@pytest.mark.parametrize(
    "name",
    [
        layout.TRAIN_JSONL,
        layout.EVALUATION_REPORT,
        layout.METRICS_JSON,
        CARD,
        f"{layout.ADAPTER_DIR}/adapter_config.json",
        f"{layout.ADAPTER_DIR}/chat_template.jinja",
        f"{layout.ADAPTER_DIR}/tokenizer_config.json",
        layout.RUN_JSON,
    ],
)
def test_every_file_is_searched(name: str, context: Context):
    secret = LOOKALIKES["a Hugging Face token"]
    if name == layout.RUN_JSON:
        context.run.manifest["stages"]["toolchain"] = {"result": {"uv": secret}}
        write_json(context.run / name, context.run.manifest)  # `Run.save` would redact it
    elif name.endswith(".json"):
        write_json(context.run / name, {"a": 1, "b": {"c": f"x {secret}"}})
    else:
        (context.run / name).write_text(f'{{"prompt": "x {secret}"}}\n')
    error = refused(context)
    assert name in error.what and "line" in error.what


def test_a_known_secret_is_found_by_its_value_even_in_the_weights(context: Context, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_API_KEY", "another-value-without-a-pattern")
    monkeypatch.setenv("SSH_PRIVATE_KEY", "/home/anna/.ssh/id_ed25519")  # the path of a secret, not a secret
    monkeypatch.setenv("MAX_TOKENS", "512")
    known = known_secrets(TOKEN)
    assert {"the token of this run", "the value of SOME_API_KEY"} <= known.keys()
    assert not {"the value of SSH_PRIVATE_KEY", "the value of MAX_TOKENS"} & known.keys()
    files = {
        "weights/adapter_model.safetensors": b"\0\1" + TOKEN.reveal().encode() + b"\2",
        layout.PAIRS_JSONL: b'{"id":"p0"}\n{"id":"p1","prompt":"another-value-without-a-pattern"}\n',
    }
    assert [str(finding) for finding in find_secrets(files, known)] == [
        "the value of SOME_API_KEY in pairs/pairs.jsonl, line 2 (pair p1)",
        "the token of this run in weights/adapter_model.safetensors",
    ]


def test_a_known_secret_cannot_be_accepted(context: Context):
    with_text(context, TOKEN.reveal())
    error = refused(context, known={"the token of this run": TOKEN}, accept_lookalikes=True)
    assert "the token of this run in pairs/pairs.jsonl, line 2" in error.what
    assert TOKEN.reveal() not in str(error) and "--accept-lookalikes" not in error.what_to_do


def test_a_secret_in_a_file_of_the_program_cannot_be_accepted(context: Context):
    write_json(context.run / layout.METRICS_JSON, {"a": LOOKALIKES["a GitHub token"]})
    error = refused(context, accept_lookalikes=True)
    assert "remove it" in error.what_to_do and "--accept-lookalikes" not in error.what_to_do


def test_lookalikes_that_a_person_has_accepted_are_packed_and_reported(context: Context):
    with_text(context, LOOKALIKES["an AWS access key"])
    archive = build_archive(context.run, accept_lookalikes=True)
    assert [str(finding) for finding in archive.accepted] == [
        "what looks like an AWS access key in pairs/pairs.jsonl, line 2 (pair p1)"
    ]


def test_the_record_of_a_rejected_pair_is_left_out_and_reported(context: Context):
    with_text(context, LOOKALIKES["a private key"])
    write_pairs(context.run / layout.EDITS_JSONL, [{"id": "p0", "action": "reject", "time": 1}])
    refused(context)  # another pair was rejected
    write_pairs(context.run / layout.EDITS_JSONL, [{"id": "p1", "action": "reject", "time": 2}])
    archive = build_archive(context.run)
    assert archive.withheld == ("p1",)
    with zipfile.ZipFile(archive.path) as packed:
        assert packed.read(f"run/{layout.PAIRS_JSONL}") == b'{"id":"p0","prompt":"Hello"}\n'
        assert json.loads(packed.read(f"run/{MANIFEST}"))["withheld_pairs"] == ["p1"]
    again = existing_archive(context.run)
    assert again is not None and again.withheld == ("p1",)


def test_a_few_of_many_findings_are_listed_and_the_others_counted(context: Context):
    rows = [{"id": f"p{number}", "prompt": LOOKALIKES["a Slack token"]} for number in range(9)]
    write_pairs(context.run / layout.PAIRS_JSONL, rows)
    error = refused(context)
    assert error.what.count("a Slack token") == 5 and "and 4 more" in error.what
