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
from engine.models.server.metrics import ServerLoad, address_of_metrics, server_load
from engine.models.server.retry import RetryableError

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

TRIES = 6
"""Attempts if the server is busy, broken or unreachable."""
SLOW_TRIES = 3
"""Attempts after a timeout or a malformed response: each is expensive, and waiting rarely helps."""
BESIDE_SECONDS = 10.0
"""For what is asked beside the requests: whether a server answers again, and /metrics."""
SWITCHES = "chat_template_kwargs"

_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LIMITS = frozenset({429, 529})
"""It limits the rate: no request is at fault."""
_AWAY = frozenset({502, 503, 504})
"""A proxy reports that nothing is behind it, or a server that it is not ready."""
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
    failed: bool = False
    """Whether the server failed at this request each time while it answered a control; `refused` says how."""


@dataclass(frozen=True)
class ChatApi:
    """What is asked of a server that has `model`. Raises RetryableError where another attempt may succeed."""

    model: str
    timeout_seconds: float

    async def answer(self, question: ChatRequest, address: ServerAddress, client: AsyncClient) -> ChatResponse:
        """The response; a refusal is one, too. Raises AccessError, ConfigError, NetworkError."""
        request = client.post(address.of("chat/completions"), json=question.body(self.model))
        response = await self._response(request, address)
        if response.status_code in _REFUSED:
            said = errors.quoted_message(response, address)
            return ChatResponse(
                refused=said or f"status {response.status_code}", too_long=errors.is_context_overflow(said)
            )
        if not response.is_success:
            raise errors.error_for_status(response, address, self.model)
        try:
            return _chat_response(response)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise RetryableError(errors.malformed_response(response, address), SLOW_TRIES) from None

    async def models(self, address: ServerAddress, client: AsyncClient) -> dict[str, int | None]:
        """The models that it lists, with their context length; empty if there is no list. Raises AccessError, ConfigError."""
        response = await self._response(client.get(address.of("models")), address, busy=frozenset())
        if response.status_code in (401, 403) or response.has_redirect_location:
            raise errors.error_for_status(response, address, self.model)
        return _listed(response)

    async def health(self, address: ServerAddress, client: AsyncClient, *, needs_the_model: bool) -> str:
        """Why it cannot be asked yet, in words that follow its address; empty if it can. Raises nothing of the server's."""
        import httpx2

        try:
            async with asyncio.timeout(min(BESIDE_SECONDS, self.timeout_seconds)):
                response = await client.get(address.of("models"))
        except (TimeoutError, httpx2.HTTPError) as error:
            return f"cannot be reached. {errors.unreachable(address, error).why}"
        if response.status_code in _AWAY:
            return f"returns {response.status_code}."
        listed = _listed(response)
        if needs_the_model and listed and self.model not in listed:
            return f"serves {errors.shown_names(listed)} now, not {self.model!r}."
        return ""

    async def load(self, address: ServerAddress, client: AsyncClient) -> ServerLoad:
        """How busy it says it is; nothing told if it has no /metrics like vLLM's. Raises nothing of the server's."""
        import httpx2

        try:
            async with asyncio.timeout(min(BESIDE_SECONDS, self.timeout_seconds)):
                response = await client.get(address_of_metrics(address.url))
        except (TimeoutError, httpx2.HTTPError):
            return ServerLoad()
        return server_load(response.text) if response.is_success else ServerLoad()

    async def _response(
        self, request: Coroutine[Any, Any, Response], address: ServerAddress, busy: Set[int] = _BUSY
    ) -> Response:
        """The response to one attempt, whatever its status. Raises RetryableError if another attempt may succeed."""
        import httpx2

        try:
            async with asyncio.timeout(
                self.timeout_seconds
            ):  # for the whole request; httpx's timeouts restart with every byte
                response = await request
        except TimeoutError:
            raise RetryableError(errors.too_slow(address, self.timeout_seconds), SLOW_TRIES) from None
        except httpx2.HTTPError as error:
            if is_rejected_response(error):
                raise RetryableError(errors.unreadable(address, error), SLOW_TRIES, gone=True) from None
            gone = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
            raise RetryableError(errors.unreachable(address, error), TRIES, gone=gone) from None
        if response.status_code in busy:
            raise _busy(response, address)
        return response


def _busy(response: Response, address: ServerAddress) -> RetryableError:
    status, wait = response.status_code, _retry_after(response)
    rests = status in _LIMITS or wait > 0
    return RetryableError(
        errors.busy(response, address), TRIES, rest_seconds=wait if rests else None, gone=status in _AWAY and not rests
    )


def _chat_response(response: Response) -> ChatResponse:
    """Raises ValueError, LookupError, TypeError or AttributeError if it is none."""
    answer = parse_untrusted_json(response.content)
    choice = answer["choices"][0]
    text = choice["message"].get("content") or ""
    if not isinstance(text, str):
        raise TypeError
    usage = answer.get("usage") or {}
    return ChatResponse(
        text=text,
        finish_reason=str(choice.get("finish_reason") or ""),
        tokens=_count(usage, "completion_tokens"),
        prompt_tokens=_count(usage, "prompt_tokens"),
        choice=choice,
    )


def _listed(response: Response) -> dict[str, int | None]:
    """The models in a response to /models, with their context length; empty if it is no such list."""
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
