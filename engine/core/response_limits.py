"""Limits on HTTP responses: bytes, total time, and the size after decompression.

An HTTP client restarts its own timeouts with every byte, and decompresses whatever it receives: a byte per second never times
out, and three megabytes of gzip can fill the memory. `limit_response` and `limit_response_async` are hooks that wrap each
response before its body is read.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from engine.core.sizes import format_size

if TYPE_CHECKING:
    from httpx2 import AsyncByteStream, Response, SyncByteStream

MAX_RESPONSE_BYTES = 64 << 20
"""Bytes of a response after decompression, except for files. The listing of a large repository has a few million."""
SLOW_START_SECONDS = 30.0
"""Seconds before `MIN_BYTES_PER_SECOND` is enforced."""
MIN_BYTES_PER_SECOND = 1024.0
"""On average over the whole response. A modem of 1991 was faster."""
_CHUNK_BYTES = 1 << 16
_COMPRESSED = ("gzip", "x-gzip", "deflate")


class ResponseBudget:
    """The bytes and the time that one response may take. Its methods raise the error of `rejected`."""

    def __init__(self, max_bytes: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        """max_bytes   None for a file that goes to disk and whose length was announced"""
        self._max_bytes, self._clock, self._started = max_bytes, clock, clock()
        self._received = self._decompressed = 0

    def received(self, size: int) -> None:
        """Count bytes that came over the network."""
        self._received += size
        if self._clock() - self._started > SLOW_START_SECONDS + self._received / MIN_BYTES_PER_SECOND:
            raise rejected(
                f"It sent only {self._received:,} bytes in {self._clock() - self._started:.0f} s, which is too slow"
            )
        self._require_at_most(self._received)

    def decompressed(self, size: int) -> None:
        """Count bytes that came out of the decompressor."""
        self._decompressed += size
        self._require_at_most(self._decompressed, MAX_RESPONSE_BYTES)

    def _require_at_most(self, size: int, default: int | None = None) -> None:
        max_bytes = default if self._max_bytes is None else self._max_bytes
        if max_bytes is not None and size > max_bytes:
            raise rejected(f"Its response is larger than {format_size(max_bytes)}")


def rejected(why: str) -> Exception:
    """An error of the client's own type, so that callers handle it. The server is at fault, and a retry would not help."""
    return _rejection_type()(why)


@cache
def _rejection_type() -> type[Exception]:
    import httpx2

    class ResponseRejected(httpx2.RemoteProtocolError):
        """The rest of the response is not read."""

    return ResponseRejected


def is_rejected_response(error: BaseException) -> bool:
    return isinstance(error, _rejection_type())


def decompressed(blocks: Iterator[bytes], encoding: str, budget: ResponseBudget) -> Iterator[bytes]:
    """The decompressed body, chunk by chunk. Raises the error of `rejected`."""
    unpack = _decompressor(encoding)
    for block in blocks:
        budget.received(len(block))
        for piece in unpack(block):
            budget.decompressed(len(piece))
            yield piece


def _decompressor(encoding: str) -> Callable[[bytes], Iterator[bytes]]:
    if encoding in ("", "identity"):
        return lambda block: iter([block])
    if encoding not in _COMPRESSED:
        raise rejected(f"Its response is compressed with {encoding[:40]!a}, which was not requested")
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def unpack(block: bytes) -> Iterator[bytes]:
        while block:
            try:
                piece = decompressor.decompress(block, _CHUNK_BYTES)
            except zlib.error as error:
                raise rejected(f"Its response is not compressed as its header claims ({error})") from None
            if piece:
                yield piece
            block = decompressor.unconsumed_tail

    return unpack


# -- hooks -------------------------------------------------------------------------------------------------------------


def limit_response(response: Response, max_bytes: int | None = MAX_RESPONSE_BYTES) -> None:
    """Limit how much of this response is read. A file (`max_bytes` None) may be as long as announced."""
    response.stream = _stream()(
        response.stream, _take_encoding(response), ResponseBudget(_max_bytes(response, max_bytes))
    )


async def limit_response_async(response: Response) -> None:
    """The same for an asynchronous client, whose caller sets the limit on time."""
    response.stream = _async_stream()(response.stream, _take_encoding(response), ResponseBudget(MAX_RESPONSE_BYTES))


def _max_bytes(response: Response, max_bytes: int | None) -> int | None:
    return max_bytes if max_bytes is not None or "Content-Length" in response.headers else MAX_RESPONSE_BYTES


def _take_encoding(response: Response) -> str:
    """How the body is compressed. Hidden from the client, so that it decompresses nothing itself."""
    encoding = str(response.headers.get("Content-Encoding", "")).strip().lower()
    if encoding:
        del response.headers["Content-Encoding"]
    return encoding


@cache
def _stream() -> Callable[[Any, str, ResponseBudget], SyncByteStream]:
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __init__(self, inner: SyncByteStream, encoding: str, budget: ResponseBudget) -> None:
            self._inner, self._encoding, self._budget = inner, encoding, budget

        def __iter__(self) -> Iterator[bytes]:
            yield from decompressed(iter(self._inner), self._encoding, self._budget)

        def close(self) -> None:
            self._inner.close()

    return Bounded


@cache
def _async_stream() -> Callable[[Any, str, ResponseBudget], AsyncByteStream]:
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        def __init__(self, inner: AsyncByteStream, encoding: str, budget: ResponseBudget) -> None:
            self._inner, self._encoding, self._budget = inner, encoding, budget

        async def __aiter__(self) -> AsyncIterator[bytes]:
            unpack = _decompressor(self._encoding)
            async for block in self._inner:
                self._budget.received(len(block))
                for piece in unpack(block):
                    self._budget.decompressed(len(piece))
                    yield piece

        async def aclose(self) -> None:
            await self._inner.aclose()

    return Bounded
