"""A token appears in nothing that this process writes: log, events, run.json, errors, tracebacks."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import resource
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import hub
from engine.core.errors import AccessError, ExitCode
from engine.core.events import Check, EvalDone, Event, GpuReading, Message, Telemetry, TrainStep
from engine.core.layout import EVENTS_JSONL, RUN_JSON
from engine.pipeline.session import Session
from engine.process.environment import log_to_file
from engine.run.context import Context
from engine.run.folder import Run
from engine.security.redaction import MASK, redact, redacted, register_secret
from engine.security.secrets import Secret
from tests.hub.test_moods import BASE, DATA, assert_no_token
from tests.support.fake_hub import fake_hub
from tests.support.hub_in_process import CANARY, use

ROOT = Path(__file__).parents[2]
UNLIKE_A_TOKEN = "correct-horse-battery"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """Write this process's log to a file, as a run does, and undo that afterwards."""
    root = logging.getLogger()
    handlers, level, factory = list(root.handlers), root.level, logging.getLogRecordFactory()
    hooks = sys.excepthook, threading.excepthook
    path = tmp_path / "run.log"
    handler = log_to_file(path)
    yield path
    handler.close()
    root.handlers, root.level = handlers, level
    logging.setLogRecordFactory(factory)
    logging.setLoggerClass(logging.Logger)
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook = hooks


# -- the secret itself -------------------------------------------------------------------------------------------------


def test_a_secret_is_revealed_in_only_one_way() -> None:
    secret = Secret(CANARY)
    for shown in (str(secret), repr(secret), f"{secret}", f"{secret!r:>40}", str([secret]), str({1: secret})):
        assert "Canary" not in shown
    assert secret.reveal() == CANARY and secret and not Secret("")
    assert not hasattr(secret, "__dict__")


@pytest.mark.parametrize("act", [pickle.dumps, json.dumps, copy.copy, copy.deepcopy])
def test_a_secret_cannot_be_pickled_copied_or_written_as_json(act: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError) as refused:
        act({"token": Secret(CANARY)} if act is json.dumps else Secret(CANARY))
    assert "Canary" not in str(refused.value)


# -- text --------------------------------------------------------------------------------------------------------------


def test_text_that_looks_like_a_token_is_masked_even_if_it_was_not_registered() -> None:
    for token in (
        "hf_" + "aB3" * 12,
        "hf_oauth_eyJhbGci.OiJFZERTQSJ9.x-y_z0123456789",
        "hf_jwt9ABCDEFGHIJKLMNOPQRSTUV",
    ):
        assert redact(f"Bearer {token}, twice: {token}") == f"Bearer {MASK}, twice: {MASK}"


def test_names_that_begin_like_a_token_are_kept() -> None:
    text = "hf_hub_download_to_cache_dir, hf_raise_for_status, hf_short1, _hf_hub_download_to_local_dir"
    assert redact(text) == text


def test_a_registered_value_is_masked_even_inside_words() -> None:
    Secret(UNLIKE_A_TOKEN)
    assert redact(f"https://user:{UNLIKE_A_TOKEN}@host/x{UNLIKE_A_TOKEN}y") == f"https://user:{MASK}@host/x{MASK}y"


def test_longer_values_are_masked_first_and_short_ones_not_at_all() -> None:
    for value in ("battery-horse", "battery-horse-staple", "is"):
        register_secret(value)
    assert redact("this is battery-horse-staple") == f"this is {MASK}"


@pytest.mark.parametrize(
    ("event", "clean"),
    [
        (Message("info", f"token {CANARY}"), Message("info", f"token {MASK}")),
        (Check(CANARY, "ok", CANARY, stage="credentials"), Check(MASK, "ok", MASK, stage="credentials")),
        (
            EvalDone("better", (CANARY, "x"), {"a": 1.0}, ({"prompt": CANARY},)),
            EvalDone("better", (MASK, "x"), {"a": 1.0}, ({"prompt": MASK},)),
        ),
        (
            Telemetry((GpuReading(0, CANARY, 1),), 2, 3, 4),
            Telemetry((GpuReading(0, MASK, 1),), 2, 3, 4),
        ),
    ],
)
def test_every_text_of_an_event_is_redacted_however_deep(event: Event, clean: Event) -> None:
    assert redacted(event) == clean


def test_an_event_without_a_token_is_the_same_object() -> None:
    step = TrainStep(1, 2, 0.5, 0.1, -0.1, 0.2, 1.0, 1e-5, 0.3, 9.0)
    assert redacted(step) is step
    assert redacted(replace(step, loss=float("inf"))).loss == float("inf")


def test_an_error_never_contains_a_token() -> None:
    error = AccessError(f"what {CANARY}", f"why {CANARY}", f"do {CANARY}")
    assert CANARY not in f"{error} {error!r} {error.as_dict()} {error.args}"
    assert error.what == f"what {MASK}"


# -- the log -----------------------------------------------------------------------------------------------------------


