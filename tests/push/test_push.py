"""Pushing to the Hub, with the real huggingface_hub client against a Hub on localhost."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.core import layout
from engine.core.errors import (
    AccessError,
    ConfigError,
    DamagedState,
    ExitCode,
    NetworkError,
    Stage3Error,
    Stopped,
    UnsafeError,
)
from engine.core.events import Check
from engine.models.adapters.effect import effect_on_logits
from engine.packaging.archive import build_archive
from engine.packaging.zip_writer import MANIFEST
from engine.pipeline.loop import run_pipeline
from engine.push import request_limits
from engine.push.permissions import missing_permission
from engine.push.push import PushResult, push
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.security.secrets import Secret
from engine.stages import packaging as stage
from engine.storage.files import sha256_of_file
from tests.conftest import run_stage
from tests.support import fake_hub_push as fake_hub_push_module
from tests.support.fake_hub_push import FakeHubPush, Repo, fake_hub_push
from tests.support.finished_run import CARD, WEIGHTS, copied, finished_run, write_pairs
from tests.support.hub_in_process import use

ROOT = Path(__file__).parents[2]
CANARY = "hf_" + "CanaryCanaryCanaryCanaryCanary0001"
TOKEN = Secret(CANARY)
REPO = "someone/stage3"
IN_THE_REPO = [
    MANIFEST,
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    layout.EVALUATION_REPORT,
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHubPush]:
    monkeypatch.setattr(request_limits, "TRIES", 1)
    monkeypatch.setattr(request_limits, "TIMEOUT_SECONDS", 0.5)
    with fake_hub_push() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server


@pytest.fixture(scope="module")
def finished(stage2: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Context:
    context = finished_run(tmp_path_factory.mktemp("finished") / "run", stage2[0], push_to_hub=REPO)
    build_archive(context.run)
    return context


@pytest.fixture
def context(finished: Context, tmp_path: Path) -> Context:
    """A run with its archive."""
    return copied(finished, tmp_path / "run")


def pushed(run: Run, repo_id: str = REPO, *, public: bool = False, **others: object) -> tuple[list[object], PushResult]:
    arguments = {"token": TOKEN, "accept_lookalikes": False, "stop": StopToken(), **others}
    return run_stage(push(run, repo_id, public=public, **arguments))  # type: ignore[arg-type]


def refused(kind: type[Stage3Error], run: Run, repo_id: str = REPO, **arguments: object) -> Stage3Error:
    """The error of a push; the archive is intact, and the error says how to continue without showing the token."""
    before = sha256_of_file(run.archive)
    with pytest.raises(kind) as error:
        pushed(run, repo_id, **arguments)  # type: ignore[arg-type]
    assert sha256_of_file(run.archive) == before
    assert CANARY not in str(error.value)
    assert f"stage3-tui push {run.folder} {repo_id}" in error.value.what_to_do
    return error.value


def checks(events: list[object]) -> dict[str, Check]:
    return {event.name: event for event in events if isinstance(event, Check)}


# -- what a push leaves ---------------------------------------------------------------------------------------------------


def test_a_push_makes_a_private_repository_with_one_commit(context: Context, hub: FakeHubPush):
    events, done = pushed(context.run)
    repo = hub.repos[REPO]
    assert repo.private and sorted(repo.files) == IN_THE_REPO
    (commit,) = repo.commits
    assert commit["files"] == IN_THE_REPO
    assert commit["summary"] == "Stage 3 constitutional LoRA adapter; against Stage 2: cannot tell"
    assert sha256_of_file(context.run.archive) in commit["description"]
    assert done == PushResult(REPO, done.page, True, 8, sum(map(len, repo.files.values())), False)
    assert done.page.startswith(f"{hub.endpoint}/{REPO}/commit/")
    assert repo.files["README.md"] == (context.run / CARD).read_bytes()
    assert repo.files["adapter_model.safetensors"] == (context.run / WEIGHTS).read_bytes()
    assert {"upload", "verify"} <= set(hub.steps)  # large files went through LFS, and not through Xet
    found = checks(events)
    for name, data in repo.files.items():
        assert found[f"push: {name}"].detail == f"{len(data):,} bytes"
    assert found["push: repository"].detail == f"{REPO}, private, new"
    assert "account someone, token with role write" in found["push: token"].detail


def test_what_is_sent_is_reported_before_anything_is_sent(context: Context, hub: FakeHubPush):
    events = push(context.run, REPO, public=False, token=TOKEN, accept_lookalikes=False, stop=StopToken())
    for event in events:
        if isinstance(event, Check) and event.name == f"push: {IN_THE_REPO[-1]}":
            assert set(hub.steps) == {"whoami", "info"}
            break
    else:
        pytest.fail("the last file was not reported")
    events.close()
    assert hub.repos == {}


def test_the_manifest_has_the_hash_of_every_file_and_of_the_archive(context: Context, hub: FakeHubPush):
    pushed(context.run)
    files = hub.repos[REPO].files
    manifest = json.loads(files[MANIFEST])
    assert manifest["archive_sha256"] == sha256_of_file(context.run.archive)
    assert {name: facts["bytes"] for name, facts in manifest["files"].items()} == {
        name: len(data) for name, data in files.items() if name != MANIFEST
    }


def test_peft_loads_the_adapter_from_the_repository(
    context: Context, hub: FakeHubPush, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pushed(context.run)
    use(hub, monkeypatch, tmp_path / "home")
    monkeypatch.setenv("HF_TOKEN", CANARY)
    base = AutoModelForCausalLM.from_pretrained(context.config.base_model_id)
    model = PeftModel.from_pretrained(base, REPO)
    assert effect_on_logits(model, AutoTokenizer.from_pretrained(REPO)) > 0


def test_a_second_push_of_the_same_files_sends_nothing_and_reports_it(context: Context, hub: FakeHubPush):
    pushed(context.run)
    hub.requests.clear()
    events, done = pushed(context.run)
    assert done.was_there and done.in_words == f"{REPO} is up to date"
    assert set(hub.steps) == {"whoami", "info", "auth"}
    assert len(hub.repos[REPO].commits) == 1
    assert "nothing sent" in checks(events)["pushed"].detail


def test_another_adapter_is_a_second_commit_and_kept_and_replaced_files_are_reported(
    context: Context, hub: FakeHubPush
):
    pushed(context.run)
    hub.repos[REPO].files |= {".gitattributes": b"*", "theirs.txt": b"of somebody"}
    (context.run / CARD).write_text("# Another card\n")
    build_archive(context.run)
    events, done = pushed(context.run)
    assert not done.was_there and len(hub.repos[REPO].commits) == 2
    found = checks(events)
    kept = "theirs.txt, which the repository already has"
    assert (found["push: keeps"].status, found["push: keeps"].detail) == ("warning", kept)
    assert found["push: replaces"].detail.startswith(f"{MANIFEST}, README.md; ")
    assert hub.repos[REPO].files["theirs.txt"] == b"of somebody"


def test_the_token_is_in_no_body_and_no_header_but_its_own_and_in_no_file(context: Context, hub: FakeHubPush):
    pushed(context.run)
    bodies = b"".join(request.body for request in hub.requests)
    headers = "".join(request.other_headers for request in hub.requests)
    assert CANARY.encode() not in bodies and CANARY not in headers
    assert {request.authorization for request in hub.requests if request.step != "upload"} == {f"Bearer {CANARY}"}
    # The upload goes to a signed address, which may be another company's.
    assert {request.authorization for request in hub.requests if request.step == "upload"} == {""}
    assert_token_is_nowhere(context.run.folder.parent)


def assert_token_is_nowhere(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


# -- who sees it ------------------------------------------------------------------------------------------------------------


def test_a_public_repository_is_not_pushed_to_without_the_option(context: Context, hub: FakeHubPush):
    hub.repos[REPO] = Repo(private=False)
    error = refused(UnsafeError, context.run)
    assert error.exit_code == ExitCode.UNSAFE == 12
    assert "is public" in error.what and "--push-public" in error.what_to_do
    assert hub.repos[REPO].commits == []
    _, done = pushed(context.run, public=True)
    assert not done.private and len(hub.repos[REPO].commits) == 1


def test_a_new_repository_is_public_with_the_option(context: Context, hub: FakeHubPush):
    _, done = pushed(context.run, public=True)
    assert not hub.repos[REPO].private and done.in_words == f"pushed to {REPO} (public)"


def test_a_private_repository_stays_private_and_that_is_reported(context: Context, hub: FakeHubPush):
    hub.repos[REPO] = Repo(private=True)
    events, done = pushed(context.run, public=True)
    assert done.private and hub.repos[REPO].private
    assert checks(events)["push: stays private"].status == "warning"


def test_a_repository_that_the_hub_creates_as_public_stays_empty(context: Context, hub: FakeHubPush):
    hub.makes_public = True
    assert "created someone/stage3 as public instead of private" in refused(UnsafeError, context.run).what
    assert hub.repos[REPO].files == {}


# -- may the token write ------------------------------------------------------------------------------------------------------


def account(role: str, *scopes: tuple[str, str | None, str], orgs: dict[str, str] | None = None) -> dict[str, object]:
    access: dict[str, object] = {"role": role}
    if role == "fineGrained":
        access["fineGrained"] = {
            "scoped": [
                {"entity": {"type": kind, **({"name": name} if name else {})}, "permissions": [permission]}
                for kind, name, permission in scopes
            ]
        }
    named = [{"name": name, "roleInOrg": role_there} for name, role_there in (orgs or {}).items()]
    return {"name": "someone", "orgs": named, "auth": {"accessToken": access}}


@pytest.mark.parametrize(
    ("account", "repo_id", "exists", "reason"),
    [
        (account("write"), "someone/x", False, ""),
        (account("write"), "SomeOne/x", False, ""),
        (account("read"), "someone/x", False, "role read"),
        (account("read"), "someone/x", True, "role read"),
        (account("write"), "stranger/x", False, "neither the token's account (someone) nor one of its organisations"),
        (account("write"), "stranger/x", True, ""),  # it may have been invited, which only the Hub can check
        (account("write", orgs={"lab": "write"}), "lab/x", False, ""),
        (account("write", orgs={"lab": "admin"}), "lab/x", False, ""),
        (account("write", orgs={"lab": "read"}), "lab/x", False, "Its account only has the role read in lab."),
        (account("write", orgs={"lab": "write"}), "stranger/x", False, "belongs to lab"),
        (account("fineGrained", ("user", "someone", "repo.write")), "someone/x", False, ""),
        (account("fineGrained", ("user", "someone", "repo.content.read")), "someone/x", False, "write to nowhere"),
        (account("fineGrained", ("org", "lab", "repo.write"), orgs={"lab": "write"}), "lab/x", False, ""),
        (
            account("fineGrained", ("org", "lab", "repo.write")),
            "someone/x",
            False,
            "write to lab, but not to someone/x",
        ),
        (account("fineGrained", ("model", "someone/x", "repo.write")), "someone/x", True, ""),
        (account("fineGrained", ("model", "someone/y", "repo.write")), "someone/x", True, "write to someone/y"),
        (account("fineGrained", ("model", None, "repo.write")), "someone/x", True, ""),  # an entity with only an id
        (account("fineGrained"), "someone/x", False, "write to nowhere"),
        ({"name": "someone", "auth": {"accessToken": {"role": "fineGrained"}}}, "someone/x", False, ""),
        ({"name": "someone", "auth": {"type": "oauth"}}, "someone/x", False, ""),
        ({"name": "someone", "auth": None, "orgs": None}, "someone/x", False, ""),
    ],
)
def test_missing_permissions_are_found_before_anything_is_sent(
    account: dict[str, object], repo_id: str, exists: bool, reason: str
):
    found = missing_permission(account, repo_id, exists=exists)
    assert reason in found if reason else found == ""


def test_with_a_read_only_token_nothing_is_sent(context: Context, hub: FakeHubPush):
    hub.account = account("read")
    error = refused(AccessError, context.run)
    assert error.exit_code == ExitCode.ACCESS == 4 and "role read" in error.why
    assert "huggingface.co/settings/tokens" in error.what_to_do
    assert set(hub.steps) == {"whoami", "info"}


def test_without_a_token_there_are_no_requests(context: Context, hub: FakeHubPush, monkeypatch: pytest.MonkeyPatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(context.run / "none"))
    assert "No token" in refused(AccessError, context.run, token=None).what
    assert hub.requests == []


@pytest.mark.parametrize("name", ["no-owner", "a/b/c", "someone/a--b", "someone/x.git", "../x", "someone/"])
def test_an_invalid_repository_name_is_reported(name: str, context: Context, hub: FakeHubPush):
    assert refused(ConfigError, context.run, name).exit_code == ExitCode.USAGE
    assert hub.requests == []


# -- what goes wrong ----------------------------------------------------------------------------------------------------------

WRITES = ("create", "preupload", "batch", "verify", "commit")


@pytest.mark.fault("F7")
@pytest.mark.parametrize(
    ("step", "mood", "kind", "message"),
    [
        ("whoami", "401", AccessError, "rejected the token"),
        ("whoami", "429", NetworkError, "429: too many requests"),
        ("whoami", "portal", NetworkError, "is not from the Hub"),
        ("whoami", "cut", NetworkError, "was interrupted"),
        ("info", "503", NetworkError, "503"),
        ("info", "403 no", AccessError, "No write access to someone/stage3"),
        ("yaml", "503", NetworkError, "503"),
        ("yaml", "400 bad card", NetworkError, "rejected the push"),
        *((step, "401", AccessError, "rejected the token") for step in WRITES),
        *((step, "403 not yours", AccessError, "No write access to someone/stage3") for step in WRITES),
        *((step, "404 who?", AccessError, "has no someone/stage3") for step in WRITES),
        *((step, "503", NetworkError, "503") for step in WRITES),
        *((step, "busy for an hour", NetworkError, "429") for step in WRITES),
        *((step, "cut", NetworkError, "was interrupted") for step in ("create", "commit")),
        *((step, "echo", AccessError, "No write access") for step in WRITES),
        *(("upload", mood, NetworkError, "Hub's storage rejected") for mood in ("401", "403 too late", "404", "echo")),
        ("upload", "503", NetworkError, "503"),
        ("create", "402 pay", AccessError, "No write access"),
        ("create", "409 there is one", AccessError, "this token cannot see it"),
        (
            "create",
            "409 Cannot create repo: another conflicting operation is in progress",
            NetworkError,
            "Someone else changed",
        ),
        ("preupload", "portal", NetworkError, "is not from the Hub"),
        ("batch", "portal", NetworkError, "is not from the Hub"),
        ("commit", "409", NetworkError, "Someone else changed"),
        ("commit", "412", NetworkError, "Someone else changed"),
        ("commit", "400 secret found in README.md", NetworkError, "rejected the push"),
        ("commit", "413", NetworkError, "rejected the push"),
    ],
)
def test_a_refusal_at_any_step_is_reported_and_leaves_the_archive_and_no_half_repository(
    step: str, mood: str, kind: type[Stage3Error], message: str, context: Context, hub: FakeHubPush
):
    hub.moods[step] = mood
    error = refused(kind, context.run)
    assert error.exit_code == {AccessError: 4, NetworkError: 5}[kind]
    assert error.what.startswith("Nothing was pushed. ") and message in error.what
    assert mood.partition(" ")[2] in f"{error.why} {error.what}" or mood in ("busy for an hour", "echo")
    assert all(repo.files == {} for repo in hub.repos.values())
    assert context.run.archive.is_file()
    del hub.moods[step]
    _, done = pushed(context.run)
    assert not done.was_there and len(hub.repos[REPO].commits) == 1


@pytest.mark.parametrize("step", ["whoami", "create", "commit"])
def test_a_hub_that_hangs_runs_into_the_timeout(step: str, context: Context, hub: FakeHubPush):
    hub.moods[step] = "hang"
    assert "No data for" in refused(NetworkError, context.run).why


def test_an_upload_that_hangs_is_retried_and_then_fails(context: Context, hub: FakeHubPush):
    hub.moods["upload"] = "hang"
    assert "did not respond to 1 attempts in a row" in refused(NetworkError, context.run).what
    assert hub.repos[REPO].files == {}


def test_an_unreachable_hub_is_a_network_error(context: Context, hub: FakeHubPush, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert "Cannot reach the Hub" in refused(NetworkError, context.run).what


def test_offline_mode_is_named_by_its_variable(context: Context, hub: FakeHubPush, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(NetworkError, context.run).what


def test_a_commit_whose_response_was_lost_is_found_by_the_next_push(context: Context, hub: FakeHubPush):
    commit = hub._commit

    def lost(*arguments: object) -> tuple[int, dict[str, str], object]:
        commit(*arguments)  # type: ignore[arg-type]
        return 504, {}, {}

    hub._commit = lost  # type: ignore[method-assign, assignment]
    refused(NetworkError, context.run)
    _, done = pushed(context.run)
    assert done.was_there and len(hub.repos[REPO].commits) == 1


def test_a_repository_that_changes_meanwhile_is_not_overwritten(context: Context, hub: FakeHubPush):
    hub.repos[REPO] = Repo()
    events = push(context.run, REPO, public=False, token=TOKEN, accept_lookalikes=False, stop=StopToken())
    with pytest.raises(NetworkError, match="Someone else changed"):
        for _ in events:
            hub.repos[REPO].files["theirs.txt"] = b"just now"
    assert hub.repos[REPO].commits == []


def test_a_repository_that_leaves_files_out_is_noticed(context: Context, hub: FakeHubPush):
    mode = hub._mode
    hub._mode = lambda repo, file: {**mode(repo, file), "shouldIgnore": file["path"] == "tokenizer.json"}  # type: ignore[method-assign]
    error = refused(NetworkError, context.run)
    assert "does not show tokenizer.json" in error.what and ".gitignore" in error.why


def test_a_repository_that_has_moved_is_not_followed(context: Context, hub: FakeHubPush):
    hub.repos[REPO] = Repo()
    respond = hub.respond

    def moved(step: str, path: str, body: bytes) -> tuple[int, dict[str, str], object]:
        status, headers, data = respond(step, path, body)
        return status, headers, {**data, "id": "stranger/stage3"} if step == "info" else data

    hub.respond = moved  # type: ignore[method-assign]
    assert "has moved to 'stranger/stage3'" in refused(UnsafeError, context.run).what


@pytest.mark.parametrize("step", ["info", "create", "batch", "upload"])
def test_a_request_to_stop_ends_the_push_before_the_commit(step: str, context: Context, hub: FakeHubPush):
    stop, respond = StopToken(), hub.respond

    def respond_and_stop(at: str, path: str, body: bytes) -> tuple[int, dict[str, str], object]:
        if at == step:
            stop.request("SIGTERM")
        return respond(at, path, body)

    hub.respond = respond_and_stop  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        pushed(context.run, stop=stop)
    assert step in hub.steps and "commit" not in hub.steps
    assert all(repo.files == {} for repo in hub.repos.values())


def test_a_request_to_stop_ends_an_upload_in_the_middle_of_a_file(
    context: Context, hub: FakeHubPush, monkeypatch: pytest.MonkeyPatch
):
    """On a slow connection, nothing more is sent after the stop."""
    monkeypatch.setattr(fake_hub_push_module, "LFS_FROM_BYTES", 1 << 20)  # one upload, and no second one to be stopped
    save_file({"large": torch.zeros(6_000_000)}, context.run / WEIGHTS)
    build_archive(context.run)
    stop = StopToken()
    hub.before_body = lambda step: stop.request("SIGTERM") if step == "upload" else None
    hub.moods["upload"] = "503"  # if all of it arrives despite the stop, the push fails in another way
    with pytest.raises(Stopped):
        pushed(context.run, stop=stop)
    assert hub.repos[REPO].files == {}


@pytest.mark.parametrize("mood", ["busy for an hour", "over the limit"])
def test_a_long_retry_after_fails_at_once(
    mood: str, context: Context, hub: FakeHubPush, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(request_limits, "TRIES", 3)
    hub.moods["preupload"] = mood
    assert "429" in refused(NetworkError, context.run).what
    assert hub.steps.count("preupload") == 1


def test_a_request_to_a_busy_hub_is_retried(context: Context, hub: FakeHubPush, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(request_limits, "TRIES", 3)
    hub.moods |= {"preupload": ["503"], "upload": ["503"]}
    _, done = pushed(context.run)
    assert not done.was_there and hub.steps.count("preupload") == 2
    assert len(hub.repos[REPO].commits) == 1


def test_after_a_push_the_client_is_as_before(context: Context, hub: FakeHubPush):
    from huggingface_hub.utils import get_session

    pushed(context.run)
    assert get_session().timeout.read is None  # its own default
    refused(AccessError, context.run, "stranger/x")
    assert get_session().timeout.read is None


# -- what is never pushed -------------------------------------------------------------------------------------------------------


def test_an_archive_that_is_not_the_recorded_one_is_not_pushed(context: Context, hub: FakeHubPush):
    with context.run.archive.open("ab") as file:
        file.write(b"\n")
    error = refused(DamagedState, context.run)
    assert error.exit_code == ExitCode.DAMAGED and "not the one this run made" in error.what
    assert hub.requests == []


def test_the_archive_is_pushed_not_what_the_folder_contains_now(context: Context, hub: FakeHubPush):
    before = (context.run / CARD).read_bytes()
    (context.run / CARD).write_text("# Changed since\n")
    pushed(context.run)
    assert hub.repos[REPO].files["README.md"] == before


def test_secrets_are_searched_for_once_more_before_a_push(context: Context, hub: FakeHubPush):
    (context.run / CARD).write_text("# The card, with pass-word-of-the-token in it\n")
    build_archive(context.run)
    error = refused(UnsafeError, context.run, token=Secret("pass-word-of-the-token"))
    assert "the token of this run in README.md, line 1" in error.what
    assert hub.requests == []


def test_pairs_and_prompts_are_not_pushed(context: Context, hub: FakeHubPush):
    write_pairs(context.run / layout.PAIRS_JSONL, [{"id": "p0", "prompt": "a private question"}])
    build_archive(context.run)
    pushed(context.run)
    assert not any("pairs" in name or "dpo" in name or name == layout.RUN_JSON for name in hub.repos[REPO].files)
    assert b"a private question" not in b"".join(request.body for request in hub.requests)


# -- the stage ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def only_packaging(context: Context, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Run the pipeline with packaging as its only stage; the archive must not be rebuilt."""
    monkeypatch.setattr("engine.pipeline.loop.STAGES", ("packaging",))
    monkeypatch.setattr(stage, "build_archive", lambda *_, **__: pytest.fail("the archive was made again"))
    context.token = TOKEN
    return lambda: run_stage(run_pipeline(context, until="packaging"))[1]


