"""Many requests at once, each tried again while it may go better, and all ended at once by a stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TypeVar

from engine.core.errors import Stage3Error
from engine.run.stop import StopToken

T = TypeVar("T")
Request = Callable[[], Awaitable[T]]
Sleep = Callable[[float], Awaitable[None]]

FIRST_WAIT_SECONDS = 1.0
"""Before the second try; then twice as long each time."""
LONGEST_WAIT_SECONDS = 60.0
"""A Retry-After above this is not waited for, it is told."""
STOP_POLL_SECONDS = 0.1


class Fault(Exception):
    """A try that may go better next time.

    error          what to say when it was the last
    tries          at most, of a request that fails so
    wait_seconds   that the server asks for; 0 if it does not
    """

    def __init__(self, error: Stage3Error, tries: int, wait_seconds: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.tries = tries
        self.wait_seconds = wait_seconds


class RetryPolicy:
    """How many at once, and how to wait between tries."""

    def __init__(self, stop: StopToken, concurrency: int, sleep: Sleep) -> None:
        self._stop = stop
        self._concurrency = concurrency
        self._sleep = sleep
        self._jitter = Random()  # of its own: the draws of the run must not depend on the network

    async def all_of(self, requests: Sequence[Request[T]], tries: int) -> list[T]:
        """What each request gives, in order. A request is tried again after a Fault.

        Raises the first error that is none, a last fault's error, and Stopped; the other requests are cancelled by then.
        """
        places = asyncio.Semaphore(self._concurrency)

        async def in_its_place(request: Request[T]) -> T:
            async with places:  # kept while it waits for its next try: a busy server gets fewer questions
                return await self._insist(request, tries)

        self._stop.raise_if_requested()
        tasks = [asyncio.create_task(in_its_place(request)) for request in requests]
        try:
            await self._all_done(tasks)
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _all_done(self, tasks: Sequence[asyncio.Task[T]]) -> None:
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, timeout=STOP_POLL_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            self._stop.raise_if_requested()
            for task in done:
                task.result()

    async def _insist(self, request: Request[T], tries: int) -> T:
        number = 1
        while True:
            try:
                return await request()
            except Fault as fault:
                if number >= min(tries, fault.tries) or fault.wait_seconds > LONGEST_WAIT_SECONDS:
                    raise _after(number, fault.error) from None
                wait = max(self._back_off(number), fault.wait_seconds)
            await self._sleep(wait)
            number += 1

    def _back_off(self, number: int) -> float:
        """Seconds after try `number`; not the same for all, who would come back at once."""
        return FIRST_WAIT_SECONDS * 2.0 ** (number - 1) * self._jitter.uniform(0.5, 1.0)


def _after(tries: int, error: Stage3Error) -> Stage3Error:
    """`error`, with how often it was tried."""
    if tries == 1:
        return error
    return type(error)(error.what, f"{error.why} It was asked {tries} times.", error.what_to_do)