def test_messages_arguments_and_tracebacks_are_logged_without_tokens(log: Path) -> None:
    logger = logging.getLogger("some.library")
    logger.warning("sent %s", CANARY)
    logger.error("%(token)s", {"token": CANARY})
    try:
        raise ValueError(f"no right for Bearer {CANARY}")
    except ValueError:
        logger.exception("it broke")
    warnings.warn(f"{CANARY} is deprecated", UserWarning, stacklevel=1)
    text = log.read_text()
    assert CANARY not in text and text.count(MASK) >= 4
    assert "sent ***" in text and "ValueError: no right for Bearer ***" in text and "is deprecated" in text


def test_a_librarys_own_handler_shows_no_token(log: Path) -> None:
    """huggingface_hub and transformers log to stderr through their own handlers."""
    formatted: list[str] = []

    class Own(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            formatted.append(self.format(record))

    logger, own = logging.getLogger("own"), Own()
    logger.addHandler(own)
    logger.warning("sent %s", CANARY)
    logger.removeHandler(own)
    assert formatted == [f"sent {MASK}"]


UNCAUGHT = """
import sys, threading
from pathlib import Path
from engine.process.environment import log_to_file
from engine.security.secrets import Secret
log_to_file(Path(sys.argv[1]))
token = Secret(sys.stdin.readline().strip())
def breaks():
    raise RuntimeError("in a thread: " + token.reveal())
thread = threading.Thread(target=breaks, name="engine")
thread.start()
thread.join()
raise RuntimeError("in the main thread: " + token.reveal())
"""


def test_an_uncaught_exception_shows_no_token(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNCAUGHT, str(tmp_path / "run.log")],
        input=f"{UNLIKE_A_TOKEN}\n", capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and UNLIKE_A_TOKEN not in done.stderr
    assert "RuntimeError: in a thread: ***" in done.stderr and "RuntimeError: in the main thread: ***" in done.stderr
    assert 'File "<string>"' in done.stderr, "the traceback itself is there"


# -- a whole run -------------------------------------------------------------------------------------------------------


def test_a_stage_that_crashes_while_using_the_token_leaks_it_nowhere(
    log: Path, tmp_path: Path, config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    context = Context(config(output_dir=run.folder, repo_root=tmp_path), run, token=Secret(CANARY))
    monkeypatch.chdir(tmp_path)

    def breaks(repo_id: str, repo_type: str, token: Secret | None) -> None:
        assert token is not None
        logging.getLogger("engine.hub").warning("asking with %s", token.reveal())
        raise RuntimeError(f"unexpected: Authorization: Bearer {token.reveal()}")

    monkeypatch.setattr(hub, "check_access", breaks)
    entries: list[Any] = []
    with fake_hub() as fake:
        use(fake, monkeypatch, tmp_path / "home")
        fake.repos = {BASE: "ok", DATA: "ok"}
        fake.auth = {
            "accessToken": {"role": "read", "displayName": CANARY}
        }  # a Hub that repeats it in a valid response
        session = Session(context, entries.append)
        try:
            assert session.run(until="credentials") is ExitCode.BUG
        finally:
            session.close()
    assert CANARY not in str(entries)
    manifest = json.loads((run / RUN_JSON).read_text())
    assert "store_token" not in manifest["config"] and "device_login" in manifest["config"]
    failure = manifest["error"]
    assert failure["what"] == "Stage credentials crashed: RuntimeError: unexpected: Authorization: Bearer ***"
    events = (run / EVENTS_JSONL).read_text()
    assert "Bearer ***" in events and 'token \\"***\\" with role read' in events
    assert log.read_text().count(MASK) >= 2 and "Traceback" in log.read_text()
    assert_no_token(tmp_path)


def test_a_fact_that_contains_a_token_is_masked_in_the_manifest(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.record_stage("credentials", status="done", result={"seen": [CANARY, {"deep": f"x{CANARY}"}], "count": 3})
    assert_no_token(tmp_path)
    assert Run(tmp_path).result("credentials") == {"seen": [MASK, {"deep": f"x{MASK}"}], "count": 3}


CORE = """
import resource, subprocess, sys
_, most = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (most, most))
from engine.core.config import load_config
from engine.process.environment import prepare_process
prepare_process(load_config({}, environment={}))
subprocess.run([sys.executable, "-c", "import resource; print(resource.getrlimit(resource.RLIMIT_CORE)[0])"], check=True)
"""


def test_core_dumps_are_disabled_for_this_process_and_its_children() -> None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("core dumps are disabled on this machine")
    done = subprocess.run([sys.executable, "-c", CORE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


@pytest.mark.fault("G1")
def test_the_log_cannot_control_a_terminal_and_no_text_in_it_looks_like_a_record(log: Path):
    hostile = "\x1b]52;c;QUFB\x07\n2026-01-01 00:00:00,000 INFO y: all is well\u202e"
    logging.getLogger("x").warning("It hostile %s", hostile)
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logging.getLogger("x").exception("It broke")
    text = log.read_text()
    assert not any(raw in text for raw in ("\x1b", "\x07", "\u202e"))
    assert "It hostile ␛]52;c;QUFB␇" in text and "ValueError: ␛[2J" in text
    assert sum(line.startswith("20") for line in text.splitlines()) == 2
