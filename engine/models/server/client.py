"""Send concurrent requests to OpenAI-compatible servers of one model, with retries and immediate cancellation.

Each `send` runs an event loop in the caller's thread, so that a stop cancels requests in progress: their connections are
closed, and a server that notices (vLLM) aborts the generation. A thread that is blocked in a read could not be cancelled.
Redirects are not followed: a POST would become a GET, and the token would go to another host.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from engine import __version__
from engine.core.errors import Stage3Error
from engine.core.events import EventSink, discard_event
from engine.core.response_limits import limit_response_async
from engine.models.chat import ChatMessage
from engine.models.server import errors
from engine.models.server.address import ServerAddress
from engine.models.server.api import TRIES, ChatApi, ChatRequest, ChatResponse
from engine.models.server.pool import Server, ServerPool
from engine.models.server.retry import RequestFallback, RetryPolicy, ServerProbes, Sleep
from engine.run.stop import StopToken

if TYPE_CHECKING:
    from ssl import SSLContext

    from httpx2 import AsyncClient

T = TypeVar("T")
Call = Callable[[ServerAddress, "AsyncClient"], Awaitable[T]]

CONNECT_SECONDS = 15.0
CONTROL = ChatRequest([{"role": "user", "content": "Name an animal."}], 1)
"""A request that any model can answer. It shows whether a server or a request is at fault (`engine.models.server.retry`)."""


class ServerClient:
    """A client for one model on one or several servers. Methods raise what `send` raises."""

    def __init__(
        self,
        addresses: Sequence[ServerAddress],
        model: str,
        stop: StopToken,
        *,
        concurrency: int,
        timeout_seconds: float,
        sleep: Sleep = asyncio.sleep,
        emit: EventSink = discard_event,
    ) -> None:
        """concurrency   maximum number of concurrent requests per server"""
        self.address = addresses[0]
        self.model = model
        self.concurrency = concurrency * len(addresses)
        role = self.address.option.removeprefix("--").removesuffix("-url")
        self.pool = ServerPool(addresses, concurrency, role=role, emit=emit)
        self._api = ChatApi(model, timeout_seconds)
        self._retry = RetryPolicy(stop, self.pool, sleep)
        self._servers_with_model: set[Server] = set()
        self._stop, self._sleep = stop, sleep

    @property
    def where(self) -> str:
        """The addresses, as part of a sentence."""
        return " and ".join(str(server.address) for server in self.pool.servers)

    def per_server(self) -> list[tuple[Server, ServerClient]]:
        """Each server with a client for it alone, for requests that every server must get."""
        return [(server, self._client_for(server.address)) for server in self.pool.servers]

    def _client_for(self, address: ServerAddress) -> ServerClient:
        return ServerClient(
            [address],
            self.model,
            self._stop,
            concurrency=self.pool.concurrency,
            timeout_seconds=self._api.timeout_seconds,
            sleep=self._sleep,
        )

    def record_listing(self, server: Server, models: Collection[str]) -> None:
        """Remember whether the server lists the model. If it lists only others after an outage, it stays out."""
        if self.model in models:
            self._servers_with_model.add(server)

    def chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        top_logprobs: int = 0,
    ) -> dict[str, Any]:
        """Complete one conversation. Returns the choice: `message` with `content` (str or None), `finish_reason`, maybe `logprobs`.

        Raises what `send` raises, and DataError if the server refuses the conversation. For many conversations use `send`.
        """
        response = self.send([ChatRequest(messages, max_tokens, temperature, top_p, seed, top_logprobs)])[0]
        if response.refused:
            raise errors.refused(self.address, self.model, response.refused)
        return response.choice

    def send(self, requests: Sequence[ChatRequest], *, tries: int = TRIES) -> list[ChatResponse]:
        """Returns one response per request, in order. A refusal by the server counts as a response (`refused`). So does a request
        that fails at every attempt while the server answers the control request (`failed`).

        tries   maximum number of attempts per request

        Raises AccessError (401, 403), ConfigError (unknown model or path, redirect), NetworkError (every server unreachable, busy,
        too slow or malformed, after the last attempt), and Stopped as soon as a stop is requested.
        """
        return self._run([partial(self._api.complete, request) for request in requests], tries, on_failure=_failed)

    def models(self, *, tries: int = TRIES) -> dict[str, int | None]:
        """The models that the server lists, in order, with their context length in tokens or None (`max_model_len` of vLLM and
        SGLang); empty if there is no list. Raises what `send` raises, except for a list that fails: `transformers serve` returns
        500 if the machine has no Hub cache.
        """
        return self._run([self._api.models], tries)[0]

    def read_loads(self) -> None:
        """Read /metrics of every server that is in. A server without vLLM's metrics is not asked for them again."""

        async def run() -> None:
            async with self._clients() as clients:
                inside = [server for server in self.pool.servers if server.state == "in"]
                await asyncio.gather(*(self._read_load(server, clients[server]) for server in inside))

        asyncio.run(run())

    def _run(
        self, requests: Sequence[Call[T]], tries: int, on_failure: Callable[[Stage3Error], T] | None = None
    ) -> list[T]:
        """on_failure   the result of a request that fails while the control does not; without it, the error is raised"""

        async def run() -> list[T]:
            async with self._clients() as clients:

                def bind_client(send: Call[Any]) -> Callable[[Server], Awaitable[Any]]:
                    return lambda server: send(server.address, clients[server])

                fallback = (
                    RequestFallback(bind_client(partial(self._api.complete, CONTROL)), on_failure)
                    if on_failure
                    else None
                )
                probes = ServerProbes(
                    lambda server: self._check_health(server, clients[server]),
                    lambda server: self._read_load(server, clients[server]),
                )
                return await self._retry.run_all([bind_client(one) for one in requests], tries, fallback, probes)

        return asyncio.run(run())

    async def _check_health(self, server: Server, client: AsyncClient) -> None:
        needs_model = server in self._servers_with_model
        why = await self._api.health(server.address, client, needs_model=needs_model)
        if why:
            self.pool.keep_out(server, f"The server at {server.address} {why}")
        elif server.state == "out":
            self.pool.readmit(server)

    async def _read_load(self, server: Server, client: AsyncClient) -> None:
        load = await self._api.load(server.address, client)
        if load.is_known or server.load_due is not None:
            self.pool.record_load(server, load)

    @asynccontextmanager
    async def _clients(self) -> AsyncIterator[dict[Server, AsyncClient]]:
        async with AsyncExitStack() as stack:
            yield {
                server: await stack.enter_async_context(_http_client(server.address, self._api.timeout_seconds))
                for server in self.pool.servers
            }


def _failed(error: Stage3Error) -> ChatResponse:
    return ChatResponse(refused=f"{error.what} {error.why}".strip(), failed=True)


def _http_client(address: ServerAddress, timeout_seconds: float) -> AsyncClient:
    import httpx2

    headers = {"User-Agent": f"stage3-tui/{__version__}", "Accept-Encoding": "gzip, deflate"}
    if address.token:
        headers["Authorization"] = f"Bearer {address.token.reveal()}"
    return httpx2.AsyncClient(
        headers=headers,
        timeout=httpx2.Timeout(None, connect=min(CONNECT_SECONDS, timeout_seconds)),
        # `ServerPool` limits concurrency; a wait for a connection would count towards the timeout.
        limits=httpx2.Limits(max_connections=None),
        verify=_certificates(),
        follow_redirects=False,
        event_hooks={"response": [limit_response_async]},
        trust_env=not address.is_loopback,  # HTTP_PROXY must not apply to this machine
    )


@cache
def _certificates() -> SSLContext:
    """Trusted certificates; cached, because reading them takes 50 ms."""
    import httpx2

    return httpx2.create_ssl_context()