@pytest.mark.fault("F7")
def test_a_failed_push_fails_the_stage_and_not_the_archive(
    context: Context, hub: FakeHubPush, only_packaging: Callable[[], int]
):
    made = sha256_of_file(context.run.archive)
    hub.moods["commit"] = "503"
    assert only_packaging() == ExitCode.NETWORK
    recorded = context.run.stage("packaging")
    assert recorded["status"] == "failed" and recorded["result"]["sha256"] == made
    assert context.run.manifest["error"]["what"].startswith("Nothing was pushed.")
    hub.moods.clear()
    assert only_packaging() == ExitCode.DONE
    assert context.run.result("packaging")["pushed"]["repo_id"] == REPO
    assert sha256_of_file(context.run.archive) == made
    hub.requests.clear()
    assert only_packaging() == ExitCode.DONE  # done before
    assert hub.requests == []
    assert_token_is_nowhere(context.run.folder.parent)


def test_another_repository_is_pushed_to_without_packing_again(
    context: Context, hub: FakeHubPush, only_packaging: Callable[[], int]
):
    assert only_packaging() == ExitCode.DONE
    context.config = context.config.model_copy(update={"push_to_hub": "lab/stage3"})
    assert only_packaging() == ExitCode.DONE
    assert sorted(hub.repos) == ["lab/stage3", REPO]


