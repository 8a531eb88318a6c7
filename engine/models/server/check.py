"""What is found out about servers before they are used: whether they serve the same model, and whether they sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.core.errors import NetworkError
from engine.models.chat import Conversation
from engine.models.server import errors
from engine.models.server.address import ServerAddress
from engine.models.server.api import ChatRequest
from engine.models.server.client import ServerClient

PROBE: Conversation = [{"role": "user", "content": "Name an animal, a colour and a town."}]
PROBE_TOKENS = 24
PROBE_TEMPERATURE = 2.0
"""The maximum of OpenAI's API, at which two samples of this many tokens are equal only if the server does not sample."""
PROBE_TOP_P = 0.99
"""TGI refuses 1."""
CHECK_TRIES = 2


@dataclass(frozen=True)
class CheckedServer:
    """What one server answered to the short requests of `check`."""

    address: ServerAddress
    listed: tuple[str, ...]
    """The models that it lists; empty if it has no list."""
    context_length: int | None
    prompt_tokens: int | None
    """Tokens that it counts in the probe; None if it does not count."""
    notes: tuple[str, ...]


def require_the_same(found: Sequence[CheckedServer], model: str) -> None:
    """Raises ConfigError if several servers serve different models, as far as they tell."""
    option = found[0].address.option
    require_one_listing(model, {one.address: one.listed for one in found if one.listed})
    counts = {one.address: one.prompt_tokens for one in found if one.prompt_tokens is not None}
    if len(set(counts.values())) > 1:
        raise errors.different_prompts(model, option, counts)


def require_one_listing(model: str, listed: Mapping[ServerAddress, Sequence[str]]) -> None:
    """Raises ConfigError if some servers list the model, and others only others."""
    if len({model in names for names in listed.values()}) > 1:
        raise errors.different_models(model, next(iter(listed)).option, listed)


def ask_what_they_serve(client: ServerClient) -> None:
    """Ask each of several servers for its models; one that cannot be reached is left out. Raises as `require_one_listing`."""
    listed = {}
    for server, alone in client.each() if len(client.pool.servers) > 1 else ():
        try:
            names = list(alone.models(tries=CHECK_TRIES))
        except NetworkError as error:
            client.pool.still_out(server, f"{error.what} {error.why}")
            continue
        client.has_listed(server, names)
        if names:
            listed[server.address] = names
    require_one_listing(client.model, listed)


def notes_of(found: Sequence[CheckedServer]) -> list[str]:
    """The notes about all servers, each once; one that is not about all of them names its server."""
    return list(
        dict.fromkeys(
            note if all(note in other.notes for other in found) else f"{one.address}: {note}"
            for one in found
            for note in one.notes
        )
    )


def about_sampling(alone: ServerClient) -> list[str]:
    """Whether the server samples, and whether seeds are reproducible. `transformers serve` ignores the temperature unless the
    model's generation_config sets `do_sample`, and it has one seed for all requests in progress.
    """
    questions = [ChatRequest(PROBE, PROBE_TOKENS, PROBE_TEMPERATURE, PROBE_TOP_P, seed) for seed in (1, 2, 1)]
    answers = alone.ask(questions, tries=CHECK_TRIES)
    if any(answer.refused for answer in answers):
        return []
    one, other, again = (answer.text for answer in answers)
    if one == other == again:
        return [
            f"The server gave the same text for two seeds at temperature {PROBE_TEMPERATURE:g}: it does not sample. With "
            'transformers serve, set "do_sample": true in the model\'s generation_config.json.'
        ]
    if one != again:
        return [
            "The server gave two texts for the same seed: a run that is stopped and resumed will get different pairs."
        ]
    return []
