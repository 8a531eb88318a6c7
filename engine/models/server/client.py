"""Send concurrent requests to an OpenAI-compatible server, with retries and immediate cancellation.

Each `ask` runs an event loop in the caller's thread, so that a stop cancels requests in progress: their connections are
closed, and a server that notices (vLLM) aborts the generation. A thread blocked in a read could not be cancelled. Redirects
are not followed: a POST would become a GET, and the token would go to another host.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from engine import __version__
from engine.core.bodies import bound_async, is_refusal
from engine.core.nesting import foreign_json
from engine.models.chat import ChatMessage
from engine.models.server import errors
from engine.models.server.address import ServerAddress
from engine.models.server.retry import RetryableError, RetryPolicy, Sleep
from engine.run.stop import StopToken

if TYPE_CHECKING:
    from ssl import SSLContext

    from httpx2 import AsyncClient, Response

T = TypeVar("T")

TRIES = 6
"""Attempts if the server is busy, broken or unreachable."""
SLOW_TRIES = 3
"""Attempts after a timeout or a malformed response: each is expensive, and waiting rarely helps."""
CONNECT_SECONDS = 15.0
SWITCHES = "chat_template_kwargs"

_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REFUSED = frozenset({400, 413, 422})
_SECONDS = re.compile(r"\d{1,6}(\.\d+)?")


@dataclass(frozen=True)
class ChatRequest:
    """One conversation to complete."""

    messages: Sequence[ChatMessage]
    max_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int = 0
    """If above 0, request log-probabilities of the generated and this many top tokens. `transformers serve` ignores it."""
    switches: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for the server's chat template, in the form of vLLM, SGLang, llama.cpp and `transformers serve`."""

    def body(self, model: str) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "messages": list(self.messages), "max_tokens": self.max_tokens}
        body["temperature"] = self.temperature
        if self.temperature > 0:
            body["top_p"] = self.top_p
        if self.seed is not None:
            body["seed"] = (
                self.seed & 0x7FFFFFFF
            )  # llama.cpp's seeds have 32 bits, and JSON numbers in some languages 53
        if self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if self.switches:
            body[SWITCHES] = dict(self.switches)
        return body


@dataclass(frozen=True)
class ChatResponse:
    """The response to one request."""

    text: str = ""
    finish_reason: str = ""
    """stop, length, … as sent by the server; empty if missing."""
    tokens: int | None = None
    """Generated tokens, including the end of turn; None if the server does not report them."""
    prompt_tokens: int | None = None
    choice: dict[str, Any] = field(default_factory=dict)
    """The raw choice: `message`, `finish_reason`, `logprobs`."""
    refused: str = ""
    """The server's message if it refused this request; nothing was generated."""
    too_long: bool = False
    """Whether it was refused because conversation and reply exceed the server's context."""


