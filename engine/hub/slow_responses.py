"""Connections on which an answer may come no slower than any line, from the first byte of its headers on.

The client's own limit begins anew with every byte, and its hooks see an answer only once all headers are there: a Hub, or what
stands in its place, that sends a byte of them now and then would hold the program for hours.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from engine.core.response_limits import ResponseBudget

if TYPE_CHECKING:
    from collections.abc import Callable

    from httpcore2 import NetworkBackend, NetworkStream
    from httpx2 import Client


def limit_read_rate(client: Client) -> None:
    """Watch all that this client will open, through a proxy too. What is too slow raises as `response_limits.rejected`."""
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)  # httpx has no option for it, and httpcore's pool has
        if pool is not None:
            pool._network_backend = _backend()(pool._network_backend)


@cache
def _backend() -> Callable[[NetworkBackend], NetworkBackend]:
    import httpcore2

    class Watching(httpcore2.NetworkBackend):
        def __init__(self, inner: NetworkBackend) -> None:
            self._inner = inner

        def connect_tcp(self, *given: Any, **more: Any) -> NetworkStream:
            return _stream()(self._inner.connect_tcp(*given, **more))

        def connect_unix_socket(self, *given: Any, **more: Any) -> NetworkStream:
            return _stream()(self._inner.connect_unix_socket(*given, **more))

        def sleep(self, seconds: float) -> None:
            self._inner.sleep(seconds)

    return Watching


@cache
def _stream() -> Callable[[NetworkStream], NetworkStream]:
    import httpcore2

    class Watched(httpcore2.NetworkStream):
        """Counts from the first byte after the last one that was sent: until then the Hub may think, as long as `read` waits."""

        def __init__(self, inner: NetworkStream) -> None:
            self._inner = inner
            self._budget: ResponseBudget | None = None

        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            data = self._inner.read(max_bytes, timeout)
            self._budget = self._budget or ResponseBudget(None)
            self._budget.received(len(data))
            return data

        def write(self, buffer: bytes, timeout: float | None = None) -> None:
            self._budget = None
            self._inner.write(buffer, timeout)

        def close(self) -> None:
            self._inner.close()

        def start_tls(self, *given: Any, **more: Any) -> NetworkStream:
            return Watched(self._inner.start_tls(*given, **more))

        def get_extra_info(self, info: str) -> Any:
            return self._inner.get_extra_info(info)

    return Watched
