"""Bounds for huggingface_hub while it pushes: it waits without a limit, and sleeps for as long as a server says."""

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
from engine.hub.client import LONGEST_WAIT_SECONDS
from engine.hub.responses import BUSY, retry_after
from engine.run.stop import StopToken

if TYPE_CHECKING:
    from httpx2 import Client, Request, Response

TIMEOUT_SECONDS = 60.0
"""For the connection, and for every pause in what is sent or answered."""
TRIES = 3
"""Of one request that meets a busy Hub, or no answer."""
CONFLICT = 409
"""The client asks again at once when two repositories are made at the same time."""


class BlockedRequest(Exception):
    """An answer that is not waited for any longer."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"status {response.status_code}")
        self.response = response


class RequestLimiter:
    """Sees every request before it is sent, and every answer."""

    def __init__(self, stop: StopToken) -> None:
        self._stop = stop
        self._tries: Counter[tuple[str, str, bytes]] = Counter()
        self._lock = Lock()  # files are uploaded by several threads
        self.last_refusal: Response | None = None
        """The newest answer that was no success."""

    def before(self, request: Request) -> None:
        """Raises Stopped if that is asked for, NetworkError for one try too many."""
        self._stop.raise_if_requested()
        with self._lock:
            self._tries[_key(request)] += 1
            tries = self._tries[_key(request)]
        if tries > TRIES:
            last = self.last_refusal
            if last is not None and _key(last.request) == _key(request):
                raise BlockedRequest(last)  # the client asks again by itself, and would for ever
            raise NetworkError(
                f"The Hub did not respond {TRIES} times in a row.",
                f"Each request waited {TIMEOUT_SECONDS:.0f} s.",
                "Check the network, HTTPS_PROXY and HF_ENDPOINT.",
            )

    def after(self, response: Response) -> None:
        """Raises BlockedRequest for a busy Hub, when it was asked often enough or wants to be waited for too long."""
        if response.status_code >= 400:
            self.last_refusal = response
        if response.status_code not in (*BUSY, CONFLICT):
            with self._lock:
                del self._tries[_key(response.request)]  # that is an answer; the next time it is another question
        elif response.status_code in BUSY:
            asked_enough = self._tries[_key(response.request)] >= TRIES
            if asked_enough or retry_after(response) > LONGEST_WAIT_SECONDS:
                response.read()
                raise BlockedRequest(response)


class StoppableBytes(io.BytesIO):
    """Bytes to upload; reading them raises Stopped once that is asked for. Not a path: a path would go through Xet, whose
    transfers have no limit that could be set here.
    """

    def __init__(self, data: bytes, stop: StopToken) -> None:
        super().__init__(data)
        self._stop = stop

    def read(self, size: int | None = -1) -> bytes:
        self._stop.raise_if_requested()
        failpoint("push")
        return super().read(size)


@contextmanager
def bounded(stop: StopToken) -> Iterator[RequestLimiter]:
    """Let every request that huggingface_hub makes in this block be bounded; afterwards all is as it was."""
    import httpx2
    from huggingface_hub.utils import _http, set_client_factory

    before = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    watch = RequestLimiter(stop)

    def client() -> Client:
        made: Client = before()
        made.timeout = httpx2.Timeout(TIMEOUT_SECONDS)
        hooks = made.event_hooks
        made.event_hooks = {
            "request": [*hooks.get("request", []), watch.before],
            "response": [*hooks.get("response", []), watch.after],
        }
        return made

    # Its warnings show the addresses of uploads, which are signed: who has one may write there.
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    set_client_factory(client)
    try:
        yield watch
    finally:
        set_client_factory(before)
        log.setLevel(level)


def _key(request: Request) -> tuple[str, str, bytes]:
    """What makes two requests the same one, tried again: the check of every upload has one address, and its own body."""
    try:
        return request.method, str(request.url), request.content
    except RuntimeError:  # a stream: its address is its own
        return request.method, str(request.url), b""