class ServerClient:
    """A client for one model on one server. Methods raise what `ask` raises."""

    def __init__(
        self,
        address: ServerAddress,
        model: str,
        stop: StopToken,
        *,
        concurrency: int,
        timeout_seconds: float,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.address = address
        self.model = model
        self.concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._retry = RetryPolicy(stop, concurrency, sleep)

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
        """Complete one conversation; returns the choice: `message` with `content` (str or None), `finish_reason`, maybe `logprobs`.

        Raises what `ask` raises, and DataError if the server refuses the conversation. Use `ask` for many.
        """
        answer = self.ask([ChatRequest(messages, max_tokens, temperature, top_p, seed, top_logprobs)])[0]
        if answer.refused:
            raise errors.refused(self.address, self.model, answer.refused)
        return answer.choice

    def ask(self, questions: Sequence[ChatRequest], *, tries: int = TRIES) -> list[ChatResponse]:
        """One response per request, in order. A refusal by the server is a response, too (`refused`).

        tries   maximum attempts per request

        Raises AccessError (401, 403), ConfigError (unknown model or path, redirect), NetworkError (unreachable, busy, too slow
        or malformed, after the last attempt), and Stopped as soon as a stop is requested.
        """
        return self._run([partial(self._answer, question) for question in questions], tries)

    def models(self, *, tries: int = TRIES) -> dict[str, int | None]:
        """The models that the server lists, in order, with their context length in tokens if given (`max_model_len` of vLLM and
        SGLang); empty if there is no list. Raises what `ask` raises, except if listing fails: `transformers serve` returns 500
        if the machine has no Hub cache.
        """
        return self._run([self._models], tries)[0]

    def _run(self, requests: Sequence[Callable[[AsyncClient], Awaitable[T]]], tries: int) -> list[T]:
        async def all_of_them() -> list[T]:
            async with self._client() as client:
                return await self._retry.run_all([partial(request, client) for request in requests], tries)

        return asyncio.run(all_of_them())

    def _client(self) -> AsyncClient:
        import httpx2

        headers = {"User-Agent": f"stage3-tui/{__version__}", "Accept-Encoding": "gzip, deflate"}
        if self.address.token:
            headers["Authorization"] = f"Bearer {self.address.token.reveal()}"
        return httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(None, connect=min(CONNECT_SECONDS, self._timeout_seconds)),
            limits=httpx2.Limits(
                max_connections=None
            ),  # `RetryPolicy` limits concurrency; waiting for a connection would count towards the timeout
            verify=_certificates(),
            follow_redirects=False,
            event_hooks={"response": [bound_async]},
            trust_env=not self.address.is_loopback,  # HTTP_PROXY must not apply to this machine
        )

    async def _answer(self, question: ChatRequest, client: AsyncClient) -> ChatResponse:
        response = await self._response(
            client.post(self.address.of("chat/completions"), json=question.body(self.model))
        )
        if response.status_code in _REFUSED:
            said = errors.quoted_message(response, self.address)
            return ChatResponse(
                refused=said or f"status {response.status_code}", too_long=errors.is_context_overflow(said)
            )
        if not response.is_success:
            raise errors.error_for_status(response, self.address, self.model)
        try:
            answer = foreign_json(response.content)
            choice = answer["choices"][0]
            text = choice["message"].get("content") or ""
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError):
            raise RetryableError(errors.malformed_response(response, self.address), SLOW_TRIES) from None
        usage = answer.get("usage") or {}
        return ChatResponse(
            text=text,
            finish_reason=str(choice.get("finish_reason") or ""),
            tokens=_count(usage, "completion_tokens"),
            prompt_tokens=_count(usage, "prompt_tokens"),
            choice=choice,
        )

    async def _models(self, client: AsyncClient) -> dict[str, int | None]:
        response = await self._response(client.get(self.address.of("models")), busy=frozenset())
        if response.status_code in (401, 403) or response.has_redirect_location:
            raise errors.error_for_status(response, self.address, self.model)
        try:
            return {
                str(model["id"]): _count(model, "max_model_len") for model in foreign_json(response.content)["data"]
            }
        except (ValueError, LookupError, TypeError):
            return {}

    async def _response(self, request: Coroutine[Any, Any, Response], busy: Set[int] = _BUSY) -> Response:
        """The response to one attempt, whatever its status. Raises RetryableError if another attempt may succeed."""
        import httpx2

        try:
            async with asyncio.timeout(
                self._timeout_seconds
            ):  # for the whole request; httpx's timeouts restart with every byte
                response = await request
        except TimeoutError:
            raise RetryableError(errors.too_slow(self.address, self._timeout_seconds), SLOW_TRIES) from None
        except httpx2.HTTPError as error:
            if is_refusal(error):
                raise RetryableError(errors.unreadable(self.address, error), SLOW_TRIES) from None
            raise RetryableError(errors.unreachable(self.address, error), TRIES) from None
        if response.status_code in busy:
            raise RetryableError(errors.busy(response, self.address), TRIES, _retry_after(response))
        return response


@cache
def _certificates() -> SSLContext:
    """Trusted certificates; cached, because reading them takes 50 ms."""
    import httpx2

    return httpx2.create_ssl_context()


def _retry_after(response: Response) -> float:
    """The Retry-After header in seconds; 0 if it is missing or a date."""
    value = response.headers.get("Retry-After", "")
    return float(value) if _SECONDS.fullmatch(value) else 0.0


def _count(usage: object, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None
