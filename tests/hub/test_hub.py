"""A Hub on localhost: every rejection is recognised, within the time limits, and the token never shows."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, close_session, constants

from engine.core.errors import AccessError, ConfigError, NetworkError, PreconditionError, Stage3Error
from engine.hub import (
    Account,
    InvalidToken,
    Scope,
    as_hub_error,
    check_access,
    commit_of,
    limit_requests,
    page_of,
    whoami,
)
from engine.hub.urls import GATED_TOKEN_PAGE
from engine.security.secrets import Secret
from tests.support.fake_hub import FIRST_COMMIT, FakeHub, fake_hub
from tests.support.hub_in_process import CANARY, use

TOKEN = Secret(CANARY)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as server:
        use(server, monkeypatch, tmp_path / "home")
        yield server


def error_of(fake: FakeHub, mood: str, token: Secret | None = TOKEN) -> Stage3Error:
    """The error for a repository in this mood; it never shows the token."""
    fake.repos["owner/name"] = mood
    with pytest.raises(Stage3Error) as refused:
        check_access("owner/name", "model", token)
    assert CANARY not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.what_to_do
    return refused.value


# -- whose token -------------------------------------------------------------------------------------------------------


def test_whoami_names_the_account_and_the_role(fake: FakeHub) -> None:
    assert whoami(TOKEN) == Account("someone", "read", "t")
    assert [tuple(request) for request in fake.requests] == [("GET", "/api/whoami-v2", f"Bearer {CANARY}")]


def test_the_permissions_of_a_fine_grained_token_are_read(fake: FakeHub) -> None:
    read, write = "repo.content.read", "repo.write"
    scoped = [
        {"entity": {"type": "user", "name": "someone", "_id": "5f"}, "permissions": [read]},
        {"entity": {"type": "model", "name": "acme/mod\x1b[2Jel"}, "permissions": [read, write]},
        {"entity": {"type": "user", "name": "someone"}, "permissions": ["inference.serverless.write"]},
    ]
    fine = {"canReadGatedRepos": False, "global": ["discussion.write"], "scoped": scoped}
    fake.auth = {
        "type": "access_token",
        "accessToken": {"role": "fineGrained", "displayName": "t", "fineGrained": fine},
    }
    scope = whoami(TOKEN).scope
    assert scope == Scope(
        reads_gated=False,
        permissions={
            "everywhere": ("discussion.write",),
            "user someone": (read, "inference.serverless.write"),
            "model acme/mod␛[2Jel": (read, write),
        },
    )
    assert str(scope).startswith(
        "may not read gated repositories; everywhere: discussion.write; user someone: repo.content"
    )


def test_a_browser_login_is_recognised_and_its_expiry_read(fake: FakeHub) -> None:
    fake.auth = {"type": "oauth", "expiresAt": "2027-01-01T00:00:00.000Z"}
    assert whoami(TOKEN) == Account("someone", "oauth", expires="2027-01-01T00:00:00.000Z")


@pytest.mark.parametrize(
    "auth",
    [None, [], "x", {"accessToken": 7}, {"accessToken": {"fineGrained": {"scoped": {"a": 1}, "global": "all"}}},
     {"accessToken": {"fineGrained": {"scoped": [None, {"entity": []}, {"permissions": [1, None]}]}}}],
)  # fmt: skip
def test_a_response_of_another_shape_is_read_as_far_as_possible(fake: FakeHub, auth: object) -> None:
    fake.auth = auth  # type: ignore[assignment]
    assert (whoami(TOKEN).name, whoami(TOKEN).role) == ("someone", "unknown")


@pytest.mark.fault("F1")
def test_a_wrong_token_is_an_access_error_that_does_not_show_it(fake: FakeHub) -> None:
    fake.refused = {CANARY}
    with pytest.raises(InvalidToken, match="rejected the token") as refused:
        whoami(TOKEN)
    assert CANARY not in str(refused.value)


def test_a_login_page_of_the_network_is_not_taken_for_the_hub(fake: FakeHub) -> None:
    fake.account = "portal"
    with pytest.raises(NetworkError, match="is not from the Hub"):
        whoami(TOKEN)
    assert isinstance(error_of(fake, "portal", None), NetworkError)


# -- what it may read --------------------------------------------------------------------------------------------------


def test_a_readable_repository_passes(fake: FakeHub) -> None:
    fake.repos["owner/name"] = "ok"
    check_access("owner/name", "model", TOKEN)
    check_access("owner/name", "dataset", TOKEN)
    assert fake.paths() == [f"/api/{kind}s/owner/name/auth-check" for kind in ("model", "dataset")]


def test_a_token_in_the_environment_is_not_sent_unless_passed(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    fake.repos["owner/name"] = "ok"
    check_access("owner/name", "model", None)
    assert fake.requests[0].authorization == ""


@pytest.mark.fault("F2")
def test_a_gated_model_is_distinguished_from_a_wrong_token(fake: FakeHub) -> None:
    gated, wrong = error_of(fake, "gated"), error_of(fake, "401")
    assert isinstance(gated, AccessError) and isinstance(wrong, InvalidToken)
    assert "licence" in gated.what and f"{fake.endpoint}/owner/name" in gated.what_to_do
    assert "rejected the token (401)" in wrong.what and "licence" not in str(wrong)


def test_a_gated_model_without_a_token_asks_for_one(fake: FakeHub) -> None:
    error = error_of(fake, "gated", token=None)
    assert isinstance(error, AccessError) and "HF_TOKEN" in error.what_to_do


def test_a_pending_or_rejected_request_gets_its_own_error(fake: FakeHub) -> None:
    waiting, rejected = error_of(fake, "awaiting"), error_of(fake, "rejected")
    assert "is still pending" in waiting.what and "awaiting a review" in waiting.why
    assert "authors rejected" in rejected.what
    for error in (waiting, rejected):
        assert isinstance(error, AccessError) and f"{fake.endpoint}/owner/name" in error.what_to_do


@pytest.mark.fault("F2")
def test_the_error_for_a_fine_grained_token_names_the_missing_box_and_its_page(fake: FakeHub) -> None:
    error = error_of(fake, "fine-grained")
    assert isinstance(error, AccessError)
    assert "fine-grained" in error.what and "gated repos" in error.what_to_do and GATED_TOKEN_PAGE in error.what_to_do


@pytest.mark.parametrize(("mood", "token"), [("404", TOKEN), ("404", None), ("private", TOKEN), ("private", None)])
def test_a_missing_repository_is_distinguished_from_a_gated_one(fake: FakeHub, mood: str, token: Secret | None) -> None:
    error = error_of(fake, mood, token)
    assert isinstance(error, AccessError) and "does not exist or is private" in error.what


@pytest.mark.fault("G1")
def test_another_rejection_quotes_the_hub_but_not_its_escapes(fake: FakeHub) -> None:
    error = error_of(fake, "403")
    assert isinstance(error, AccessError) and "You have no ␛[31mright" in error.why


def test_a_token_that_the_hub_repeats_is_redacted(fake: FakeHub) -> None:
    assert "***" in error_of(fake, "echo").why


@pytest.mark.parametrize("name", ["models/gemma/2b", "../etc", "owner/name?x=1", "own er/name", "", "owner/"])
def test_an_invalid_name_is_never_sent(fake: FakeHub, name: str) -> None:
    with pytest.raises(ConfigError, match="neither a local path"):
        check_access(name, "model", TOKEN)
    assert fake.requests == []


# -- at which commit ---------------------------------------------------------------------------------------------------


def test_a_branch_is_resolved_to_its_commit(fake: FakeHub) -> None:
    fake.repos["owner/name"] = "ok"
    assert commit_of("owner/name", "dataset", "main", TOKEN) == FIRST_COMMIT
    fake.commits["owner/name"] = "2" * 40
    assert commit_of("owner/name", "dataset", "main", TOKEN) == "2" * 40


def test_a_revision_that_does_not_exist_is_the_configurations_fault(fake: FakeHub) -> None:
    fake.repos["owner/name"] = "ok"
    with pytest.raises(ConfigError, match=r"no branch, tag or commit v1/\.\./x") as refused:
        commit_of("owner/name", "model", "v1/../x", TOKEN)
    assert f"{fake.endpoint}/owner/name" in refused.value.what_to_do
    assert fake.paths() == ["/api/models/owner/name/revision/v1%2F..%2Fx"]


# -- redirects ---------------------------------------------------------------------------------------------------------


def test_a_renamed_repository_is_followed_with_the_token(fake: FakeHub) -> None:
    fake.repos["owner/name"] = "redirect"
    check_access("owner/name", "model", TOKEN)
    assert [path.split("/")[1] for path in fake.paths()] == ["api", "moved"]
    assert {request.authorization for request in fake.requests} == {f"Bearer {CANARY}"}


def test_the_token_does_not_follow_to_another_host(fake: FakeHub) -> None:
    fake.repos["owner/name"] = "redirect elsewhere"
    check_access("owner/name", "model", TOKEN)
    assert [request.authorization for request in fake.elsewhere] == [""]


def test_a_redirect_to_a_host_that_requires_a_token_is_not_a_wrong_token(fake: FakeHub) -> None:
    fake.account = "redirect elsewhere"
    with pytest.raises(NetworkError, match="redirects to http://localhost") as refused:
        whoami(TOKEN)
    assert f"HF_ENDPOINT={fake.other_endpoint}" in refused.value.what_to_do
    assert [request.authorization for request in fake.elsewhere] == [""]


# -- no response -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F3")
@pytest.mark.parametrize("mood", ["429", "503", "418"])
def test_a_busy_hub_is_a_network_error_not_the_tokens_fault(fake: FakeHub, mood: str) -> None:
    error = error_of(fake, mood)
    assert isinstance(error, NetworkError) and mood in error.what


@pytest.mark.fault("F3")
def test_a_request_to_a_busy_hub_is_retried_but_not_forever(fake: FakeHub) -> None:
    fake.repos["owner/name"] = ["503", "429 briefly", "ok"]
    check_access("owner/name", "model", TOKEN)
    assert len(fake.requests) == 3
    error_of(fake, "503")
    assert len(fake.requests) == 6


@pytest.mark.parametrize(("mood", "seconds"), [("429", 3600), ("429 by the window", 155)])
def test_a_long_wait_is_reported_not_waited_for(fake: FakeHub, mood: str, seconds: int) -> None:
    assert f"in {seconds} s" in error_of(fake, mood).what_to_do
    assert len(fake.requests) == 1


@pytest.mark.fault("F4")
def test_a_hub_that_hangs_runs_into_the_timeout(fake: FakeHub) -> None:
    error = error_of(fake, "hang")
    assert isinstance(error, NetworkError) and "No data for 0.5 s" in error.why


def test_the_librarys_own_requests_have_the_timeout_too(fake: FakeHub) -> None:
    """Without our client, `model_info` waits as long as the server does."""
    limit_requests()
    error = mapped_error(fake, "hang")
    assert isinstance(error, NetworkError) and "does not respond" in error.what


@pytest.mark.fault("F4")
def test_a_truncated_response_is_not_an_unreachable_hub(fake: FakeHub) -> None:
    fake.account = "short"
    with pytest.raises(NetworkError, match="interrupted"):
        whoami(TOKEN)


@pytest.mark.fault("F4")
def test_a_refused_connection_names_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(NetworkError, match=f"Cannot reach the Hub at {endpoint}"):
        whoami(TOKEN)


@pytest.mark.parametrize(
    "endpoint", ["ftp://localhost", "nonsense", "http://[::1", "http://user:secret@nowhere.invalid"]
)
def test_an_invalid_endpoint_is_named_without_its_password(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(NetworkError, match="HF_ENDPOINT") as refused:
        whoami(TOKEN)
    assert endpoint.rpartition("@")[2] in refused.value.what and "secret" not in str(refused.value)
    assert "secret" not in page_of("a/b", "model")


@pytest.mark.fault("F4")
def test_a_server_without_encryption_and_a_dead_proxy_are_named(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint.replace("http:", "https:"))
    with pytest.raises(NetworkError, match="SSL"):
        whoami(TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{taken.getsockname()[1]}")
    close_session()  # a client reads the proxies when it is created
    with pytest.raises(NetworkError, match="HTTPS_PROXY"):
        whoami(TOKEN)
    close_session()


def test_offline_mode_is_named_as_the_reason(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE"):
        check_access("owner/name", "model", TOKEN)
    assert fake.requests == []


# -- exceptions of the library -----------------------------------------------------------------------------------------


def mapped_error(fake: FakeHub, mood: str, token: str | bool = CANARY) -> Stage3Error | None:
    """Our error for a library's exception, wrapped as transformers wraps it."""
    fake.repos["owner/name"] = mood
    try:
        HfApi(endpoint=fake.endpoint, token=token).model_info("owner/name")
    except Exception as error:
        try:
            raise ValueError("Can't find the config") from error
        except ValueError as wrapped:
            return as_hub_error(wrapped)
    return None


