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

from engine.core.events import Event, EventSink, Message, ServerReading, Servers, discard_event
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
    until: float = 0.0
    """When it is asked again, if it is not in."""
    since: float = 0.0
    """When it was left out last: a request that was sent before says nothing new."""
    strikes: int = 0
    """Failures since its last answer."""
    outages: int = 0
    """How often it was left out since its last answer."""
    in_flight: int = 0
    sent: int = 0
    answered: int = 0
    asking: bool = False
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
        emit: EventSink = discard_event,
        clock: Clock = time.monotonic,
    ) -> None:
        """concurrency   most requests at once, to each server"""
        self.servers = tuple(Server(address) for address in addresses)
        self.concurrency, self._role, self._emit, self._clock = concurrency, role, emit, clock
        self._jitter = Random()  # separate from the run's random numbers, which must not depend on the network
        self._changed = asyncio.Event()
        self._news: list[Event] = []

    # -- choosing -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """A new event loop begins: nothing is in flight, and nothing waits."""
        self._changed = asyncio.Event()
        for server in self.servers:
            server.in_flight, server.asking = 0, False

    def others(self, tried: Collection[Server]) -> list[Server]:
        """The servers that are in and have not been tried."""
        return [server for server in self.servers if server.state == "in" and server not in tried]

    async def take(self, tried: Collection[Server] = (), *, insist: bool = False) -> Server | None:
        """The least loaded server that is in and was not tried, as soon as it has room; None if there is none.

        With nothing tried, waits until a server is in, or takes the one that is due first (`insist`). Give it back with `release`.
        """
        while True:
            found = self.others(tried)
            if not found and tried:
                return None
            if not found and insist:
                return self._taken(min(self.servers, key=lambda server: server.until))
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

    def answered(self, server: Server, sent: float) -> None:
        """It answered a request that was sent at `sent`: whatever was wrong before is over."""
        server.answered += 1
        if sent < server.since:
            return
        server.strikes = server.outages = 0
        if server.state != "in":
            self.put_in(server)

    def failed(self, server: Server, sent: float, why: str, *, gone: bool, rest_seconds: float | None) -> None:
        """A request sent at `sent` failed.

        gone           nothing listens there: no need to try it three times
        rest_seconds   it is busy, and asks to be left alone so long; None if it is not that
        """
        if sent < server.since:
            return
        if rest_seconds is not None:
            self._leave_out(server, "resting", why, max(rest_seconds, self.back_off(1)))
            return
        server.strikes += 1
        if gone or server.outages or server.strikes >= STRIKES:
            server.outages += 1
            self._leave_out(server, "out", why, self.back_off(server.outages))

    def still_out(self, server: Server, why: str) -> None:
        """It was asked how it is, and is not well."""
        server.outages += 1
        self._leave_out(server, "out", why, self.back_off(server.outages))

    def put_in(self, server: Server) -> None:
        """It is asked again."""
        if len(self.servers) > 1 and server.state == "out":
            self._say("info", f"The server at {server.address} answers again.")
        server.state, server.why = "in", ""
        self._news.append(self.reading())
        self._wake()

    def _leave_out(self, server: Server, state: Literal["resting", "out"], why: str, seconds: float) -> None:
        began = server.state != state
        server.state, server.why, server.since = state, why, self.now()
        server.until = server.since + seconds
        if began and len(self.servers) > 1 and state == "out":
            left = len(self.others(()))
            goes_on = f"{left} of {len(self.servers)} servers go on" if left else "none is left"
            self._say("warning", f"Left out for now: {why.rstrip('.')}. It is asked again later; {goes_on}.")
        self._news.append(self.reading())
        self._wake()

    def back_off(self, number: int) -> float:
        """Seconds to wait after the failure `number`, with jitter so that requests do not return all at once."""
        return min(FIRST_WAIT_SECONDS * 2.0 ** min(number - 1, 20), MAX_WAIT_SECONDS) * self._jitter.uniform(0.5, 1.0)

    def seconds_until_due(self, but: Server) -> float | None:
        """Until the first of the others is due; None if there is no other."""
        return min((max(one.until - self.now(), 0.0) for one in self.servers if one is not but), default=None)

    # -- while requests are under way ---------------------------------------------------------------------------------

    def due(self) -> list[Server]:
        """The servers to ask how they are; rests that are over end. Tells what is new."""
        now = self.now()
        for server in self.servers:
            if server.state == "resting" and server.until <= now:
                self.put_in(server)
        self._tell_news()
        return [one for one in self.servers if one.state == "out" and one.until <= now and not one.asking]

    def due_for_load(self) -> list[Server]:
        """The servers whose /metrics to read."""
        now, known = self.now(), [one for one in self.servers if one.load_due is not None and one.state == "in"]
        return [one for one in known if one.load_due is not None and one.load_due <= now and not one.asking]

    def loaded(self, server: Server, load: ServerLoad) -> None:
        """A reading of /metrics; the next one is due in some seconds."""
        server.load, server.load_due = load, self.now() + LOAD_SECONDS
        if load.tells:
            self._news.append(self.reading())

    def reading(self) -> Servers:
        now = self.now()
        return Servers(
            self._role,
            tuple(
                ServerReading(
                    url=str(one.address),
                    state=one.state,
                    why=one.why,
                    asked_again_in=round(max(one.until - now, 0.0), 1) if one.state != "in" else 0.0,
                    in_flight=one.in_flight,
                    answered=one.answered,
                    running=one.load.running,
                    waiting=one.load.waiting,
                    cache=one.load.cache,
                )
                for one in self.servers
            ),
        )

    def _say(self, level: Literal["info", "warning"], text: str) -> None:
        self._news.append(Message(level, text))

    def _tell_news(self) -> None:
        """From the caller's own loop, so that a journal that cannot be written ends the stage. Of several readings the last."""
        news, self._news = self._news, []
        readings = [event for event in news if isinstance(event, Servers)]
        for event in [event for event in news if not isinstance(event, Servers)] + readings[-1:]:
            self._emit(event)
