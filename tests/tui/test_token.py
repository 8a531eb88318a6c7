"""The token: typed, pasted or fetched with a browser, passed to the engine once, and never shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from textual import events

from engine.run.folder import Run
from engine.security.secrets import Secret
from tests.support.demo_on_hub import options_from_the_hub, put_demo_on
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.hub_in_process import use
from tests.support.idle_wizard import Sessions, open_stage, screen_text, until
from tui.runs.runner import Runner
from tui.widgets.token_field import TokenField
from tui.wizard.app import Wizard

TOKEN = "hf_aVerySecretTokenOf1234567890"


@pytest.mark.fault("G10")
async def test_the_token_is_passed_to_the_engine_and_shown_nowhere(runner: Runner, sessions: Sessions, caplog):
    caplog.set_level(logging.DEBUG)
    messages: list[str] = []
    app = Wizard(runner)

    def hear(message: object) -> None:
        if not isinstance(message, (events.Key, events.Paste)):
            messages.append(repr(message))

    async with app.run_test(size=(100, 40), message_hook=hear) as pilot:
        await open_stage(pilot, app, "credentials")
        field = app.main.view.query_one(TokenField)
        before = app.export_screenshot()
        field.focus()
        await pilot.press(*TOKEN[:12])
        field.post_message(events.Paste(f"  {TOKEN[12:20]}\n"))
        await pilot.press(*TOKEN[20:], "ctrl+c", "ctrl+x")
        await pilot.pause(0.2)
        full = app.export_screenshot()
        assert "••••••••" in full and "••••••••" not in before
        texts = [full, repr(field), repr(app.screen), str(app.tree), app.clipboard, *messages]
        texts += [repr(worker) for worker in app.workers]
        field.focus()
        await pilot.press("enter")
        await until(pilot, lambda: sessions.made)
        texts += [app.export_screenshot(), repr(field), *messages]
        assert not field.filled
    assert sessions.last.context.token.reveal() == TOKEN
    assert sessions.last.calls == [("credentials", None)]
    for text in (*texts, caplog.text):
        assert not any(TOKEN[i : i + 6] in text for i in range(3, len(TOKEN) - 6))


async def test_the_first_keys_do_not_end_up_in_the_token(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        await open_stage(pilot, app, "credentials")
        await pilot.press("j")
        await until(pilot, lambda: app.main.selected == "dependencies")


async def test_esc_leaves_the_field_and_letters_are_keys_again(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        await open_stage(pilot, app, "credentials")
        await pilot.press("tab", "j", "escape")
        assert app.main.view.query_one(TokenField).filled
        await pilot.press("j")
        await until(pilot, lambda: app.main.selected == "dependencies")


def test_the_length_of_a_token_does_not_show():
    short, long = TokenField(), TokenField()
    short.on_paste(events.Paste("hf_1"))
    long.on_paste(events.Paste(" 'hf_" + "1" * 90 + "'\r\n"))
    assert short.render().plain == long.render().plain
    long.clear()
    assert not long.filled


@pytest.mark.fault("G9")
async def test_a_crash_prints_no_locals_and_no_token(runner: Runner, capsys, caplog):
    app = Wizard(runner)

    def broken() -> None:
        secret = Secret(TOKEN)
        plain = secret.reveal()
        raise RuntimeError(f"something broke after {len(plain)} characters")

    with pytest.raises(RuntimeError):
        async with app.run_test(size=(100, 30)) as pilot:
            app.call_later(broken)
            await pilot.pause(0.3)
    assert app.return_code == 1
    assert "RuntimeError" in app.crashed
    output = capsys.readouterr()
    assert TOKEN not in output.out + output.err + caplog.text
    assert "broken" in caplog.text, "the traceback is in the log"


# -- the login with a browser --------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with the demo on it that requires a token, and no browser login yet."""
    with fake_hub() as server:
        use(server, monkeypatch, tmp_path / "home")
        put_demo_on(server)
        server.login, server.login_interval = ["authorization_pending"], 0.05
        yield server


async def test_d_logs_in_with_a_browser_and_the_run_uses_the_token(
    hub: FakeHub, tmp_path: Path, config: Callable[..., object]
):
    run = Run(tmp_path / "run")
    run.acquire()
    runner = Runner(config(**{**options_from_the_hub(), "output_dir": run.folder}), run)
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        await open_stage(pilot, app, "credentials")
        await pilot.press("d")
        await until(pilot, lambda: "ABCD-1234" in screen_text(app), "the code", 30)
        shown = screen_text(app)
        assert "Waiting for you: open" in shown and shown.count("ABCD-1234") == 1
        await pilot.press("c")
        await until(pilot, lambda: app.clipboard == f"{hub.endpoint}/device", "the page to open")
        hub.login = [TOKEN]
        await until(pilot, lambda: not runner.running, "the stage's end", 30)
        await app.tick()
        await pilot.pause()
        after = screen_text(app)
    run.release()
    assert runner.snapshot().stages["credentials"].status == "done", after
    assert "Waiting for you" not in after and TOKEN not in after
    assert runner.token is not None and runner.token.reveal() == TOKEN
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not holders
