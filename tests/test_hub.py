"""The Hub, played on localhost: every refusal is told apart, takes bounded time, and never shows the token."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from engine import hub
from engine.errors import AccessError, ConfigError, NetworkError, Stage3Error
from engine.hub import Account, check_access, explained, find_token, whoami
from engine.secrets import Secret
from tests.fake_hub import FakeHub, fake_hub

CANARY = "hf_CanaryCanaryCanaryCanary"
TOKEN = Secret(CANARY)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(hub, "RETRY_WAITS_SECONDS", (0.01, 0.02))
    with fake_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token; returns where the stored one would be."""
    for name in hub.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf/token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "hf/stored_tokens"))
    return tmp_path / "hf/token"


def refusal(fake: FakeHub, mood: str, token: Secret | None = TOKEN) -> Stage3Error:
    """The error of a repository in this mood; no error of the Hub shows the token."""
    fake.repos["owner/name"] = mood
    with pytest.raises(Stage3Error) as refused:
        check_access("owner/name", "model", token)
    assert CANARY not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.what_to_do
    return refused.value


# -- whose token -------------------------------------------------------------------------------------------------------


def test_whoami_names_the_account_and_the_role(fake: FakeHub) -> None:
    fake.role = "fineGrained"
    assert whoami(TOKEN) == Account("someone", "fineGrained", "t")
    assert fake.requests == [("/api/whoami-v2", f"Bearer {CANARY}")]


def test_a_wrong_token_is_an_access_error_that_does_not_show_it(fake: FakeHub) -> None:
    fake.account = "401"
    with pytest.raises(AccessError, match="not accepted") as refused:
        whoami(TOKEN)
    assert CANARY not in str(refused.value)


def test_a_login_page_of_the_network_is_not_taken_for_the_hub(fake: FakeHub) -> None:
    fake.account = "portal"
    with pytest.raises(NetworkError, match="not the Hub's answer"):
        whoami(TOKEN)


# -- what it may read --------------------------------------------------------------------------------------------------


def test_a_repository_that_may_be_read_passes(fake: FakeHub) -> None:
    fake.repos["owner/name"] = "ok"
    check_access("owner/name", "model", TOKEN)
    check_access("owner/name", "dataset", TOKEN)
    assert [path for path, _ in fake.requests] == [
        f"/api/{kind}s/owner/name/auth-check" for kind in ("model", "dataset")
    ]