@pytest.mark.fault("F3")
def test_the_librarys_wrapped_errors_are_distinguished_too(fake: FakeHub) -> None:
    gated, member, missing, busy = (mapped_error(fake, mood) for mood in ("gated", "members", "404", "503"))
    assert isinstance(gated, AccessError) and "licence" in gated.what and "owner/name" in gated.what
    assert member is None
    assert isinstance(missing, AccessError) and "does not exist" in missing.what
    assert isinstance(busy, NetworkError)
    anonymous = mapped_error(fake, "members", token=False)
    assert isinstance(anonymous, AccessError) and "without a token" in anonymous.what
    page = mapped_error(fake, "portal")
    assert isinstance(page, NetworkError) and "not from the Hub" in page.what


def test_a_missing_file_of_a_repository_is_named(fake: FakeHub) -> None:
    fake.repos["owner/name"] = "ok"
    with pytest.raises(Exception) as failed:
        HfApi(endpoint=fake.endpoint, token=CANARY).get_hf_file_metadata(
            url=f"{fake.endpoint}/owner/name/resolve/main/sub/config.json"
        )
    error = as_hub_error(failed.value)
    assert isinstance(error, PreconditionError) and "owner/name on the Hub has no file sub/config.json" in error.what


@pytest.mark.parametrize(
    "error",
    [
        OSError("Consistency check failed: file should be of size 5 but has size 3 (model.safetensors)."),
        RuntimeError(
            "Data processing error: CAS service error : ReqwestMiddleware Error: Request failed after 5 retries"
        ),
    ],
)
def test_an_incomplete_file_is_an_interrupted_connection(error: Exception) -> None:
    known = as_hub_error(error)
    assert isinstance(known, NetworkError) and "interrupted" in known.what


def test_other_exceptions_are_not_mapped() -> None:
    assert as_hub_error(ValueError("something else")) is None
    assert as_hub_error(RuntimeError("CUDA error")) is None
    with pytest.raises(ValueError) as ours:
        __import__("json").loads("{")
    assert as_hub_error(ours.value) is None