# -- the command ----------------------------------------------------------------------------------------------------------------


def environment(hub: FakeHubPush, home: Path, **others: str) -> dict[str, str]:
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home / "hf"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"}
    return {**{k: v for k, v in os.environ.items() if k != "HF_TOKEN"}, **own, **others}


def run_push(
    context: Context, hub: FakeHubPush, *arguments: object, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    context.run.save()
    return subprocess.run(
        [sys.executable, "-m", "tui.cli", "push", *map(str, arguments)],
        env=environment(hub, context.run.folder.parent, **variables),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=context.run.folder.parent,
    )


@pytest.mark.fault("F7")
def test_the_command_repeats_a_failed_push_and_completes_the_stage(
    context: Context, hub: FakeHubPush, only_packaging: Callable[[], int]
):
    hub.moods["commit"] = "403"
    assert only_packaging() == ExitCode.ACCESS
    failed = run_push(context, hub, context.run.folder, HF_TOKEN=CANARY)
    assert failed.returncode == 4
    assert [line.split(":")[0] for line in failed.stderr.splitlines()] == ["failed", "why", "next"]
    assert Run(context.run.folder).manifest["error"]["what"].startswith("Nothing was pushed.")
    hub.moods.clear()
    done = run_push(context, hub, context.run.folder, HF_TOKEN=CANARY)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"pushed to {REPO} (private)" in done.stdout and "adapter_model.safetensors" in done.stdout
    run = Run(context.run.folder)
    assert (run.stage("packaging")["status"], run.manifest["error"]) == ("done", None)
    assert run.result("packaging")["pushed"]["files"] == 8 and run.result("packaging")["scp"]
    assert '"kind":"stage_finished"' in (run / layout.EVENTS_JSONL).read_text().splitlines()[-1]
    again = run_push(context, hub, context.run.folder, HF_TOKEN=CANARY)
    assert again.returncode == 0 and "nothing sent" in again.stdout
    assert len(hub.repos[REPO].commits) == 1
    for text in (failed.stdout, failed.stderr, done.stdout, again.stdout):
        assert CANARY not in text
    assert_token_is_nowhere(context.run.folder.parent)


def test_the_command_takes_the_token_from_standard_input_and_another_repository(context: Context, hub: FakeHubPush):
    done = run_push(context, hub, context.run.folder, "lab/another", "--token-stdin", stdin=f"{CANARY}\n")
    assert done.returncode == 0, done.stderr
    assert hub.repos["lab/another"].private and sorted(hub.repos) == ["lab/another"]


def test_push_public_holds_only_for_the_repository_of_the_run(context: Context, hub: FakeHubPush):
    context.run.manifest["config"] |= {"push_public": True}
    assert run_push(context, hub, context.run.folder, "lab/another", HF_TOKEN=CANARY).returncode == 0
    assert hub.repos["lab/another"].private
    assert run_push(context, hub, context.run.folder, HF_TOKEN=CANARY).returncode == 0
    assert not hub.repos[REPO].private


def test_one_argument_is_the_run_or_the_repository(context: Context, hub: FakeHubPush):
    folder = context.run.folder
    done = run_push(context, hub, "lab/another", "--output-dir", folder, HF_TOKEN=CANARY)
    assert done.returncode == 0 and sorted(hub.repos) == ["lab/another"]
    (folder.parent / "runs").mkdir()
    misspelt = run_push(context, hub, "runs/misspelt", HF_TOKEN=CANARY)
    assert misspelt.returncode == 2 and "There is no run in runs/misspelt" in misspelt.stderr
    context.run.manifest["config"]["push_to_hub"] = None
    nowhere = run_push(context, hub, folder, HF_TOKEN=CANARY)
    assert nowhere.returncode == 2 and "OWNER/NAME" in nowhere.stderr
    assert sorted(hub.repos) == ["lab/another"]


@pytest.mark.fault("F8")
def test_a_push_that_is_killed_between_two_files_leaves_no_half_repository(context: Context, hub: FakeHubPush):
    """SIGKILL after the repository was created and a file was sent; the next push completes."""
    hub.moods["verify"] = "hang"
    context.run.save()
    child = subprocess.Popen(
        [sys.executable, "-m", "tui.cli", "push", str(context.run.folder)],
        env=environment(hub, context.run.folder.parent, HF_TOKEN=CANARY),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=context.run.folder.parent,
    )
    try:
        assert hub.arrived["verify"].wait(60)
        command_line = Path(f"/proc/{child.pid}/cmdline").read_bytes()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert CANARY.encode() not in command_line
    assert hub.large and hub.repos[REPO].files == {} and hub.repos[REPO].commits == []
    hub.moods.clear()
    done = run_push(context, hub, context.run.folder, HF_TOKEN=CANARY)
    assert done.returncode == 0, done.stderr
    assert sorted(hub.repos[REPO].files) == IN_THE_REPO and len(hub.repos[REPO].commits) == 1


def test_the_help_of_the_command_imports_nothing_heavy():
    code = """
import sys
from tui.cli import main
try:
    main(["push", "--help"])
except SystemExit:
    pass
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "huggingface_hub", "pydantic", "rich"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "push [RUN_DIR] [REPO]" in done.stdout and done.stdout.splitlines()[-1] == "[]"
    assert re.search(r"--token-file FILE", done.stdout)
