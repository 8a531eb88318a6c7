"""The servers that serve one model: which is asked next, which is left out, and when that one is asked again.

A server that fails is left out, for longer each time, and comes back when it answers (`ServerClient` asks it). One that says 429
rests for as long as it names. Everything is measured on the monotonic clock. Which server answered a request is recorded
nowhere: records depend on prompt and seed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from engine.core.events import Event, Message, ServerReading, Servers, Tell, nobody
from engine.models.server.address import ServerAddress
from engine.models.server.metrics import ServerLoad

FIRST_WAIT_SECONDS = 1.0
"""Before a request is sent again, or a server asked again; doubles each time."""
MAX_WAIT_SECONDS = 60.0
STRIKES = 3
"""Failures in a row, with no answer between, that leave a server out which can be reached: it may be that a request is at fault."""
LOAD_SECONDS = 5.0
"""Between two readings of /metrics."""

Clock = Callable[[], float]


@dataclass(eq=False)
class Server:
    """One server, as its answers show it."""

    address: ServerAddress
    state: Literal["in", "resting", "out"] = "in"
    why: str = ""
    retry_at: float = 0.0
    """When it is asked again, if it is not in."""
    left_out_at: float = 0.0
    """When it was left out last: a request that was sent before says nothing new."""
    failures: int = 0
    """Failures since its last answer."""
    outages: int = 0
    """How often it was left out since its last answer."""
    in_flight: int = 0
    sent: int = 0
    answered: int = 0
    checking: bool = False
    """Whether it is being asked how it is."""
    load: ServerLoad = field(default_factory=ServerLoad)
    load_due: float | None = None
    """When /metrics is read again; None if it has none."""


class ServerPool:
    """Chooses among servers; single-threaded, within one event loop at a time."""

    def __init__(
        self,
        addresses: Sequence[ServerAddress],
        concurrency: int,
        *,
        role: str = "server",
        tell: Tell = nobody,
        clock: Clock = time.monotonic,
    ) -> None:
        """concurrency   most requests at once, to each server"""
        self.servers = tuple(Server(address) for address in addresses)
        self.concurrency, self._role, self._tell, self._clock = concurrency, role, tell, clock
        self._jitter = Random()  # separate from the run's random numbers, which must not depend on the network
        self._changed = asyncio.Event()
        self._pending: list[Event] = []

    # -- choosing -----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """A new event loop begins: nothing is in flight, nobody waits."""
        self._changed = asyncio.Event()
        for server in self.servers:
            server.in_flight, server.checking = 0, False

    def available(self, tried: Collection[Server]) -> list[Server]:
        """The servers that are in and have not been tried."""
        return [server for server in self.servers if server.state == "in" and server not in tried]

    async def acquire(self, tried: Collection[Server] = (), *, force: bool = False) -> Server | None:
        """The least loaded server that is in and was not tried, as soon as it has room; None if there is none.

        With nothing tried, waits until a server is in, or takes the one that is due first (`insist`). Give it back with `release`.
        """
        while True:
            found = self.available(tried)
            if not found and tried:
                return None
            if not found and force:
                return self._taken(min(self.servers, key=lambda server: server.retry_at))
            free = [server for server in found if server.in_flight < self.concurrency]
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

    # -- what its answers show ----------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._clock()

    def record_success(self, server: Server, sent: float) -> None:
        """It answered a request that was sent at `sent`: whatever was wrong before is over."""
        server.answered += 1
        if sent < server.left_out_at:
            return
        server.failures = server.outages = 0
        if server.state != "in":
            self.readmit(server)

    def record_failure(
        self, server: Server, sent: float, why: str, *, unreachable: bool, retry_after: float | None
    ) -> None:
        """A request sent at `sent` failed.

        gone           nobody is there: no need to try it three times
        rest_seconds   it is busy, and asks to be left alone so long; None if it is not that
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
        """It was asked how it is, and is not well."""
        server.outages += 1
        self._leave_out(server, "out", why, self.backoff_seconds(server.outages))

    def readmit(self, server: Server) -> None:
        """It is asked again."""
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
            remaining = f"{available} of {len(self.servers)} servers go on" if available else "none is left"
            self._add_message("warning", f"Left out for now: {why.rstrip('.')}. It is asked again later; {remaining}.")
        self._pending.append(self.snapshot())
        self._wake()

    def backoff_seconds(self, number: int) -> float:
        """Seconds to wait after the failure `number`, with jitter so that requests do not return all at once."""
        return min(FIRST_WAIT_SECONDS * 2.0 ** min(number - 1, 20), MAX_WAIT_SECONDS) * self._jitter.uniform(0.5, 1.0)

    def seconds_until_due(self, but: Server) -> float | None:
        """Until the first of the others is due; None if there is no other."""
        return min((max(one.retry_at - self.now(), 0.0) for one in self.servers if one is not but), default=None)

    # -- while requests are under way ---------------------------------------------------------------------------------

    def due_for_check(self) -> list[Server]:
        """The servers to ask how they are; rests that are over end. Tells what is new."""
        now = self.now()
        for server in self.servers:
            if server.state == "resting" and server.retry_at <= now:
                self.readmit(server)
        self._report_pending()
        return [one for one in self.servers if one.state == "out" and one.retry_at <= now and not one.checking]

    def due_for_load(self) -> list[Server]:
        """The servers whose /metrics to read."""
        now, servers = self.now(), [one for one in self.servers if one.load_due is not None and one.state == "in"]
        return [one for one in servers if one.load_due is not None and one.load_due <= now and not one.checking]

    def record_load(self, server: Server, load: ServerLoad) -> None:
        """A reading of /metrics; the next one is due in some seconds."""
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
        """From the caller's own loop, so that a journal that cannot be written ends the stage. Of several readings the last."""
        pending, self._pending = self._pending, []
        readings = [event for event in pending if isinstance(event, Servers)]
        for event in [event for event in pending if not isinstance(event, Servers)] + readings[-1:]:
            self._tell(event)
