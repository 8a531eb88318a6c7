"""The servers of one model: which one gets the next request, which ones are left out, and when they are tried again.

A server that fails is left out, for longer each time, until it passes a health check (`ServerClient` runs it). One that returns
429 rests for as long as its Retry-After header says. All times are on the monotonic clock. Which server answered a request is
not recorded: records depend only on prompt and seed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from engine.core.events import Event, EventSink, Message, ServerReading, Servers, discard_event
from engine.models.server.address import ServerAddress
from engine.models.server.metrics import ServerLoad

FIRST_WAIT_SECONDS = 1.0
"""Wait before the first retry of a request, or the first check of a server; doubles each time."""
MAX_WAIT_SECONDS = 60.0
STRIKES = 3
"""Failures in a row after which a server that can be reached is left out. One is not enough: the request may be at fault."""
LOAD_SECONDS = 5.0
"""Interval between two reads of /metrics."""

Clock = Callable[[], float]


@dataclass(eq=False)
class Server:
    """The state of one server, according to its responses."""

    address: ServerAddress
    state: Literal["in", "resting", "out"] = "in"
    why: str = ""
    retry_at: float = 0.0
    """When it is tried again, unless it is in."""
    left_out_at: float = 0.0
    """When it was last left out; the result of a request that was sent earlier is ignored."""
    failures: int = 0
    """Failures since its last response."""
    outages: int = 0
    """How often it was left out since its last response."""
    in_flight: int = 0
    sent: int = 0
    answered: int = 0
    checking: bool = False
    """Whether a health check or a read of /metrics is in progress."""
    load: ServerLoad = field(default_factory=ServerLoad)
    load_due: float | None = None
    """When /metrics is read again; None if the server has none."""


class ServerPool:
    """Chooses a server for each request. Single-threaded; used by one event loop at a time."""

    def __init__(
        self,
        addresses: Sequence[ServerAddress],
        concurrency: int,
        *,
        role: str = "server",
        emit: EventSink = discard_event,
        clock: Clock = time.monotonic,
    ) -> None:
        """concurrency   maximum number of concurrent requests per server"""
        self.servers = tuple(Server(address) for address in addresses)
        self.concurrency, self._role, self._emit, self._clock = concurrency, role, emit, clock
        self._jitter = Random()  # separate from the run's random numbers, which must not depend on the network
        self._changed = asyncio.Event()
        self._pending: list[Event] = []

    # -- choosing -----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Prepare for a new event loop, in which nothing is in flight."""
        self._changed = asyncio.Event()
        for server in self.servers:
            server.in_flight, server.checking = 0, False

    def available(self, tried: Collection[Server]) -> list[Server]:
        """The servers that are in and are not among `tried`."""
        return [server for server in self.servers if server.state == "in" and server not in tried]

    async def acquire(self, tried: Collection[Server] = (), *, force: bool = False) -> Server | None:
        """The least loaded server that is in and not among `tried`, as soon as it has a free slot; None if there is none.

        If nothing was tried, waits until a server is in, or with `force` takes the one that is due first. Hand it back with
        `release`.
        """
        while True:
            candidates = self.available(tried)
            if not candidates and tried:
                return None
            if not candidates and force:
                return self._taken(min(self.servers, key=lambda server: server.retry_at))
            free = [server for server in candidates if server.in_flight < self.concurrency]
            if free:
                return self._taken(min(free, key=lambda server: (server.in_flight, server.sent)))
            await self._changed.wait()

    def release(self, server: Server) -> None:
        server.in_flight -= 1
        self._wake()

    def _taken(self, server: Server) -> Server:
        server.in_flight += 1
        return server

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # -- recording results --------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._clock()

    def record_success(self, server: Server, sent: float) -> None:
        """Record a response to a request that was sent at `sent`: any earlier problem is over."""
        server.answered += 1
        if sent < server.left_out_at:
            return
        server.failures = server.outages = 0
        if server.state != "in":
            self.readmit(server)

    def record_failure(
        self, server: Server, sent: float, why: str, *, unreachable: bool, retry_after: float | None
    ) -> None:
        """Record the failure of a request that was sent at `sent`.

        unreachable   nothing answers at the address, so the server is left out at once
        retry_after   seconds that a busy server asks for; None for any other failure
        """
        if sent < server.left_out_at:
            return
        if retry_after is not None:
            self._leave_out(server, "resting", why, max(retry_after, self.backoff_seconds(1)))
            return
        server.failures += 1
        if unreachable or server.outages or server.failures >= STRIKES:
            server.outages += 1
            self._leave_out(server, "out", why, self.backoff_seconds(server.outages))

    def keep_out(self, server: Server, why: str) -> None:
        """Record that the server failed a health check."""
        server.outages += 1
        self._leave_out(server, "out", why, self.backoff_seconds(server.outages))

    def readmit(self, server: Server) -> None:
        """Send requests to the server again."""
        if len(self.servers) > 1 and server.state == "out":
            self._add_message("info", f"The server at {server.address} answers again.")
        server.state, server.why = "in", ""
        self._pending.append(self.snapshot())
        self._wake()

    def _leave_out(self, server: Server, state: Literal["resting", "out"], why: str, seconds: float) -> None:
        is_new = server.state != state
        server.state, server.why, server.left_out_at = state, why, self.now()
        server.retry_at = server.left_out_at + seconds
        if is_new and len(self.servers) > 1 and state == "out":
            available = len(self.available(()))
            remaining = f"{available} of {len(self.servers)} servers remain" if available else "none remains"
            self._add_message("warning", f"Left out for now: {why.rstrip('.')}. It will be tried again; {remaining}.")
        self._pending.append(self.snapshot())
        self._wake()

    def backoff_seconds(self, number: int) -> float:
        """Seconds to wait after failure `number`, with jitter so that requests are not all retried at once."""
        return min(FIRST_WAIT_SECONDS * 2.0 ** min(number - 1, 20), MAX_WAIT_SECONDS) * self._jitter.uniform(0.5, 1.0)

    def seconds_until_due(self, but: Server) -> float | None:
        """Seconds until the first of the other servers is due; None if there is no other."""
        return min((max(one.retry_at - self.now(), 0.0) for one in self.servers if one is not but), default=None)

    # -- background checks --------------------------------------------------------------------------------------------

    def due_for_check(self) -> list[Server]:
        """The servers that are due for a health check. Also readmits servers that have rested, and reports pending events."""
        now = self.now()
        for server in self.servers:
            if server.state == "resting" and server.retry_at <= now:
                self.readmit(server)
        self._report_pending()
        return [one for one in self.servers if one.state == "out" and one.retry_at <= now and not one.checking]

    def due_for_load(self) -> list[Server]:
        """The servers whose /metrics are due."""
        now, servers = self.now(), [one for one in self.servers if one.load_due is not None and one.state == "in"]
        return [one for one in servers if one.load_due is not None and one.load_due <= now and not one.checking]

    def record_load(self, server: Server, load: ServerLoad) -> None:
        """Record the load from /metrics, and schedule the next read."""
        server.load, server.load_due = load, self.now() + LOAD_SECONDS
        if load.is_known:
            self._pending.append(self.snapshot())

    def snapshot(self) -> Servers:
        now = self.now()
        return Servers(
            self._role,
            tuple(
                ServerReading(
                    url=str(one.address),
                    state=one.state,
                    why=one.why,
                    asked_again_in=round(max(one.retry_at - now, 0.0), 1) if one.state != "in" else 0.0,
                    in_flight=one.in_flight,
                    answered=one.answered,
                    running=one.load.running,
                    waiting=one.load.waiting,
                    cache=one.load.cache,
                )
                for one in self.servers
            ),
        )

    def _add_message(self, level: Literal["info", "warning"], text: str) -> None:
        self._pending.append(Message(level, text))

    def _report_pending(self) -> None:
        """Report pending events, but of several snapshots only the last. Called from the caller's own loop, so that a journal that
        cannot be written ends the stage."""
        pending, self._pending = self._pending, []
        readings = [event for event in pending if isinstance(event, Servers)]
        for event in [event for event in pending if not isinstance(event, Servers)] + readings[-1:]:
            self._emit(event)
