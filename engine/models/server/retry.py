"""Run requests concurrently, with retries, and cancel all of them on a stop."""

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
"""Before the second attempt; doubles each time."""
MAX_WAIT_SECONDS = 60.0
"""A longer Retry-After raises instead of sleeping."""
STOP_POLL_SECONDS = 0.1


class RetryableError(Exception):
    """A failed attempt that may succeed when repeated.

    error          the error to raise after the last attempt
    tries          maximum attempts for this kind of failure
    wait_seconds   the server's Retry-After; 0 if there is none
    """

    def __init__(self, error: Stage3Error, tries: int, wait_seconds: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.tries = tries
        self.wait_seconds = wait_seconds


class RetryPolicy:
    """Concurrency, and the waits between attempts."""

    def __init__(self, stop: StopToken, concurrency: int, sleep: Sleep) -> None:
        self._stop = stop
        self._concurrency = concurrency
        self._sleep = sleep
        self._jitter = Random()  # separate from the run's random numbers, which must not depend on the network

    async def run_all(self, requests: Sequence[Request[T]], tries: int) -> list[T]:
        """The result of each request, in order. A RetryableError repeats the request.

        Raises the first other error, the error of the last attempt, or Stopped; the other requests are cancelled first.
        """
        slots = asyncio.Semaphore(self._concurrency)

        async def in_slot(request: Request[T]) -> T:
            async with slots:  # held while waiting for the next attempt, so a busy server gets fewer requests
                return await self._with_retries(request, tries)

        self._stop.raise_if_requested()
        tasks = [asyncio.create_task(in_slot(request)) for request in requests]
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

    async def _with_retries(self, request: Request[T], tries: int) -> T:
        number = 1
        while True:
            try:
                return await request()
            except RetryableError as fault:
                if number >= min(tries, fault.tries) or fault.wait_seconds > MAX_WAIT_SECONDS:
                    raise _after(number, fault.error) from None
                wait = max(self._back_off(number), fault.wait_seconds)
            await self._sleep(wait)
            number += 1

    def _back_off(self, number: int) -> float:
        """Seconds to wait after attempt `number`, with jitter so that requests do not return all at once."""
        return FIRST_WAIT_SECONDS * 2.0 ** (number - 1) * self._jitter.uniform(0.5, 1.0)


def _after(tries: int, error: Stage3Error) -> Stage3Error:
    """`error`, with the number of attempts."""
    if tries == 1:
        return error
    return type(error)(error.what, f"{error.why} Tried {tries} times.", error.what_to_do)
