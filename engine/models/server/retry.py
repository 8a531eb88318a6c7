"""Run requests concurrently on the servers of a pool, with retries, and cancel all of them on a stop.

Is the server at fault, or the request? A request that failed at every attempt is weighed against a control: a short question
that every model can answer. If a server that failed at the request answers the control, the request is at fault: it fails alone,
and the others go on. Otherwise the servers are lost, and all of it ends.
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

    error          the error to raise after the last attempt
    tries          maximum attempts for this kind of failure
    rest_seconds   the server is busy: its Retry-After, 0 if it names none; None for every other failure
    gone           whether nothing listens there
    """

    def __init__(
        self, error: Stage3Error, tries: int, *, rest_seconds: float | None = None, gone: bool = False
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.tries = tries
        self.rest_seconds = rest_seconds
        self.gone = gone

    @property
    def may_be_the_requests(self) -> bool:
        """Whether the request itself may be the cause."""
        return not self.gone and self.rest_seconds is None


@dataclass(frozen=True)
class Failing(Generic[T]):
    """What becomes of a request that fails while others do not."""

    control: Request[Any]
    instead: Callable[[Stage3Error], T]
    """Its result, from the error of its last attempt."""


@dataclass
class Watch:
    """What to ask of the servers beside the requests; each raises nothing."""

    health: Callable[[Server], Awaitable[None]]
    load: Callable[[Server], Awaitable[None]]


@dataclass
class Attempts(Generic[T]):
    """One request on its way."""

    request: Request[T]
    tries: int
    spent: int = 0
    """Attempts that count: those at which the request may be at fault, and those after which no server was left."""
    tried: list[Server] = field(default_factory=list)
    """Servers that failed at it since it last waited."""
    failed_at: dict[Server, RetryableError] = field(default_factory=dict)
    """Servers that failed at it, ever, each with its last failure; the newest last."""


class RetryPolicy:
    """Concurrency, and the waits between attempts."""

    def __init__(self, stop: StopToken, pool: ServerPool, sleep: Sleep) -> None:
        self._stop = stop
        self._pool = pool
        self._sleep = sleep

    async def run_all(
        self,
        requests: Sequence[Request[T]],
        tries: int,
        failing: Failing[T] | None = None,
        watch: Watch | None = None,
    ) -> list[T]:
        """The result of each request, in order. A RetryableError repeats the request, on another server if there is one.

        Raises the first other error, the error of the last attempt, or Stopped; the other requests are cancelled first.
        """
        self._stop.raise_if_requested()
        self._pool.open()
        tasks = [asyncio.create_task(self._with_retries(Attempts(one, tries), failing)) for one in requests]
        beside: set[asyncio.Task[None]] = set()
        try:
            await self._all_done(tasks, watch, beside)
            return [task.result() for task in tasks]
        finally:
            for task in (*tasks, *beside):
                task.cancel()
            await asyncio.gather(*tasks, *beside, return_exceptions=True)

    async def _all_done(
        self, tasks: Sequence[asyncio.Task[T]], watch: Watch | None, beside: set[asyncio.Task[None]]
    ) -> None:
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, timeout=STOP_POLL_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            self._stop.raise_if_requested()
            for ended in [task for task in beside if task.done()]:
                beside.remove(ended)
                ended.result()
            self._look_after(watch, beside)
            for task in done:
                task.result()

    def _look_after(self, watch: Watch | None, beside: set[asyncio.Task[None]]) -> None:
        for server in self._pool.due():
            if watch is not None:
                beside.add(asyncio.create_task(_asking(server, watch.health)))
        for server in self._pool.due_for_load():
            if watch is not None:
                beside.add(asyncio.create_task(_asking(server, watch.load)))

    async def _with_retries(self, attempts: Attempts[T], failing: Failing[T] | None) -> T:
        server = await self._pool.take()
        while True:
            assert server is not None  # with nothing tried, there is one
            try:
                return await self._attempt(attempts.request, server)
            except RetryableError as fault:
                self._count(attempts, server, fault)
                if self._has_ended(attempts, fault):
                    return await self._weigh(attempts, fault, failing)
                if not self._pool.others(attempts.tried):
                    await self._wait(attempts, server, fault)  # its place stays taken: a busy server gets fewer
            finally:
                self._pool.release(server)
            server = await self._next_server(attempts)

    async def _attempt(self, request: Request[T], server: Server) -> T:
        """The result, and what it shows of the server."""
        sent = self._pool.now()
        server.sent += 1
        try:
            result = await request(server)
        except RetryableError as fault:
            self._note(server, sent, fault)
            raise
        except Stage3Error as error:  # it rejects our token, or has another model: of several, the others may do
            if len(self._pool.servers) == 1:
                raise
            away = RetryableError(error, 1, gone=True)
            self._note(server, sent, away)
            raise away from None
        self._pool.answered(server, sent)
        return result

    def _note(self, server: Server, sent: float, fault: RetryableError) -> None:
        self._pool.failed(server, sent, _words(fault.error), gone=fault.gone, rest_seconds=fault.rest_seconds)

    def _count(self, attempts: Attempts[T], server: Server, fault: RetryableError) -> None:
        attempts.tried.append(server)
        attempts.failed_at.pop(server, None)
        attempts.failed_at[server] = fault
        attempts.spent += fault.may_be_the_requests or not self._pool.others(attempts.tried)

    def _has_ended(self, attempts: Attempts[T], fault: RetryableError) -> bool:
        if attempts.spent >= min(attempts.tries, fault.tries):
            return True
        return not self._pool.others(attempts.tried) and self._rest(attempts.tried[-1], fault) > MAX_WAIT_SECONDS

    def _rest(self, server: Server, fault: RetryableError) -> float:
        """Seconds until a server is due."""
        known = [fault.rest_seconds or 0.0, self._pool.seconds_until_due(server)]
        return min(seconds for seconds in known if seconds is not None)

    async def _wait(self, attempts: Attempts[T], server: Server, fault: RetryableError) -> None:
        await self._sleep(max(self._pool.back_off(max(attempts.spent, 1)), self._rest(server, fault)))
        attempts.tried.clear()

    async def _next_server(self, attempts: Attempts[T]) -> Server | None:
        """One that was not tried since the last wait, else, after a wait, whichever is due first."""
        server = await self._pool.take(attempts.tried, insist=not attempts.tried)
        if server is None:  # the last one went while this request waited for room on it
            await self._sleep(self._pool.back_off(1))
            attempts.tried.clear()
            server = await self._pool.take(insist=True)
        return server

    async def _weigh(self, attempts: Attempts[T], fault: RetryableError, failing: Failing[T] | None) -> T:
        """The result of a request that failed for the last time. Raises its error if no server answers the control."""
        error = self._lost(attempts, _after(attempts.spent, fault.error))
        if failing is None or not fault.may_be_the_requests:
            raise error from None
        for server, its_fault in attempts.failed_at.items():
            try:
                await self._attempt(failing.control, server)
            except (RetryableError, Stage3Error):
                continue  # this one answers nothing now, so it cannot tell; `_attempt` has noted it
            return failing.instead(its_fault.error)
        raise error from None

    def _lost(self, attempts: Attempts[T], error: Stage3Error) -> Stage3Error:
        """`error`, with what each of several servers said: to this request, or when it was left out."""
        servers = self._pool.servers
        said = {server: _words(fault.error) for server, fault in attempts.failed_at.items()}
        whys = [said.get(server, server.why) for server in servers]
        if len(servers) == 1 or not all(whys):
            return error
        return type(error)(f"None of the {len(servers)} servers answers.", " ".join(whys), error.what_to_do)


async def _asking(server: Server, ask: Callable[[Server], Awaitable[None]]) -> None:
    server.asking = True
    try:
        await ask(server)
    finally:
        server.asking = False


def _words(error: Stage3Error) -> str:
    return f"{error.what} {error.why}".strip()


def _after(tries: int, error: Stage3Error) -> Stage3Error:
    """`error`, with the number of attempts."""
    if tries == 1:
        return error
    return type(error)(error.what, f"{error.why} Tried {tries} times.", error.what_to_do)
