"""Limit huggingface_hub during a push: on its own, it waits forever, and sleeps for as long as a server asks."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from engine.core.errors import NetworkError
from engine.core.failpoints import failpoint
from engine.hub.client import MAX_WAIT_SECONDS
from engine.hub.responses import BUSY, retry_after
from engine.run.stop import StopToken

if TYPE_CHECKING:
    from httpx2 import Client, Request, Response

TIMEOUT_SECONDS = 60.0
"""For connecting, and for every pause in sending or receiving."""
TRIES = 3
"""Attempts per request if the Hub is busy or does not respond."""
CONFLICT = 409
"""The status for which the client retries at once: two repositories are created at the same time."""


class BlockedRequest(Exception):
    """A response after which no further attempt is made."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"status {response.status_code}")
        self.response = response


class RequestLimiter:
    """Hooks called before every request and after every response."""

    def __init__(self, stop: StopToken) -> None:
        self._stop = stop
        self._tries: Counter[tuple[str, str, bytes]] = Counter()
        self._lock = Lock()  # files are uploaded by several threads
        self.last_error_response: Response | None = None
        """The most recent error response."""

    def before(self, request: Request) -> None:
        """Raises Stopped if a stop is requested, NetworkError after too many attempts."""
        self._stop.raise_if_requested()
        with self._lock:
            self._tries[_key(request)] += 1
            tries = self._tries[_key(request)]
        if tries > TRIES:
            last = self.last_error_response
            if last is not None and _key(last.request) == _key(request):
                raise BlockedRequest(last)  # otherwise the client would retry forever
            raise NetworkError(
                f"The Hub did not respond to {TRIES} attempts in a row.",
                f"Each request waited {TIMEOUT_SECONDS:.0f} s.",
                "Check the network, HTTPS_PROXY and HF_ENDPOINT.",
            )

    def after(self, response: Response) -> None:
        """Raises BlockedRequest if the Hub is busy and attempts are used up, or its Retry-After is too long."""
        if response.status_code >= 400:
            self.last_error_response = response
        if response.status_code not in (*BUSY, CONFLICT):
            with self._lock:
                del self._tries[_key(response.request)]  # the same request later starts a new count
        elif response.status_code in BUSY:
            out_of_tries = self._tries[_key(response.request)] >= TRIES
            if out_of_tries or retry_after(response) > MAX_WAIT_SECONDS:
                response.read()
                raise BlockedRequest(response)


class StoppableBytes(io.BytesIO):
    """Bytes to upload; reading them raises Stopped if a stop is requested. Not a path, because paths go through Xet, whose
    transfers cannot be limited here.
    """

    def __init__(self, data: bytes, stop: StopToken) -> None:
        super().__init__(data)
        self._stop = stop

    def read(self, size: int | None = -1) -> bytes:
        self._stop.raise_if_requested()
        failpoint("push")
        return super().read(size)


@contextmanager
def limited_requests(stop: StopToken) -> Iterator[RequestLimiter]:
    """Limit every request of huggingface_hub within this block."""
    import httpx2
    from huggingface_hub.utils import _http, set_client_factory

    previous = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    limiter = RequestLimiter(stop)

    def limited_client() -> Client:
        client: Client = previous()
        client.timeout = httpx2.Timeout(TIMEOUT_SECONDS)
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks.get("request", []), limiter.before],
            "response": [*hooks.get("response", []), limiter.after],
        }
        return client

    # Its warnings show signed upload URLs, which grant write access.
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    set_client_factory(limited_client)
    try:
        yield limiter
    finally:
        set_client_factory(previous)
        log.setLevel(level)


def _key(request: Request) -> tuple[str, str, bytes]:
    """Identifies attempts of the same request. Checks of uploads share one URL but differ in their bodies."""
    try:
        return request.method, str(request.url), request.content
    except RuntimeError:  # a stream, whose URL is unique
        return request.method, str(request.url), b""
