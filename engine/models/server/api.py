"""One attempt at one request to one server, in OpenAI's protocol."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.core.nesting import parse_untrusted_json
from engine.core.response_limits import is_rejected_response
from engine.models.chat import ChatMessage
from engine.models.server import errors
from engine.models.server.address import ServerAddress
from engine.models.server.metrics import ServerLoad, metrics_url, parse_load
from engine.models.server.retry import RetryableError

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

TRIES = 6
"""Maximum number of attempts if the server is busy, broken or unreachable."""
SLOW_TRIES = 3
"""Maximum number of attempts after a timeout or a malformed response: each is expensive, and waiting rarely helps."""
BACKGROUND_SECONDS = 10.0
"""Timeout of the requests that run in the background: health checks and /metrics."""
SWITCHES = "chat_template_kwargs"

_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_RATE_LIMITED = frozenset({429, 529})
"""Statuses of a rate limit, for which no request is at fault."""
_UNAVAILABLE = frozenset({502, 503, 504})
"""Statuses of a proxy without a server behind it, or of a server that is not ready."""
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
    """If above 0, request log-probabilities of the generated token and of this many top tokens. `transformers serve` ignores it."""
    switches: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for the server's chat template, in the form of vLLM, SGLang, llama.cpp and `transformers serve`."""

    def body(self, model: str) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "messages": list(self.messages), "max_tokens": self.max_tokens}
        body["temperature"] = self.temperature
        if self.temperature > 0:
            body["top_p"] = self.top_p
        if self.seed is not None:
            # llama.cpp's seeds have 32 bits, and JSON numbers have 53 in some languages.
            body["seed"] = self.seed & 0x7FFFFFFF
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
    failed: bool = False
    """Whether the request failed at every attempt while the server answered the control; `refused` has the error."""


@dataclass(frozen=True)
class ChatApi:
    """The requests to a server of `model`. Methods raise RetryableError where another attempt may succeed."""

    model: str
    timeout_seconds: float

    async def complete(self, request: ChatRequest, address: ServerAddress, client: AsyncClient) -> ChatResponse:
        """Complete one conversation; a refusal counts as a response. Raises AccessError, ConfigError, NetworkError."""
        call = client.post(address.of("chat/completions"), json=request.body(self.model))
        response = await self._response(call, address)
        if response.status_code in _REFUSED:
            message = errors.quoted_message(response, address)
            return ChatResponse(
                refused=message or f"status {response.status_code}", too_long=errors.is_context_overflow(message)
            )
        if not response.is_success:
            raise errors.error_for_status(response, address, self.model)
        try:
            return _chat_response(response)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise RetryableError(errors.malformed_response(response, address), SLOW_TRIES) from None

    async def models(self, address: ServerAddress, client: AsyncClient) -> dict[str, int | None]:
        """The models that the server lists, with their context length; empty if there is no list.

        Raises AccessError, ConfigError.
        """
        response = await self._response(client.get(address.of("models")), address, busy=frozenset())
        if response.status_code in (401, 403) or response.has_redirect_location:
            raise errors.error_for_status(response, address, self.model)
        return _listed_models(response)

    async def health(self, address: ServerAddress, client: AsyncClient, *, needs_model: bool) -> str:
        """What is still wrong with the server, to follow its address in a sentence; empty if it is healthy. Raises no error of the
        server's."""
        import httpx2

        try:
            async with asyncio.timeout(min(BACKGROUND_SECONDS, self.timeout_seconds)):
                response = await client.get(address.of("models"))
        except (TimeoutError, httpx2.HTTPError) as error:
            return f"cannot be reached. {errors.unreachable(address, error).why}"
        if response.status_code in _UNAVAILABLE:
            return f"returned {response.status_code}."
        listed = _listed_models(response)
        if needs_model and listed and self.model not in listed:
            return f"now serves {errors.format_names(listed)}, not {self.model!r}."
        return ""

    async def load(self, address: ServerAddress, client: AsyncClient) -> ServerLoad:
        """How busy the server is; unknown if it has no /metrics like vLLM's. Raises no error of the server's."""
        import httpx2

        try:
            async with asyncio.timeout(min(BACKGROUND_SECONDS, self.timeout_seconds)):
                response = await client.get(metrics_url(address.url))
        except (TimeoutError, httpx2.HTTPError):
            return ServerLoad()
        return parse_load(response.text) if response.is_success else ServerLoad()

    async def _response(
        self, call: Coroutine[Any, Any, Response], address: ServerAddress, busy: Set[int] = _BUSY
    ) -> Response:
        """The response to one attempt, whatever its status. Raises RetryableError if another attempt may succeed."""
        import httpx2

        try:
            # A limit for the whole request; httpx's timeouts restart with every byte.
            async with asyncio.timeout(self.timeout_seconds):
                response = await call
        except TimeoutError:
            raise RetryableError(errors.too_slow(address, self.timeout_seconds), SLOW_TRIES) from None
        except httpx2.HTTPError as error:
            if is_rejected_response(error):
                raise RetryableError(errors.unreadable(address, error), SLOW_TRIES, unreachable=True) from None
            unreachable = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
            raise RetryableError(errors.unreachable(address, error), TRIES, unreachable=unreachable) from None
        if response.status_code in busy:
            raise _busy(response, address)
        return response


def _busy(response: Response, address: ServerAddress) -> RetryableError:
    status, wait = response.status_code, _retry_after(response)
    rate_limited = status in _RATE_LIMITED or wait > 0
    return RetryableError(
        errors.busy(response, address),
        TRIES,
        retry_after=wait if rate_limited else None,
        unreachable=status in _UNAVAILABLE and not rate_limited,
    )


def _chat_response(response: Response) -> ChatResponse:
    """Raises ValueError, LookupError, TypeError or AttributeError if the response has another format."""
    payload = parse_untrusted_json(response.content)
    choice = payload["choices"][0]
    text = choice["message"].get("content") or ""
    if not isinstance(text, str):
        raise TypeError
    usage = payload.get("usage") or {}
    return ChatResponse(
        text=text,
        finish_reason=str(choice.get("finish_reason") or ""),
        tokens=_count(usage, "completion_tokens"),
        prompt_tokens=_count(usage, "prompt_tokens"),
        choice=choice,
    )


def _listed_models(response: Response) -> dict[str, int | None]:
    """The models in a response to /models, with their context length; empty if it is not such a list."""
    try:
        return {
            str(model["id"]): _count(model, "max_model_len") for model in parse_untrusted_json(response.content)["data"]
        }
    except (ValueError, LookupError, TypeError):
        return {}


def _retry_after(response: Response) -> float:
    """The Retry-After header in seconds; 0 if it is missing or a date."""
    value = response.headers.get("Retry-After", "")
    return float(value) if _SECONDS.fullmatch(value) else 0.0


def _count(usage: object, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None
