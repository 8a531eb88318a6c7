"""Run requests concurrently on the servers of a pool, with retries, and cancel all of them on a stop.

Is the server at fault, or the request? When a request has failed at every attempt, a control request, which every model can
answer, is sent to the servers that failed at it. If one of them answers, the request is at fault: it alone fails, and the others
continue. Otherwise the servers are lost, and all requests end with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from engine.core.errors import Stage3Error
from engine.models.server.pool import MAX_WAIT_SECONDS, Server, ServerPool
from engine.run.stop import StopToken

T = TypeVar("T")
Request = Callable[[Server], Awaitable[T]]
Sleep = Callable[[float], Awaitable[None]]

STOP_POLL_SECONDS = 0.1


class RetryableError(Exception):
    """A failed attempt that may succeed when repeated.

    error         the error to raise after the last attempt
    tries         maximum number of attempts for this kind of failure
    retry_after   the Retry-After of a busy server in seconds, 0 if it sent none; None for every other failure
    unreachable   whether nothing answers at the address
    """

    def __init__(
        self, error: Stage3Error, tries: int, *, retry_after: float | None = None, unreachable: bool = False
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.tries = tries
        self.retry_after = retry_after
        self.unreachable = unreachable

    @property
    def may_be_request(self) -> bool:
        """Whether the request itself may be the cause."""
        return not self.unreachable and self.retry_after is None


@dataclass(frozen=True)
class RequestFallback(Generic[T]):
    """What to do about a request that failed at every attempt."""

    control: Request[Any]
    result: Callable[[Stage3Error], T]
    """The result of a failed request, from the error of its last attempt, if the control succeeds."""


@dataclass
class ServerProbes:
    """Checks of the servers that run in the background, beside the requests. Neither raises."""

    health: Callable[[Server], Awaitable[None]]
    load: Callable[[Server], Awaitable[None]]


@dataclass
class Attempts(Generic[T]):
    """The attempts at one request."""

    request: Request[T]
    tries: int
    spent: int = 0
    """Attempts that count: those for which the request may be at fault, and those after which no server was left."""
    tried: list[Server] = field(default_factory=list)
    """Servers that failed at it since it last waited."""
    failed_at: dict[Server, RetryableError] = field(default_factory=dict)
    """All servers that failed at it, each with its last failure; the most recent one last."""


class RetryPolicy:
    """Runs requests concurrently, and waits between attempts."""

    def __init__(self, stop: StopToken, pool: ServerPool, sleep: Sleep) -> None:
        self._stop = stop
        self._pool = pool
        self._sleep = sleep

    async def run_all(
        self,
        requests: Sequence[Request[T]],
        tries: int,
        fallback: RequestFallback[T] | None = None,
        probes: ServerProbes | None = None,
    ) -> list[T]:
        """The result of each request, in order. After a RetryableError the request is retried, on another server if there is one.

        Raises the first other error, the error of a last attempt, or Stopped; all other requests are cancelled first.
        """
        self._stop.raise_if_requested()
        self._pool.reset()
        tasks = [asyncio.create_task(self._with_retries(Attempts(one, tries), fallback)) for one in requests]
        background: set[asyncio.Task[None]] = set()
        try:
            await self._wait_for_all(tasks, probes, background)
            return [task.result() for task in tasks]
        finally:
            for task in (*tasks, *background):
                task.cancel()
            await asyncio.gather(*tasks, *background, return_exceptions=True)

    async def _wait_for_all(
        self, tasks: Sequence[asyncio.Task[T]], probes: ServerProbes | None, background: set[asyncio.Task[None]]
    ) -> None:
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, timeout=STOP_POLL_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            self._stop.raise_if_requested()
            for ended in [task for task in background if task.done()]:
                background.remove(ended)
                ended.result()
            self._start_probes(probes, background)
            for task in done:
                task.result()

    def _start_probes(self, probes: ServerProbes | None, background: set[asyncio.Task[None]]) -> None:
        for server in self._pool.due_for_check():
            if probes is not None:
                background.add(asyncio.create_task(_probe(server, probes.health)))
        for server in self._pool.due_for_load():
            if probes is not None:
                background.add(asyncio.create_task(_probe(server, probes.load)))

    async def _with_retries(self, attempts: Attempts[T], fallback: RequestFallback[T] | None) -> T:
        server = await self._pool.acquire()
        while True:
            assert server is not None  # `acquire` returns None only if some servers were tried
            try:
                return await self._attempt(attempts.request, server)
            except RetryableError as failure:
                self._count_attempt(attempts, server, failure)
                if self._is_exhausted(attempts, failure):
                    return await self._resolve_failure(attempts, failure, fallback)
                if not self._pool.available(attempts.tried):
                    # The slot is not released during the wait, so that a busy server gets fewer requests.
                    await self._wait(attempts, server, failure)
            finally:
                self._pool.release(server)
            server = await self._next_server(attempts)

    async def _attempt(self, request: Request[T], server: Server) -> T:
        """Send the request once, and record in the pool whether the server answered."""
        sent = self._pool.now()
        server.sent += 1
        try:
            result = await request(server)
        except RetryableError as failure:
            self._record_failure(server, sent, failure)
            raise
        except Stage3Error as error:  # it denies access, or has another model; other servers may work
            if len(self._pool.servers) == 1:
                raise
            unavailable = RetryableError(error, 1, unreachable=True)
            self._record_failure(server, sent, unavailable)
            raise unavailable from None
        self._pool.record_success(server, sent)
        return result

    def _record_failure(self, server: Server, sent: float, failure: RetryableError) -> None:
        self._pool.record_failure(
            server, sent, _summary(failure.error), unreachable=failure.unreachable, retry_after=failure.retry_after
        )

    def _count_attempt(self, attempts: Attempts[T], server: Server, failure: RetryableError) -> None:
        attempts.tried.append(server)
        attempts.failed_at.pop(server, None)
        attempts.failed_at[server] = failure
        attempts.spent += failure.may_be_request or not self._pool.available(attempts.tried)

    def _is_exhausted(self, attempts: Attempts[T], failure: RetryableError) -> bool:
        if attempts.spent >= min(attempts.tries, failure.tries):
            return True
        return (
            not self._pool.available(attempts.tried)
            and self._seconds_until_retry(attempts.tried[-1], failure) > MAX_WAIT_SECONDS
        )

    def _seconds_until_retry(self, server: Server, failure: RetryableError) -> float:
        """Seconds until the first server may be tried again."""
        waits = [failure.retry_after or 0.0, self._pool.seconds_until_due(server)]
        return min(seconds for seconds in waits if seconds is not None)

    async def _wait(self, attempts: Attempts[T], server: Server, failure: RetryableError) -> None:
        await self._sleep(
            max(self._pool.backoff_seconds(max(attempts.spent, 1)), self._seconds_until_retry(server, failure))
        )
        attempts.tried.clear()

    async def _next_server(self, attempts: Attempts[T]) -> Server | None:
        """A server that was not tried since the last wait; if there is none, the one that is due first, after a wait."""
        server = await self._pool.acquire(attempts.tried, force=not attempts.tried)
        if server is None:  # the last one was left out while this request waited for a slot on it
            await self._sleep(self._pool.backoff_seconds(1))
            attempts.tried.clear()
            server = await self._pool.acquire(force=True)
        return server

    async def _resolve_failure(
        self, attempts: Attempts[T], failure: RetryableError, fallback: RequestFallback[T] | None
    ) -> T:
        """The result of a request that has used up its attempts. Raises its error if no server answers the control."""
        error = self._with_every_reason(attempts, _with_attempts(attempts.spent, failure.error))
        if fallback is None or not failure.may_be_request:
            raise error from None
        for server, server_failure in attempts.failed_at.items():
            try:
                await self._attempt(fallback.control, server)
            except (RetryableError, Stage3Error):
                continue  # it answers nothing now, so it proves nothing; `_attempt` has recorded the failure
            return fallback.result(server_failure.error)
        raise error from None

    def _with_every_reason(self, attempts: Attempts[T], error: Stage3Error) -> Stage3Error:
        """`error` with the reason of each of several servers: its failure at this request, or why it was left out."""
        servers = self._pool.servers
        reasons = {server: _summary(failure.error) for server, failure in attempts.failed_at.items()}
        all_reasons = [reasons.get(server, server.why) for server in servers]
        if len(servers) == 1 or not all(all_reasons):
            return error
        return type(error)(f"None of the {len(servers)} servers responds.", " ".join(all_reasons), error.what_to_do)


async def _probe(server: Server, ask: Callable[[Server], Awaitable[None]]) -> None:
    server.checking = True
    try:
        await ask(server)
    finally:
        server.checking = False


def _summary(error: Stage3Error) -> str:
    return f"{error.what} {error.why}".strip()


def _with_attempts(tries: int, error: Stage3Error) -> Stage3Error:
    """`error` with the number of attempts."""
    if tries == 1:
        return error
    return type(error)(error.what, f"{error.why} Tried {tries} times.", error.what_to_do)
