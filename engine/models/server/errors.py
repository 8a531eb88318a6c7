"""Errors about servers, which quote the server's own message if there is one.

Texts are built from responses, never from requests, and a token that the server echoes is removed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from engine.core.errors import AccessError, ConfigError, DataError, NetworkError, Stage3Error
from engine.core.nesting import parse_untrusted_json
from engine.models.server.address import ServerAddress
from engine.security.sanitize import visible_line

if TYPE_CHECKING:
    from httpx2 import Response

_CONTINUE_HINT = "Everything generated so far is on disk: run the same command again to continue."

# vLLM: "This model's maximum context length is 2048 tokens", "longer than the maximum model length"; TGI: "`inputs`
# tokens + `max_new_tokens` must be <= 2048"; llama.cpp: "exceeds the available context size"; SGLang: "longer than the
# model's context length"; OpenAI: context_length_exceeded.
_ABOUT_LENGTH = re.compile(
    r"context[ _](length|size|window)|maximum (model|sequence|input) length|max_new_tokens|prompt is too long|too many tokens",
    re.IGNORECASE,
)


FEW_FAILED = 5
"""Fewer failed requests than this are tolerated, whatever their share."""


def too_many_failed(failed: int, total: int, most_share: float) -> bool:
    """Whether too many of all requests failed for the run to continue."""
    return failed >= FEW_FAILED and failed > most_share * total


def is_context_overflow(quoted_message: str) -> bool:
    """Whether the message means that conversation and reply exceed the server's context."""
    return _ABOUT_LENGTH.search(quoted_message) is not None


def quoted_message(response: Response, address: ServerAddress) -> str:
    """The server's reason in one line: OpenAI's `error.message`, FastAPI's `detail`, or the text itself."""
    text = response.text
    try:
        parsed = parse_untrusted_json(response.content)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict):
        error = parsed.get("error", parsed.get("detail", parsed.get("message", text)))
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    if address.token:
        text = text.replace(address.token.reveal(), "***")
    return visible_line(text, 300)


def unreachable(address: ServerAddress, error: Exception) -> NetworkError:
    why = visible_line(str(error), 300) or type(error).__name__
    hint = " A wrong clock makes certificates look invalid." if "CERTIFICATE" in why.upper() else ""
    return NetworkError(
        f"The server at {address} cannot be reached.",
        f"{why.rstrip('.')}.{hint}",
        f"Check that it is running, and check {address.option}. {_CONTINUE_HINT}",
    )


def unreadable(address: ServerAddress, error: Exception) -> NetworkError:
    """The body of a response exceeded a limit, and was not read to its end (`engine.core.response_limits`)."""
    return NetworkError(
        f"The server at {address} returned an invalid response.",
        f"{visible_line(str(error), 300)}.",
        f"Check {address.option}: another program may be listening there. {_CONTINUE_HINT}",
    )


def too_slow(address: ServerAddress, seconds: float) -> NetworkError:
    return NetworkError(
        f"The server at {address} did not respond within {seconds:g} s (--server-timeout).",
        "It hangs, or too many requests are queued.",
        f"Send fewer at once (--server-concurrency) or allow more time (--server-timeout). {_CONTINUE_HINT}",
    )


def busy(response: Response, address: ServerAddress) -> NetworkError:
    status, message = response.status_code, quoted_message(response, address)
    if status == 429:
        why, what_to_do = (
            message or "It limits the request rate.",
            "Send fewer at once (--server-concurrency), or wait.",
        )
        if wait := visible_line(response.headers.get("Retry-After", ""), 40):
            what_to_do = f"Wait {wait}{' s' if wait.isdigit() else ''}, or send fewer at once (--server-concurrency)."
    else:
        why = f"The problem is on the server{': ' + message if message else '.'}"
        what_to_do = "Check the server's log."
    return NetworkError(f"The server at {address} returned {status}.", why, f"{what_to_do} {_CONTINUE_HINT}")


def malformed_response(response: Response, address: ServerAddress) -> NetworkError:
    return NetworkError(
        f"The server at {address} does not respond in OpenAI's format.",
        f"It sent ({response.status_code}): {quoted_message(response, address)[:200] or 'nothing'}",
        f"Check {address.option}: for most servers it ends in /v1. A proxy or a login page may be in between.",
    )


def error_for_status(response: Response, address: ServerAddress, model: str) -> Stage3Error:
    """The error for a status that a retry would not change."""
    status, message = response.status_code, quoted_message(response, address)
    if status in (401, 403):
        token = f"The token in {address.token_variable}" if address.token else "No token"
        return AccessError(
            f"The server at {address} denies access ({status}).",
            f"{token} was sent. {'It says: ' + message if message else ''}".strip(),
            f"Put the server's token into the variable {address.token_variable}, never on the command line.",
        )
    if 300 <= status < 400:
        target = visible_line(response.headers.get("Location", "somewhere else"), 200)
        return ConfigError(
            f"The server at {address} redirects to {target} ({status}).",
            "Redirects are not followed, because the token would go to another host.",
            f"Pass the right address with {address.option}.",
        )
    if status == 404:
        return ConfigError(
            f"The server at {address} has no such path, or no model {visible_line(model, 200)!r} (404).",
            message or "It gave no reason.",
            f"Check {address.option} (for most servers it ends in /v1) and {address.model_option}.",
        )
    return NetworkError(
        f"The server at {address} returned {status}.", message or "It gave no reason.", "Check the server's log."
    )


def refused(address: ServerAddress, model: str, message: str) -> DataError:
    return DataError(
        f"The server at {address} refuses a conversation for {visible_line(model, 200)!r}.",
        f"It says: {message or 'nothing'}",
        "Check the server's log.",
    )


def format_names(models: Iterable[str]) -> str:
    """The first of the models that a server lists, as part of a sentence."""
    listed = list(models)
    return ", ".join(visible_line(name, 120) for name in listed[:8]) + (" …" if len(listed) > 8 else "")


def different_models(model: str, option: str, listed: Mapping[ServerAddress, Iterable[str]]) -> ConfigError:
    """Some of several servers list the model, and others list only other models."""
    lists = "; ".join(f"{address} lists {format_names(names)}" for address, names in listed.items())
    return ConfigError(
        f"The {len(listed)} servers of {option} do not serve the same model {visible_line(model, 200)!r}.",
        f"{lists}. Each prompt may go to any of them, so the pairs would come from several models.",
        f"Start the same model on all of them under the same name, or remove the others from {option}.",
    )


def different_prompts(model: str, option: str, tokens: Mapping[ServerAddress, int]) -> ConfigError:
    """Several servers report different numbers of tokens for the same prompt."""
    counts = ", ".join(f"{address} counts {count}" for address, count in tokens.items())
    return ConfigError(
        f"The {len(tokens)} servers of {option} tokenise the same prompt differently for {visible_line(model, 200)!r}.",
        f"{counts} tokens: their models or chat templates differ.",
        f"Start the same model with the same chat template on all of them, or remove the others from {option}.",
    )


def unknown_model(address: ServerAddress, model: str, listed: Sequence[str], message: str) -> ConfigError:
    """The server refused a request for `model`, which it does not list."""
    nearest = difflib.get_close_matches(model, listed, n=1, cutoff=0.0)
    return ConfigError(
        f"The server at {address} has no model {visible_line(model, 200)!r}.",
        f"It says: {message or 'nothing'} It lists: {format_names(listed) or 'none'}.",
        f"Did you mean {address.model_option} {visible_line(nearest[0], 120)}?"
        if nearest
        else f"Pass the model's name on the server with {address.model_option}.",
    )
