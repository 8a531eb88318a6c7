"""A real headless browser, driven over its debugging protocol (CDP): open a page, type, read what it shows."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def browser_program() -> str:
    """The path of a browser; skips the test where none is installed."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium is installed")
    return found


class Page:
    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json(timeout=30)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    async def value(self, expression: str) -> Any:
        return (await self.ask("Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")

    async def until(self, expression: str, seconds: float = 40) -> None:
        for _ in range(int(seconds / 0.25)):
            if await self.value(expression):
                return
            await asyncio.sleep(0.25)
        raise AssertionError(
            f"{expression} did not become true; the page is {await self.value('document.body.outerHTML')}"
        )

    async def key(self, text: str) -> None:
        await self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, key=text)
        await self.ask("Input.dispatchKeyEvent", type="keyUp", key=text)

    async def picture(self, path: Path) -> bytes:
        data = base64.b64decode((await self.ask("Page.captureScreenshot", format="png"))["data"])
        path.write_bytes(data)
        return data


@asynccontextmanager
async def opened(address: str, profile: Path) -> AsyncIterator[Page]:
    """Open a page at `address`."""
    import aiohttp

    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1300,800"]
    command = [browser_program(), *flags, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = profile / "DevToolsActivePort"
        for _ in range(160):
            if port_file.exists() and port_file.read_text().strip():
                break
            await asyncio.sleep(0.25)
        port = port_file.read_text().splitlines()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                targets = await answer.json()
            page = next(target for target in targets if target["type"] == "page")
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                shown = Page(socket)
                await shown.ask("Page.navigate", url=address)
                yield shown
    finally:
        process.terminate()
        process.wait(20)
