"""The browser login: a page, a code, and an end to the polling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest
from huggingface_hub.utils import _oauth_device

from engine.core.errors import AccessError, ExitCode, NetworkError, Stopped
from engine.hub import LoginCode, await_token, request_code
from engine.run.stop import StopToken
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.hub_in_process import use

TOKEN = "hf_oauth_FromTheBrowser12345"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as server:
        use(server, monkeypatch, tmp_path / "home")
        server.login_seconds, server.login_interval = 2, 0.01
        yield server


def log_in(stop: StopToken | None = None) -> str:
    return await_token(request_code(), stop or StopToken()).reveal()


def test_page_and_code_are_shown_first_and_the_token_arrives_after_the_login(fake: FakeHub) -> None:
    fake.login = ["authorization_pending", "authorization_pending", TOKEN]
    login = request_code()
    assert (login.page, login.code, login.seconds) == (f"{fake.endpoint}/device", "ABCD-1234", 2)
    assert "dev-123" not in repr(login)
    assert await_token(login, StopToken()).reveal() == TOKEN
    assert fake.paths() == ["/oauth/device", *["/oauth/token"] * 3]


def test_the_librarys_own_login_gets_the_same_from_the_same_hub(fake: FakeHub) -> None:
    """huggingface_hub understands the fake's login responses."""
    fake.login_interval = 0
    info = _oauth_device.request_device_code()
    assert (info["user_code"], info["verification_uri"]) == ("ABCD-1234", f"{fake.endpoint}/device")
    assert _oauth_device.poll_device_token(info)["access_token"] == TOKEN


def test_a_login_writes_and_prints_nothing(fake: FakeHub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log_in()
    assert not (tmp_path / "home").exists() and capfd.readouterr() == ("", "")


def test_a_brief_outage_does_not_end_a_login(fake: FakeHub) -> None:
    fake.login = ["503", "portal", "short", TOKEN]
    assert log_in() == TOKEN


@pytest.mark.parametrize(
    ("response", "what"),
    [
        ("access_denied", "declined"),
        ("expired_token", "timed out"),
        ("something_\x1b[2Jnew", "failed"),
        ("authorization_pending", "timed out"),
    ],
)
def test_the_error_names_why_a_login_failed(fake: FakeHub, response: str, what: str) -> None:
    fake.login, fake.login_seconds = [response], 0.2
    with pytest.raises(AccessError, match=what) as ended:
        log_in()
    assert "HF_TOKEN" in ended.value.what_to_do and "\x1b" not in str(ended.value)


def test_a_hub_that_fails_until_the_end_is_a_network_error(fake: FakeHub) -> None:
    fake.login, fake.login_seconds = ["503"], 0.2
    with pytest.raises(NetworkError, match="503"):
        log_in()


class Clock(StopToken):
    """Records the requested waits without sleeping."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return self.requested


def test_slow_down_lengthens_the_polling_interval(fake: FakeHub) -> None:
    fake.login, fake.login_interval, fake.login_seconds = ["slow_down", "authorization_pending", TOKEN], 3, 900
    clock = Clock()
    assert log_in(clock) == TOKEN
    assert clock.waits == [3, 8, 8]


def test_the_default_polling_interval_is_five_seconds(fake: FakeHub) -> None:
    fake.login_interval, fake.login_seconds = 0, 900
    clock = Clock()
    log_in(clock)
    assert clock.waits == [5, 5]


def test_a_stop_request_interrupts_the_wait(fake: FakeHub) -> None:
    fake.login, fake.login_interval, fake.login_seconds = ["authorization_pending"], 60, 900
    stop = StopToken()
    Timer(0.1, lambda: stop.request("SIGTERM", ExitCode.TERMINATED)).start()
    with pytest.raises(Stopped):
        log_in(stop)
    assert fake.paths() == ["/oauth/device"], "there was another request after the stop"


def test_a_login_waits_at_most_a_quarter_of_an_hour_and_accepts_only_web_pages(fake: FakeHub) -> None:
    fake.login_seconds = 10**9
    assert request_code().seconds == 900
    fake.login_page = "javascript:alert(1)"
    with pytest.raises(NetworkError, match="not from the Hub"):
        request_code()


def test_the_long_code_is_not_shown(fake: FakeHub) -> None:
    login: LoginCode = request_code()
    assert "dev-123" not in f"{login} {login!r}"
