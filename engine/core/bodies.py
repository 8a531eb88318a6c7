"""Limits on answers over the network: bytes, total time, and the size after decompression.

An HTTP client's own limits begin anew with every byte, and it unpacks whatever it is sent: a byte a second never ends, and
three megabytes of gzip fill the memory. `bound` and `bound_async` are hooks that see each answer before its body is read.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from engine.core.sizes import size_in_words

if TYPE_CHECKING:
    from httpx2 import AsyncByteStream, Response, SyncByteStream

LARGEST_ANSWER = 64 << 20
"""Bytes of an answer after decompression, files aside. The listing of a large repository has a few million."""
PATIENCE_SECONDS = 30.0
"""Seconds before an answer must have averaged `SLOWEST`."""
SLOWEST = 1024.0
"""Bytes a second on average: a modem of 1991 has more."""
_PIECE = 1 << 16
_ENCODED = ("gzip", "x-gzip", "deflate")


class Budget:
    """What one answer may still take. Raises as `refused`."""

    def __init__(self, most: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        """most   bytes; None for a file that goes to disk, of a length that was told before"""
        self._most, self._clock, self._began = most, clock, clock()
        self._received = self._unfolded = 0

    def received(self, size: int) -> None:
        """So many bytes came over the network."""
        self._received += size
        if self._clock() - self._began > PATIENCE_SECONDS + self._received / SLOWEST:
            raise refused(
                f"it sends {self._received:,} bytes in {self._clock() - self._began:.0f} s, slower than any line"
            )
        self._refuse_more(self._received)

    def unfolded(self, size: int) -> None:
        """So many bytes came out of what was packed."""
        self._unfolded += size
        self._refuse_more(self._unfolded, LARGEST_ANSWER)

    def _refuse_more(self, size: int, else_most: int | None = None) -> None:
        most = else_most if self._most is None else self._most
        if most is not None and size > most:
            raise refused(f"its answer has more than {size_in_words(most)}")


def refused(why: str) -> Exception:
    """An error of the client's own type, so that callers handle it: the peer's fault, and not worth a retry."""
    return _refusal()(why)


@cache
def _refusal() -> type[Exception]:
    import httpx2

    class BodyRefused(httpx2.RemoteProtocolError):
        """An answer that is not read to its end."""

    return BodyRefused


def is_refusal(error: BaseException) -> bool:
    return isinstance(error, _refusal())


def unfolded(blocks: Iterator[bytes], encoding: str, budget: Budget) -> Iterator[bytes]:
    """The decompressed body, chunk by chunk. Raises what `refused` makes."""
    unpack = _unpacker(encoding)
    for block in blocks:
        budget.received(len(block))
        for piece in unpack(block):
            budget.unfolded(len(piece))
            yield piece


def _unpacker(encoding: str) -> Callable[[bytes], Iterator[bytes]]:
    if encoding in ("", "identity"):
        return lambda block: iter([block])
    if encoding not in _ENCODED:
        raise refused(f"its answer is packed with {encoding[:40]!a}, which was not asked for")
    packed = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def unpack(block: bytes) -> Iterator[bytes]:
        while block:
            try:
                piece = packed.decompress(block, _PIECE)
            except zlib.error as error:
                raise refused(f"its answer is not packed as it says ({error})") from None
            if piece:
                yield piece
            block = packed.unconsumed_tail

    return unpack


# -- hooks -------------------------------------------------------------------------------------------------------------


def bound(response: Response, most: int | None = LARGEST_ANSWER) -> None:
    """Limit what is read of this answer. A file may be as long as its announced length (`most` None)."""
    response.stream = _stream()(response.stream, _taken_encoding(response), Budget(_most(response, most)))


async def bound_async(response: Response) -> None:
    """The same for an asynchronous client, whose caller sets the limit on time."""
    response.stream = _async_stream()(response.stream, _taken_encoding(response), Budget(LARGEST_ANSWER))


def _most(response: Response, most: int | None) -> int | None:
    return most if most is not None or "Content-Length" in response.headers else LARGEST_ANSWER


def _taken_encoding(response: Response) -> str:
    """How the body is compressed. Hidden from the client, so that it decompresses nothing itself."""
    encoding = str(response.headers.get("Content-Encoding", "")).strip().lower()
    if encoding:
        del response.headers["Content-Encoding"]
    return encoding


@cache
def _stream() -> Callable[[Any, str, Budget], SyncByteStream]:
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __init__(self, inner: SyncByteStream, encoding: str, budget: Budget) -> None:
            self._inner, self._encoding, self._budget = inner, encoding, budget

        def __iter__(self) -> Iterator[bytes]:
            yield from unfolded(iter(self._inner), self._encoding, self._budget)

        def close(self) -> None:
            self._inner.close()

    return Bounded


@cache
def _async_stream() -> Callable[[Any, str, Budget], AsyncByteStream]:
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        def __init__(self, inner: AsyncByteStream, encoding: str, budget: Budget) -> None:
            self._inner, self._encoding, self._budget = inner, encoding, budget

        async def __aiter__(self) -> AsyncIterator[bytes]:
            unpack = _unpacker(self._encoding)
            async for block in self._inner:
                self._budget.received(len(block))
                for piece in unpack(block):
                    self._budget.unfolded(len(piece))
                    yield piece

        async def aclose(self) -> None:
            await self._inner.aclose()

    return Bounded
