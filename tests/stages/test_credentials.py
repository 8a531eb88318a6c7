"""Stage 3 against a Hub on localhost: what is remote, whose token it is, and what it may read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from engine.core.config import load_config
from engine.core.errors import AccessError, DamagedState, NetworkError, Stage3Error, Stopped
from engine.core.events import Check, Event
from engine.hub import missing_from
from engine.hub.run_requirements import hub_requirements
from engine.pipeline.graph import evidence_of
from engine.run.context import Context
from engine.run.folder import Run
from engine.security.secrets import Secret
from engine.stages import credentials
from engine.stages.base import StageEnd
from tests.support.fake_hub import FIRST_COMMIT, FakeHub, fake_hub
from tests.support.fake_hub_push import FakeHubPush, fake_hub_push
from tests.support.hub_in_process import CANARY, use

BASE, DATA = "google/gemma-2b-it", "Anthropic/hh-rlhf"
FROM_BROWSER = "hf_oauth_FromTheBrowser12345"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub in perfect order; no login, and an empty current folder."""
    monkeypatch.chdir(tmp_path)
    with fake_hub() as server:
        use(server, monkeypatch, tmp_path / "home")
        server.repos = {BASE: "ok", DATA: "ok"}
        server.login_interval = 0.01
        yield server


def context(tmp_path: Path, *, token: str | None = None, **options: Any) -> Context:
    config = load_config(options, environment={})
    return Context(config, Run(tmp_path / "run"), token=Secret(token) if token else None)


def drive(context: Context) -> tuple[StageEnd | Stage3Error, list[Event]]:
    """Run the stage; returns its result or error and its events, none of which shows the token."""
    events: list[Event] = []
    stage = credentials.run(context)
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            outcome = end.value
            break
        except Stage3Error as error:
            outcome = error
            break
    assert CANARY not in f"{outcome} {events}" and FROM_BROWSER not in f"{outcome} {events}"
    return outcome, events


def checks(events: list[Event]) -> dict[str, str]:
    return {event.name: event.status for event in events if isinstance(event, Check)}


def detail(events: list[Event], name: str) -> str:
    """The last status of a line in the table."""
    return [event.detail for event in events if isinstance(event, Check) and event.name == name][-1]


def again(before: Context, **options: Any) -> Context:
    """A later start of the same run, which recorded what `before` found."""
    config = load_config(options, environment={})
    return Context(config, Run(before.run.folder))


def recorded(context: Context) -> Context:
    """Run the stage and record its result, as the pipeline does."""
    result, _ = drive(context)
    assert isinstance(result, StageEnd), result
    context.run.record_stage("credentials", status="done", result=dict(result.facts))
    return context


def test_without_remote_files_the_stage_is_skipped(tmp_path: Path, fake: FakeHub) -> None:
    (tmp_path / "data.jsonl").touch()
    local = context(tmp_path, base_model_id=str(tmp_path), adapter_path=str(tmp_path), dataset="data.jsonl")
    result, _ = drive(local)
    assert isinstance(result, StageEnd) and result.outcome == "skipped" and "no token needed" in result.summary
    evidence = evidence_of(local, "credentials")
    assert evidence is not None
    assert {"base_model_id": str(tmp_path), "dataset": "data.jsonl"}.items() <= evidence.items()
    assert fake.requests == []


def test_a_reward_model_is_needed_where_it_judges(tmp_path: Path, fake: FakeHub) -> None:
    here = {"base_model_id": str(tmp_path), "adapter_path": str(tmp_path), "dataset": str(tmp_path)}
    needed = context(tmp_path, **here, judge="reward-model", reward_model_id="someone/judge")
    assert [str(need) for need in hub_requirements(needed.config, needed.run)] == ["reward model someone/judge"]
    assert hub_requirements(context(tmp_path, **here, judge="self").config, needed.run) == ()


