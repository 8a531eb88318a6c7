"""The web server of `stage3-tui serve`: textual-serve, behind a token.

The first request has the token in its address; the response sets a cookie and redirects to an address without the token.
All other requests, the WebSocket's included, need the cookie, which is bound to the host, SameSite=Strict and HttpOnly.
Needs the extra `serve`.
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
"""Browser screens open at the same time; each is a process."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data:; connect-src 'self' ws: wss:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_ELSEWHERE = re.compile(r"<link[^>]*https?://[^>]*>")
"""The page's stylesheet on another server, removed so that nothing is fetched from elsewhere."""

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
        """Do nothing: our logging is set up, and textual-serve's would print local variables."""

    async def on_startup(self, app: web.Application) -> None:
        """Print nothing: the server does not listen yet. `_print_address` follows."""

    def serve(self, debug: bool = False) -> None:
        """Serve until SIGINT or SIGTERM. Raises OSError if the port is in use."""
        web.run_app(self._make_app(), host=self.host, port=self.port, print=self._print_address)

    def _print_address(self, *_: object) -> None:
        """Called once the server listens."""
        print(f"Open {self.address}\nPress Ctrl+C to stop serving; the run is not affected.", flush=True)

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(self._guard())
        return app

    def _guard(self) -> Any:
        @web.middleware  # type: ignore[untyped-decorator]
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            given = request.query.get("token", "")
            if given and self._is_token(given):
                redirect: web.StreamResponse = web.HTTPFound("/")
                redirect.set_cookie(COOKIE, self._token, httponly=True, samesite="Strict", path="/")
                redirect.headers.update(HEADERS)
                return redirect
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
            raise web.HTTPServiceUnavailable(text=f"{MAX_SCREENS} screens are already open.\n")
        self._screens += 1
        try:
            return await super().handle_websocket(request)
        finally:
            self._screens -= 1


def _same_site(request: web.Request) -> bool:
    """Whether the request comes from this site: a browser sends the origin of a WebSocket."""
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.host


def serve(command: str, *, host: str, port: int, title: str) -> int:
    """Serve until Ctrl+C; returns the exit code. Raises PreconditionError if the server cannot listen on the port."""
    server = TokenServer(command, host=host, port=port, title=title, token=secrets.token_urlsafe(24))
    try:
        server.serve()
    except OSError as error:
        raise PreconditionError(
            f"Cannot listen on {host}:{port}.",
            f"{error.strerror or error}.",
            "If another `serve` is running there, use its address; otherwise, use another --port.",
        ) from error
    return 0
