"""The web server of `stage3-tui serve`: textual-serve, behind a token.

The first request brings the token in its address; it gets a cookie, and an address without the token. Everything else, the
socket too, needs the cookie: it is bound to the host, strict about other sites, and no script can read it. Needs the extra
`serve`.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp_jinja2
from aiohttp import web
from textual_serve.server import Server

from engine.core.errors import PreconditionError

COOKIE = "stage3_tui"
MAX_SCREENS = 8
"""Each is a process."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data:; connect-src 'self' ws: wss:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_ELSEWHERE = re.compile(r"<link[^>]*https?://[^>]*>")
"""The page's stylesheet of another server: nothing is fetched from anywhere else."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TokenServer(Server):
    def __init__(self, command: str, *, host: str, port: int, title: str, token: str) -> None:
        super().__init__(command, host=host, port=port, title=title)
        self._token = token
        self._screens = 0

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/?token={self._token}"

    def initialize_logging(self) -> None:
        """Ours is set up; theirs would print local variables."""

    async def on_startup(self, app: web.Application) -> None:
        """It does not listen yet: `_tell` follows."""

    def serve(self, debug: bool = False) -> None:
        """Serve until SIGINT or SIGTERM. Raises OSError where the port is taken."""
        web.run_app(self._make_app(), host=self.host, port=self.port, print=self._tell)

    def _tell(self, *_: object) -> None:
        """Called once it listens."""
        print(f"Open {self.address}\nCtrl+C ends it; the run is not touched.", flush=True)

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(self._guard())
        return app

    def _guard(self) -> Any:
        @web.middleware  # type: ignore[untyped-decorator]
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            given = request.query.get("token", "")
            if given and self._is_token(given):
                answer: web.StreamResponse = web.HTTPFound("/")
                answer.set_cookie(COOKIE, self._token, httponly=True, samesite="Strict", path="/")
                answer.headers.update(HEADERS)
                return answer
            if not self._is_token(request.cookies.get(COOKIE, "")) or not _same_site(request):
                raise web.HTTPForbidden(
                    text="The address needs the token that `stage3-tui serve` printed.\n", headers=HEADERS
                )
            response = await handler(request)
            if not response.prepared:
                response.headers.update(HEADERS)
            return response

        return guard

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    async def handle_index(self, request: web.Request) -> web.Response:  # type: ignore[override]
        """The page, with addresses as this browser reached it: through a tunnel they differ from the server's own."""
        context = {
            "font_size": 16,
            "app_websocket_url": f"{'wss' if request.secure else 'ws'}://{request.host}/ws",
            "config": {"static": {"url": "/static/"}},
            "application": {"name": self.title},
        }
        page = aiohttp_jinja2.render_string("app_index.html", request, context)
        return web.Response(text=_ELSEWHERE.sub("", page), content_type="text/html")

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        if self._screens >= MAX_SCREENS:
            raise web.HTTPServiceUnavailable(text=f"{MAX_SCREENS} screens are open already.\n")
        self._screens += 1
        try:
            return await super().handle_websocket(request)
        finally:
            self._screens -= 1


def _same_site(request: web.Request) -> bool:
    """Whether no other site asks: a browser names the origin of a socket."""
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.host


def serve(command: str, *, host: str, port: int, title: str) -> int:
    """Serve until Ctrl+C; returns the exit code. Raises PreconditionError if the port cannot be had."""
    server = TokenServer(command, host=host, port=port, title=title, token=secrets.token_urlsafe(24))
    try:
        server.serve()
    except OSError as error:
        raise PreconditionError(
            f"{host}:{port} cannot be listened on.",
            f"{error.strerror or error}.",
            "If another `serve` runs there, use its address; else give another --port.",
        ) from error
    return 0