def test_base_model_adapter_and_dataset_may_be_remote(tmp_path: Path, fake: FakeHub) -> None:
    given = context(tmp_path, adapter_path="someone/stage2")
    assert [need.what for need in hub_requirements(given.config, given.run)] == [
        "base model",
        "adapter",
        "dataset",
    ]
    assert credentials.evidence(given) is None


def test_an_adapter_in_the_workspace_is_not_remote(tmp_path: Path, fake: FakeHub) -> None:
    given = context(tmp_path, adapter_path="someone/stage2")
    (tmp_path / "checkout/someone/stage2").mkdir(parents=True)
    given.run.record_stage("workspace", status="done", result={"folder": str(tmp_path / "checkout")})
    assert [need.what for need in hub_requirements(given.config, given.run)] == ["base model", "dataset"]


def test_a_token_that_may_read_everything_is_kept_for_the_later_stages(tmp_path: Path, fake: FakeHub) -> None:
    given = context(tmp_path, token=CANARY)
    result, events = drive(given)
    assert isinstance(result, StageEnd) and result.facts["account"] == "someone"
    assert checks(events) == {"token": "ok", f"base model {BASE}": "ok", f"dataset {DATA}": "ok"}
    assert given.token is not None and given.token.reveal() == CANARY


def test_the_variable_is_used_where_none_is_given(
    tmp_path: Path, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    given = context(tmp_path)
    drive(given)
    assert given.token is not None and given.token.reveal() == CANARY
    assert os.environ["HF_TOKEN"] == CANARY


def test_conflicting_tokens_are_cleared_and_reported(
    tmp_path: Path, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_staler")
    _, events = drive(context(tmp_path, token=CANARY))
    assert "HF_TOKEN" not in os.environ and "HUGGING_FACE_HUB_TOKEN" not in os.environ
    assert "HF_TOKEN holds a different token" in str(events) and "hf_stale" not in str(events)


@pytest.mark.fault("F1")
def test_an_invalid_token_stops_before_any_repository_is_requested(tmp_path: Path, fake: FakeHub) -> None:
    fake.refused = {CANARY}
    error, events = drive(context(tmp_path, token=CANARY))
    assert isinstance(error, AccessError) and error.exit_code == 4
    assert checks(events) == {"token": "failed"} and "settings/tokens" in detail(events, "token")
    assert len(fake.requests) == 1


@pytest.mark.fault("F2")
def test_the_error_for_an_unaccepted_licence_names_the_page(tmp_path: Path, fake: FakeHub) -> None:
    fake.repos[BASE] = "gated"
    error, events = drive(context(tmp_path, token=CANARY))
    assert isinstance(error, AccessError) and f"{fake.endpoint}/{BASE}" in error.what_to_do
    assert checks(events) == {"token": "ok", f"base model {BASE}": "failed"}
    assert f"{fake.endpoint}/{BASE}" in detail(events, f"base model {BASE}")


def test_the_error_for_a_gated_model_without_a_token_lists_every_way_to_pass_one(tmp_path: Path, fake: FakeHub) -> None:
    fake.repos[BASE] = "gated"
    error, _ = drive(context(tmp_path))
    assert isinstance(error, AccessError)
    for way in ("HF_TOKEN", "--token-stdin", "--token-file", "hf auth login", "--device-login", "wizard"):
        assert way in error.what_to_do


def test_without_a_token_public_repositories_pass(tmp_path: Path, fake: FakeHub) -> None:
    given = context(tmp_path)
    result, events = drive(given)
    assert isinstance(result, StageEnd) and "no token needed" in result.summary
    assert checks(events)["token"] == "skipped" and given.token is None


def test_a_hub_that_does_not_respond_is_not_a_token_error(tmp_path: Path, fake: FakeHub) -> None:
    fake.repos[BASE] = "503"
    error, _ = drive(context(tmp_path))
    assert isinstance(error, NetworkError) and error.exit_code == 5


# -- which token, and what it may do -------------------------------------------------------------------------------------


def test_the_error_for_a_refused_token_names_its_source_and_others(
    tmp_path: Path, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    stored = tmp_path / "home/token"
    stored.parent.mkdir()
    stored.write_text("hf_OfTheLogin")
    fake.refused = {CANARY}
    error, _ = drive(context(tmp_path))
    assert isinstance(error, AccessError)
    assert "(the variable HF_TOKEN)" in error.what and f"is in the login stored in {stored}" in error.what_to_do
    monkeypatch.delenv("HF_TOKEN")
    fake.refused = {"hf_OfTheLogin"}
    error, _ = drive(context(tmp_path))
    assert isinstance(error, AccessError) and f"(the login stored in {stored})" in error.what
    assert "Another" not in error.what_to_do


@pytest.mark.parametrize(("reads_gated", "status"), [(True, "ok"), (False, "warning")])
def test_the_scope_of_a_fine_grained_token_is_a_line_of_its_own(
    tmp_path: Path, fake: FakeHub, reads_gated: bool, status: str
) -> None:
    scoped = [{"entity": {"type": "org", "name": "acme"}, "permissions": ["repo.content.read"]}]
    fine = {"canReadGatedRepos": reads_gated, "global": [], "scoped": scoped}
    fake.auth = {"accessToken": {"role": "fineGrained", "displayName": "mine", "fineGrained": fine}}
    _, events = drive(context(tmp_path, token=CANARY))
    assert checks(events)["scope"] == status and "org acme: repo.content.read" in detail(events, "scope")
    assert detail(events, "token") == 'passed to this run: account someone, token "mine" with role fineGrained'


def test_a_refusal_of_a_fine_grained_token_names_both_reasons_where_it_may_be_either(
    tmp_path: Path, fake: FakeHub
) -> None:
    fake.repos[BASE] = "gated"

    def what_to_do(reads_gated: bool) -> str:
        fine = {"canReadGatedRepos": reads_gated, "scoped": []}
        fake.auth = {"accessToken": {"role": "fineGrained", "fineGrained": fine}}
        error, _ = drive(context(tmp_path, token=CANARY))
        assert isinstance(error, AccessError)
        assert f"{fake.endpoint}/{BASE}" in error.what_to_do
        return error.what_to_do

    assert "public gated repos" in what_to_do(reads_gated=False)
    assert "public gated repos" not in what_to_do(reads_gated=True)


def test_access_to_adapter_and_reward_model_is_checked_too(tmp_path: Path, fake: FakeHub) -> None:
    fake.repos |= {"someone/stage2": "ok", "someone/judge": "gated"}
    options = {"adapter_path": "someone/stage2", "judge": "reward-model", "reward_model_id": "someone/judge"}
    error, events = drive(context(tmp_path, token=CANARY, **options))
    assert isinstance(error, AccessError) and "someone/judge" in error.what
    assert list(checks(events).items()) == [
        ("token", "ok"), (f"base model {BASE}", "ok"), ("adapter someone/stage2", "ok"), (f"dataset {DATA}", "ok"),
        ("reward model someone/judge", "failed"),
    ]  # fmt: skip


# -- storing the token ---------------------------------------------------------------------------------------------------


def test_store_token_stores_it_and_reports_where(tmp_path: Path, fake: FakeHub) -> None:
    _, events = drive(context(tmp_path, token=CANARY, store_token=True))
    assert detail(events, "stored token").startswith(f"{tmp_path}/home/token, readable only by you")
    assert huggingface_hub.get_token() == CANARY
    assert holders_of(CANARY, tmp_path) == {tmp_path / "home/token", tmp_path / "home/stored_tokens"}


def test_a_token_is_in_no_file_unless_requested(tmp_path: Path, fake: FakeHub) -> None:
    drive(context(tmp_path, token=CANARY))
    assert holders_of(CANARY, tmp_path) == set()


def test_a_token_that_cannot_be_stored_does_not_end_the_run(tmp_path: Path, fake: FakeHub) -> None:
    (tmp_path / "home").write_text("a file in the way")
    given = context(tmp_path, token=CANARY, store_token=True)
    result, events = drive(given)
    assert isinstance(result, StageEnd) and given.token is not None
    assert checks(events)["stored token"] == "warning" and "Cannot store the token" in detail(events, "stored token")


def holders_of(token: str, folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and token.encode() in path.read_bytes()}


# -- the login with a browser --------------------------------------------------------------------------------------------


def test_without_a_token_a_login_shows_page_and_code_and_continues_with_its_token(
    tmp_path: Path, fake: FakeHub
) -> None:
    fake.repos[BASE] = "members"
    fake.auth = {"type": "oauth", "expiresAt": "2027-01-01"}
    given = context(tmp_path, device_login=True)
    result, events = drive(given)
    assert isinstance(result, StageEnd) and result.facts["source"] == "the browser login"
    shown = [event for event in events if isinstance(event, Check) and event.name == credentials.LOGIN_CHECK]
    assert [event.status for event in shown] == ["warning", "ok"]
    assert f"{fake.endpoint}/device" in shown[0].detail and "ABCD-1234" in shown[0].detail
    assert given.token is not None and given.token.reveal() == FROM_BROWSER
    assert "until 2027-01-01" in detail(events, "token")
    assert holders_of(FROM_BROWSER, tmp_path) == set()


def test_a_login_is_requested_once_per_process(tmp_path: Path, fake: FakeHub) -> None:
    fake.repos[BASE] = "members"
    first = recorded(context(tmp_path, device_login=True))
    fake.requests.clear()
    later = again(first, device_login=True)
    drive(later)
    assert later.token is not None and later.token.reveal() == FROM_BROWSER
    assert "/oauth/device" not in fake.paths()


def test_the_login_code_is_shown_before_the_wait(tmp_path: Path, fake: FakeHub) -> None:
    fake.repos[BASE] = "members"
    stage = credentials.run(context(tmp_path, device_login=True))
    first = next(stage)
    assert isinstance(first, Check) and "ABCD-1234" in first.detail
    assert "/oauth/token" not in fake.paths()


def test_no_login_is_requested_if_none_is_needed(tmp_path: Path, fake: FakeHub) -> None:
    drive(context(tmp_path, device_login=True))
    drive(context(tmp_path, device_login=True, token=CANARY))
    fake.repos[BASE] = "members"
    error, _ = drive(context(tmp_path))
    assert isinstance(error, AccessError)
    assert "/oauth/device" not in fake.paths()


def test_a_refused_token_leads_to_a_login_if_requested(tmp_path: Path, fake: FakeHub) -> None:
    fake.refused = {CANARY}
    given = context(tmp_path, token=CANARY, device_login=True)
    result, _ = drive(given)
    assert isinstance(result, StageEnd) and given.token is not None and given.token.reveal() == FROM_BROWSER


def test_a_login_that_was_refused_ends_the_stage(tmp_path: Path, fake: FakeHub) -> None:
    fake.repos[BASE], fake.login = "members", ["access_denied"]
    error, events = drive(context(tmp_path, device_login=True))
    assert isinstance(error, AccessError) and checks(events)[credentials.LOGIN_CHECK] == "failed"


def test_a_stopping_run_does_not_wait_for_the_login(tmp_path: Path, fake: FakeHub) -> None:
    fake.repos[BASE], fake.login, fake.login_interval = "members", ["authorization_pending"], 60
    given = context(tmp_path, device_login=True)
    given.stop.request("SIGTERM")
    error, _ = drive(given)
    assert isinstance(error, Stopped)


def test_the_login_can_be_stored_too(tmp_path: Path, fake: FakeHub) -> None:
    fake.repos[BASE] = "members"
    drive(context(tmp_path, device_login=True, store_token=True))
    assert huggingface_hub.get_token() == FROM_BROWSER


# -- pinned commits ------------------------------------------------------------------------------------------------------


def test_the_commits_are_recorded_and_later_stages_read_exactly_these(tmp_path: Path, fake: FakeHub) -> None:
    fake.commits[DATA] = "da" * 20
    given = recorded(context(tmp_path, token=CANARY))
    assert given.run.result("credentials")["commits"] == {
        "base model": {"repo": BASE, "commit": FIRST_COMMIT, "revisions": ["main"]},
        "dataset": {"repo": DATA, "commit": "da" * 20, "revisions": ["main"]},
    }
    assert (given.config.base_model_revision, given.config.dataset_revision) == (FIRST_COMMIT, "da" * 20)


@pytest.mark.fault("F6")
@pytest.mark.parametrize(("repo", "flag"), [(BASE, "--base-model-revision"), (DATA, "--dataset-revision")])
def test_a_branch_that_moved_since_the_run_began_needs_a_decision(
    tmp_path: Path, fake: FakeHub, repo: str, flag: str
) -> None:
    first = recorded(context(tmp_path))
    fake.commits[repo] = "2" * 40
    error, _ = drive(again(first))
    assert isinstance(error, DamagedState) and error.exit_code == 10
    assert repo in error.what and FIRST_COMMIT[:12] in error.what and "222222222222" in error.what
    assert f"{flag} {FIRST_COMMIT}" in error.what_to_do and "--from credentials" in error.what_to_do


def test_the_first_choice_continues_with_the_original_commit(tmp_path: Path, fake: FakeHub) -> None:
    first = recorded(context(tmp_path))
    fake.commits[BASE] = "2" * 40
    second = recorded(again(first, base_model_revision=FIRST_COMMIT))
    assert second.config.base_model_revision == FIRST_COMMIT
    assert isinstance(drive(again(second))[0], DamagedState), "main still means another one"


def test_the_second_choice_uses_the_new_commit(tmp_path: Path, fake: FakeHub) -> None:
    first = recorded(context(tmp_path))
    fake.commits[BASE] = "2" * 40
    first.run.forget_stage("credentials")  # as --from credentials does
    assert recorded(again(first)).config.base_model_revision == "2" * 40


def test_requesting_another_revision_is_not_a_moved_branch(tmp_path: Path, fake: FakeHub) -> None:
    first = recorded(context(tmp_path))
    fake.commits[BASE] = "2" * 40
    assert recorded(again(first, base_model_revision="2" * 40)).config.base_model_revision == "2" * 40


# -- what is in the cache ------------------------------------------------------------------------------------------------


def cached(tmp_path: Path, repo: str, kind: str, *files: str, commit: str = FIRST_COMMIT) -> Path:
    folder = tmp_path / f"home/hub/{kind}s--{repo.replace('/', '--')}"
    for name in files:
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs/main").write_text(commit)
    return folder / "snapshots" / commit


@pytest.mark.fault("F5")
def test_offline_passes_with_what_is_in_the_cache_and_names_what_is_not(
    tmp_path: Path, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = cached(tmp_path, BASE, "model", "config.json", "tokenizer.model")
    error, events = drive(context(tmp_path))
    assert isinstance(error, NetworkError) and error.exit_code == 5
    assert f"base model {BASE} (model.safetensors)" in error.what and f"dataset {DATA}" in error.what
    assert checks(events) == {f"base model {BASE}": "failed", f"dataset {DATA}": "failed"}
    index = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}}'
    (snapshot / "model.safetensors.index.json").write_text(index)
    (snapshot / "model-1.safetensors").touch()
    cached(tmp_path, DATA, "dataset", "test.jsonl.gz")
    error, _ = drive(context(tmp_path))
    assert isinstance(error, NetworkError) and f"{BASE} (model-2.safetensors)" in error.what and DATA not in error.what
    (snapshot / "model-2.safetensors").touch()
    given = context(tmp_path)
    result, events = drive(given)
    assert isinstance(result, StageEnd) and "cache" in result.summary
    assert checks(events) == {f"base model {BASE}": "warning", f"dataset {DATA}": "warning"}
    assert given.config.base_model_revision == FIRST_COMMIT
    assert fake.requests == []


def test_offline_a_cache_that_moved_on_needs_the_same_decision(
    tmp_path: Path, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = recorded(context(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(tmp_path, DATA, "dataset", "test.jsonl.gz")
    cached(tmp_path, BASE, "model", "config.json", "tokenizer.json", "model.safetensors", commit="2" * 40)
    assert isinstance(drive(again(first))[0], DamagedState)
    error, _ = drive(again(first, base_model_revision=FIRST_COMMIT))
    assert isinstance(error, NetworkError) and BASE in error.what


def test_a_link_in_the_cache_whose_file_is_gone_counts_as_missing(tmp_path: Path, fake: FakeHub) -> None:
    snapshot = cached(tmp_path, BASE, "model", "config.json", "tokenizer.json")
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    wanted = (("config.json",), ("model.safetensors", "model.safetensors.index.json"))
    assert missing_from(snapshot, wanted) == ("model.safetensors",)


def test_leftovers_of_killed_downloads_are_reported(tmp_path: Path, fake: FakeHub) -> None:
    blobs = tmp_path / "home/hub/models--google--gemma-2b-it/blobs"
    blobs.mkdir(parents=True)
    with (blobs / "abc.1234abcd.incomplete").open("wb") as file:
        file.truncate(3_200_000_000)
    _, events = drive(context(tmp_path))
    assert "3.2 GB of interrupted downloads of base model google/gemma-2b-it" in str(events)


# -- the right to push, before hours of training -----------------------------------------------------------------------


@pytest.fixture
def push_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHubPush]:
    monkeypatch.chdir(tmp_path)
    with fake_hub_push() as server:
        use(server, monkeypatch, tmp_path / "home")
        yield server


def local_and_pushed(tmp_path: Path, token: str | None = CANARY) -> Context:
    here = {name: str(tmp_path) for name in ("base_model_id", "adapter_path", "dataset")}
    return context(tmp_path, token=token, push_to_hub="someone/stage3", **here)


def test_a_token_with_write_access_passes_and_creates_nothing(tmp_path: Path, push_hub: FakeHubPush) -> None:
    result, events = drive(local_and_pushed(tmp_path))
    assert isinstance(result, StageEnd) and result.summary == "someone may write to someone/stage3"
    assert "new" in detail(events, "push: repository") and "create" not in push_hub.steps


def test_a_token_that_may_only_read_is_refused_before_the_training(tmp_path: Path, push_hub: FakeHubPush) -> None:
    push_hub.account["auth"]["accessToken"]["role"] = "read"
    error, events = drive(local_and_pushed(tmp_path))
    assert isinstance(error, AccessError) and error.what == "No write access to someone/stage3."
    assert checks(events)["push: token"] == "failed"


def test_a_push_without_a_token_is_refused_before_the_training(tmp_path: Path, push_hub: FakeHubPush) -> None:
    error, events = drive(local_and_pushed(tmp_path, token=None))
    assert isinstance(error, AccessError) and "No token to push with" in error.what
    assert checks(events) == {"token": "failed"} and push_hub.requests == []


def test_a_finished_push_needs_no_token(tmp_path: Path, push_hub: FakeHubPush) -> None:
    done = local_and_pushed(tmp_path, token=None)
    done.run.record_stage("packaging", status="done", result={"pushed": {"repo_id": "someone/stage3"}})
    result, _ = drive(done)
    assert isinstance(result, StageEnd) and result.outcome == "skipped"