def test_without_a_token_nothing_is_sent_though_one_is_stored(
    fake: FakeHub, no_login: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    fake.repos["owner/name"] = "ok"
    check_access("owner/name", "model", None)
    assert fake.requests[0][1] == ""


def test_a_renamed_repository_is_followed(fake: FakeHub) -> None:
    fake.repos["owner/name"] = "redirect"
    check_access("owner/name", "model", TOKEN)
    assert [path.split("/")[1] for path, _ in fake.requests] == ["api", "moved"]


def test_a_gated_model_is_told_apart_from_a_wrong_token(fake: FakeHub) -> None:
    gated, wrong = refusal(fake, "gated"), refusal(fake, "401")
    assert isinstance(gated, AccessError) and isinstance(wrong, AccessError)
    assert "licence" in gated.what and f"{fake.endpoint}/owner/name" in gated.what_to_do
    assert "not accepted (401)" in wrong.what and "licence" not in str(wrong)


def test_a_gated_model_without_a_token_asks_for_one(fake: FakeHub) -> None:
    error = refusal(fake, "gated", token=None)
    assert isinstance(error, AccessError) and "HF_TOKEN" in error.what_to_do


def test_a_fine_grained_token_without_its_box_is_told_which_box(fake: FakeHub) -> None:
    error = refusal(fake, "fine-grained")
    assert isinstance(error, AccessError)
    assert "fine-grained" in error.what and "gated repos" in error.what_to_do


@pytest.mark.parametrize(("mood", "token"), [("404", TOKEN), ("404", None), ("private", TOKEN), ("private", None)])
def test_a_missing_repository_is_told_apart_from_a_gated_one(fake: FakeHub, mood: str, token: Secret | None) -> None:
    error = refusal(fake, mood, token)
    assert isinstance(error, AccessError) and "not there, or private" in error.what


def test_another_refusal_shows_the_hubs_words_but_not_its_escapes(fake: FakeHub) -> None:
    error = refusal(fake, "403")
    assert isinstance(error, AccessError) and "You have no ␛[31mright" in error.why


def test_a_hub_that_repeats_the_token_does_not_make_us_repeat_it(fake: FakeHub) -> None:
    assert "***" in refusal(fake, "echo").why


@pytest.mark.parametrize("name", ["models/gemma/2b", "../etc", "owner/name?x=1", "own er/name", "", "owner/"])
def test_what_is_no_name_is_never_sent(fake: FakeHub, name: str) -> None:
    with pytest.raises(ConfigError, match="neither a path here"):
        check_access(name, "model", TOKEN)
    assert fake.requests == []


# -- no answer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mood", ["429", "503", "418"])
def test_a_busy_hub_is_the_networks_trouble_not_the_tokens(fake: FakeHub, mood: str) -> None:
    error = refusal(fake, mood)
    assert isinstance(error, NetworkError) and mood in error.what


def test_a_busy_hub_is_asked_again_but_not_for_ever(fake: FakeHub) -> None:
    fake.repos["owner/name"] = ["503", "429 briefly", "ok"]
    check_access("owner/name", "model", TOKEN)
    assert len(fake.requests) == 3
    refusal(fake, "503")
    assert len(fake.requests) == 6


def test_a_long_wait_is_told_not_waited_for(fake: FakeHub) -> None:
    assert "in 3600 s" in refusal(fake, "429").what_to_do
    assert len(fake.requests) == 1


def test_a_hub_that_hangs_takes_bounded_time(fake: FakeHub) -> None:
    started = time.monotonic()
    assert isinstance(refusal(fake, "hang"), NetworkError)
    assert time.monotonic() - started < 5


def test_a_refused_connection_names_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(NetworkError, match=endpoint):
        whoami(TOKEN)


def test_offline_mode_is_named_as_the_reason(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE"):
        check_access("owner/name", "model", TOKEN)
    assert fake.requests == []


# -- which token -------------------------------------------------------------------------------------------------------


def test_the_given_token_comes_before_the_variable_and_the_variable_before_the_login(
    no_login: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_token(None) is None
    no_login.parent.mkdir()
    no_login.write_text("hf_stored\n")
    assert source_and_value(None) == (f"the login stored in {no_login}", "hf_stored")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_old")
    assert source_and_value(None) == ("the variable HUGGING_FACE_HUB_TOKEN", "hf_old")
    monkeypatch.setenv("HF_TOKEN", " hf_variable\n")
    assert source_and_value(None) == ("the variable HF_TOKEN", "hf_variable")
    assert source_and_value(Secret("'hf_given'")) == ("given to this run", "hf_given")


def source_and_value(given: Secret | None) -> tuple[str, str]:
    found = find_token(given)
    assert found is not None
    return found.source, found.secret.reveal()


@pytest.mark.parametrize("value", ["hf_a b", "hf_ü", "hf_a\nhf_b", "''"])
def test_what_can_be_no_token_is_refused_unseen(value: str) -> None:
    with pytest.raises(AccessError, match="is no token") as refused:
        find_token(Secret(value))
    assert value not in str(refused.value)


# -- exceptions of the library -----------------------------------------------------------------------------------------


def test_the_librarys_wrapped_errors_are_told_apart_too(fake: FakeHub, tmp_path: Path) -> None:
    def why(mood: str) -> Stage3Error | None:
        fake.repos["owner/name"] = mood
        try:
            huggingface_hub.HfApi(endpoint=fake.endpoint, token=CANARY).model_info("owner/name")
        except Exception as error:
            try:
                raise ValueError("Can't find the config") from error
            except ValueError as wrapped:
                return explained(wrapped, TOKEN)
        return None

    gated, missing, busy = why("gated"), why("404"), why("503")
    assert isinstance(gated, AccessError) and "licence" in gated.what and "owner/name" in gated.what
    assert isinstance(missing, AccessError) and "not there" in missing.what
    assert isinstance(busy, NetworkError)
    assert explained(ValueError("something else")) is None
