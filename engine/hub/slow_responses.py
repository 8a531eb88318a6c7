"""Connections that fail if a response is too slow, counted from the first byte of its headers.

The client's own timeout restarts with every byte, and its hooks run only once all headers are there: a server that sends a
byte of them now and then could block the program for hours.
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
    """Watch all connections that this client opens, also through a proxy. Slow ones raise as `response_limits.rejected`."""
    for transport in (client._transport, *client._mounts.values()):
        # httpcore's pool takes a network backend, but httpx has no option for it.
        pool = getattr(transport, "_pool", None)
        if pool is not None:
            pool._network_backend = _backend()(pool._network_backend)


@cache
def _backend() -> Callable[[NetworkBackend], NetworkBackend]:
    import httpcore2

    class RateLimitedBackend(httpcore2.NetworkBackend):
        def __init__(self, inner: NetworkBackend) -> None:
            self._inner = inner

        def connect_tcp(self, *args: Any, **kwargs: Any) -> NetworkStream:
            return _stream()(self._inner.connect_tcp(*args, **kwargs))

        def connect_unix_socket(self, *args: Any, **kwargs: Any) -> NetworkStream:
            return _stream()(self._inner.connect_unix_socket(*args, **kwargs))

        def sleep(self, seconds: float) -> None:
            self._inner.sleep(seconds)

    return RateLimitedBackend


@cache
def _stream() -> Callable[[NetworkStream], NetworkStream]:
    import httpcore2

    class RateLimitedStream(httpcore2.NetworkStream):
        """The budget starts with the first byte of a response: the Hub may take as long to begin as `read` waits."""

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

        def start_tls(self, *args: Any, **kwargs: Any) -> NetworkStream:
            return RateLimitedStream(self._inner.start_tls(*args, **kwargs))

        def get_extra_info(self, info: str) -> Any:
            return self._inner.get_extra_info(info)

    return RateLimitedStream
