"""Questions to an OpenAI-compatible server, many at once: tried again while it is busy, ended at once by a stop.

An event loop runs in the caller's thread for the length of one `ask`, so that a stop cancels what is under way: its
connections are closed, and a server that looks (vLLM) ends the generation too. A thread in the middle of a read could
not be ended. Redirects are not followed: a POST would become a GET, and the token would go where nobody sent it.
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
from engine.models.server.retry import Fault, RetryPolicy, Sleep
from engine.run.stop import StopToken

if TYPE_CHECKING:
    from ssl import SSLContext

    from httpx2 import AsyncClient, Response

T = TypeVar("T")

TRIES = 6
"""Of a question that meets a busy, broken or absent server."""
SLOW_TRIES = 3
"""Of one that was not answered in time, or with what is no answer: each costs much, and waiting mends it seldom."""
CONNECT_SECONDS = 15.0
SWITCHES = "chat_template_kwargs"

_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REFUSED = frozenset({400, 413, 422})
_SECONDS = re.compile(r"\d{1,6}(\.\d+)?")


@dataclass(frozen=True)
class Question:
    """One conversation for the server to go on with."""

    messages: Sequence[ChatMessage]
    max_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int = 0
    """Above 0: log-probabilities of the tokens said, and of so many others. `transformers serve` leaves them out."""
    switches: Mapping[str, Any] = field(default_factory=dict)
    """What the server's chat template is given beside the messages, as vLLM, SGLang, llama.cpp and `transformers serve` take it."""

    def body(self, model: str) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "messages": list(self.messages), "max_tokens": self.max_tokens}
        body["temperature"] = self.temperature
        if self.temperature > 0:
            body["top_p"] = self.top_p
        if self.seed is not None:
            body["seed"] = self.seed & 0x7FFFFFFF  # llama.cpp's seed has 32 bits, and some languages' numbers have 53
        if self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if self.switches:
            body[SWITCHES] = dict(self.switches)
        return body


@dataclass(frozen=True)
class Answer:
    """What the server said to one question."""

    text: str = ""
    finish_reason: str = ""
    """stop, length, … as the server says it; empty if it does not."""
    tokens: int | None = None
    """Generated tokens, the end of turn included; None if the server does not count."""
    prompt_tokens: int | None = None
    choice: dict[str, Any] = field(default_factory=dict)
    """The choice as the server sent it: `message`, `finish_reason`, `logprobs`."""
    refused: str = ""
    """The server's words if it would not take this question; nothing was generated then."""
    too_long: bool = False
    """Refused because the conversation and the reply do not fit the server's context."""


class ServerClient:
    """Asks one server for one model. Raises as `ask` does."""

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
        self._insistence = RetryPolicy(stop, concurrency, sleep)

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
        """One conversation, one choice: `message` with `content` (str or None), `finish_reason`, perhaps `logprobs`.

        Raises as `ask` does, and DataError if the server refuses the conversation. Use `ask` for many.
        """
        answer = self.ask([Question(messages, max_tokens, temperature, top_p, seed, top_logprobs)])[0]
        if answer.refused:
            raise errors.refused(self.address, self.model, answer.refused)
        return answer.choice

    def ask(self, questions: Sequence[Question], *, tries: int = TRIES) -> list[Answer]:
        """One answer each, in order. A question that the server will not take is an answer too (`refused`).

        tries   at most, of each question

        Raises AccessError (401, 403), ConfigError (no such model or path, a redirect), NetworkError (not reached, busy, too
        slow or no answer, after the last try), and Stopped, at once, when the run is asked to stop.
        """
        return self._run([partial(self._answer, question) for question in questions], tries)

    def models(self, *, tries: int = TRIES) -> dict[str, int | None]:
        """The names that the server lists, in its order, each with its context length in tokens if it is told (vLLM's
        and SGLang's `max_model_len`); none if there is no list. Raises as `ask` does, save for a list
        that fails: `transformers serve` answers 500 if the machine has no Hub cache.
        """
        return self._run([self._models], tries)[0]

    def _run(self, requests: Sequence[Callable[[AsyncClient], Awaitable[T]]], tries: int) -> list[T]:
        async def all_of_them() -> list[T]:
            async with self._client() as client:
                return await self._insistence.all_of([partial(request, client) for request in requests], tries)

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
            ),  # `RetryPolicy` counts; a wait for a connection would cost time of the limit
            verify=_certificates(),
            follow_redirects=False,
            event_hooks={"response": [bound_async]},
            trust_env=not self.address.is_loopback,  # HTTP_PROXY is not meant for this machine itself
        )

    async def _answer(self, question: Question, client: AsyncClient) -> Answer:
        response = await self._response(
            client.post(self.address.of("chat/completions"), json=question.body(self.model))
        )
        if response.status_code in _REFUSED:
            said = errors.quoted_message(response, self.address)
            return Answer(refused=said or f"status {response.status_code}", too_long=errors.is_about_length(said))
        if not response.is_success:
            raise errors.of_status(response, self.address, self.model)
        try:
            answer = foreign_json(response.content)
            choice = answer["choices"][0]
            text = choice["message"].get("content") or ""
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Fault(errors.no_answer(response, self.address), SLOW_TRIES) from None
        usage = answer.get("usage") or {}
        return Answer(
            text=text,
            finish_reason=str(choice.get("finish_reason") or ""),
            tokens=_count(usage, "completion_tokens"),
            prompt_tokens=_count(usage, "prompt_tokens"),
            choice=choice,
        )

    async def _models(self, client: AsyncClient) -> dict[str, int | None]:
        response = await self._response(client.get(self.address.of("models")), busy=frozenset())
        if response.status_code in (401, 403) or response.has_redirect_location:
            raise errors.of_status(response, self.address, self.model)
        try:
            return {
                str(model["id"]): _count(model, "max_model_len") for model in foreign_json(response.content)["data"]
            }
        except (ValueError, LookupError, TypeError):
            return {}

    async def _response(self, request: Coroutine[Any, Any, Response], busy: Set[int] = _BUSY) -> Response:
        """The answer to one try, whatever its status. Raises Fault if the next try may go better."""
        import httpx2

        try:
            async with asyncio.timeout(self._timeout_seconds):  # of the whole: httpx's own begin anew with every byte
                response = await request
        except TimeoutError:
            raise Fault(errors.too_slow(self.address, self._timeout_seconds), SLOW_TRIES) from None
        except httpx2.HTTPError as error:
            if is_refusal(error):
                raise Fault(errors.unreadable(self.address, error), SLOW_TRIES) from None
            raise Fault(errors.unreachable(self.address, error), TRIES) from None
        if response.status_code in busy:
            raise Fault(errors.busy(response, self.address), TRIES, _retry_after(response))
        return response


@cache
def _certificates() -> SSLContext:
    """Which certificates are believed; once, because to read them takes 50 ms."""
    import httpx2

    return httpx2.create_ssl_context()


def _retry_after(response: Response) -> float:
    """Seconds that the server asks to wait; 0 if it does not say, or says a date."""
    value = response.headers.get("Retry-After", "")
    return float(value) if _SECONDS.fullmatch(value) else 0.0


def _count(usage: object, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None
