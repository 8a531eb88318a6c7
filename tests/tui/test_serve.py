"""`stage3-tui serve`: the real server, over HTTP, over its socket, and in a real browser where one is installed."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

from engine.core import layout
from tests.support.headless_browser import browser_program, opened
from tests.support.made_up_run import make_run
from tests.tui.test_cli import ROOT
from tui.commands.serve import command_of

aiohttp = pytest.importorskip("aiohttp", reason="the extra serve is not installed")
pytest.importorskip("textual_serve", reason="the extra serve is not installed")

TOKEN = "hf_" + "W" * 34


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("serve") / "run", pairs=10)


@pytest.fixture(scope="module")
def address(run_folder: Path) -> Iterator[str]:
    """The address of a server for a finished run, with its token."""
    command = [sys.executable, "-m", "tui.cli", "serve", str(run_folder), "--port", str(free_port())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": TOKEN}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        yield found[0]
        server.terminate()
        server.wait(20)


def base_of(address: str) -> str:
    return address.split("/?")[0]


async def test_without_the_token_every_request_is_refused(address: str):
    async with aiohttp.ClientSession() as session:
        for path in ("/", "/ws", "/static/js/textual.js", "/?token=wrong", "/download/x"):
            async with session.get(base_of(address) + path, allow_redirects=False) as answer:
                assert answer.status == 403, path


async def test_the_token_becomes_a_cookie_and_leaves_the_address(address: str):
    async with aiohttp.ClientSession() as session, session.get(address, allow_redirects=False) as answer:
        assert answer.status == 302 and answer.headers["Location"] == "/"
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie


async def test_the_page_fetches_nothing_from_elsewhere(address: str):
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.get(address) as answer:
            page = await answer.text()
            assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]
        assert 'href="/static/css/xterm.css"' in page
        assert {url.split("/")[2] for url in re.findall(r'(?:https?|wss?)://[^"\s]+', page) if "w3.org" not in url} == {
            base_of(address).split("/")[2]
        }


async def test_a_page_from_another_site_cannot_open_the_socket(address: str):
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        await session.get(address)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"{base_of(address)}/ws", headers={"Origin": "http://elsewhere.example"})
        assert refused.value.status == 403


async def test_the_socket_draws_the_run_and_changes_nothing(address: str, run_folder: Path):
    screen = pyte.Screen(100, 30)
    stream = pyte.ByteStream(screen)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        await session.get(address)
        async with session.ws_connect(f"{base_of(address)}/ws?width=100&height=30") as connection:

            async def until(holds: Callable[[str], bool]) -> None:
                end = time.monotonic() + 60
                while not holds("\n".join(screen.display)):
                    assert time.monotonic() < end, "\n".join(screen.display)
                    try:
                        message = await connection.receive(timeout=0.5)
                    except TimeoutError:
                        continue
                    assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), message
                    if message.type == aiohttp.WSMsgType.BINARY:
                        stream.feed(message.data)

            await until(lambda text: "Workspace" in text and "watching, read-only" in text)
            await connection.send_json(["stdin", "9"])
            await until(lambda text: "9  Training" in text)
            await connection.send_json(["stdin", "vvx"])
            await until(lambda text: "is read-only and" in text)
            assert not (run_folder / layout.CURVES_CSV).exists() and not (run_folder / layout.STOP_REQUEST).exists()


async def test_a_browser_shows_the_run(address: str, tmp_path: Path):
    browser_program()
    async with opened(address, tmp_path / "profile") as page:
        await page.until("document.body.classList.contains('-first-byte')")
        await page.value("document.querySelector('.xterm-helper-textarea').focus()")
        await asyncio.sleep(3)
        before = await page.picture(tmp_path / "before.png")
        assert await page.picture(tmp_path / "still.png") == before
        await page.key("l")
        for _ in range(40):
            if await page.picture(tmp_path / "after.png") != before:
                break
            await asyncio.sleep(0.25)
        else:
            raise AssertionError("the key changed nothing")
        assert await page.value("getComputedStyle(document.querySelector('.xterm-helper-textarea')).opacity") == "0"
        assert await page.value("location.search") == ""


def test_control_must_be_requested(tmp_path: Path):
    assert "--hands-off" in command_of(tmp_path, control=False) and "--hands-off" not in command_of(
        tmp_path, control=True
    )
    assert command_of(tmp_path / "a b", control=False).startswith("exec ")
