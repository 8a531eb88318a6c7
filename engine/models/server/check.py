"""Checks of servers before a run uses them: whether they serve the same model, and whether they sample."""

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
"""The maximum of OpenAI's API. At this temperature two samples of PROBE_TOKENS are equal only if the server does not sample."""
PROBE_TOP_P = 0.99
"""TGI refuses 1."""
CHECK_TRIES = 2


@dataclass(frozen=True)
class CheckedServer:
    """What the short requests of `check` found out about one server."""

    address: ServerAddress
    listed: tuple[str, ...]
    """The models that it lists; empty if it has no list."""
    context_length: int | None
    prompt_tokens: int | None
    """The number of tokens that it reports for the probe; None if it reports none."""
    notes: tuple[str, ...]


def require_same_model(checked: Sequence[CheckedServer], model: str) -> None:
    """Raises ConfigError if several servers serve different models, as far as their responses show."""
    option = checked[0].address.option
    require_consistent_listings(model, {one.address: one.listed for one in checked if one.listed})
    counts = {one.address: one.prompt_tokens for one in checked if one.prompt_tokens is not None}
    if len(set(counts.values())) > 1:
        raise errors.different_prompts(model, option, counts)


def require_consistent_listings(model: str, listed: Mapping[ServerAddress, Sequence[str]]) -> None:
    """Raises ConfigError if some servers list the model, and others list only other models."""
    if len({model in names for names in listed.values()}) > 1:
        raise errors.different_models(model, next(iter(listed)).option, listed)


def require_same_listing(servers: ServerClient) -> None:
    """Request the list of models from each of several servers; one that cannot be reached is left out. Raises as
    `require_consistent_listings`."""
    listed = {}
    for server, client in servers.per_server() if len(servers.pool.servers) > 1 else ():
        try:
            names = list(client.models(tries=CHECK_TRIES))
        except NetworkError as error:
            servers.pool.keep_out(server, f"{error.what} {error.why}")
            continue
        servers.record_listing(server, names)
        if names:
            listed[server.address] = names
    require_consistent_listings(servers.model, listed)


def combined_notes(checked: Sequence[CheckedServer]) -> list[str]:
    """The notes about all servers, without duplicates; a note that does not apply to all of them names its server."""
    return list(
        dict.fromkeys(
            note if all(note in other.notes for other in checked) else f"{one.address}: {note}"
            for one in checked
            for note in one.notes
        )
    )


def sampling_notes(client: ServerClient) -> list[str]:
    """A note if the server does not sample, or if its seeds are not reproducible. `transformers serve` ignores the temperature
    unless the model's generation_config sets `do_sample`, and it has one seed for all requests in progress.
    """
    requests = [ChatRequest(PROBE, PROBE_TOKENS, PROBE_TEMPERATURE, PROBE_TOP_P, seed) for seed in (1, 2, 1)]
    responses = client.send(requests, tries=CHECK_TRIES)
    if any(response.refused for response in responses):
        return []
    one, other, repeated = (response.text for response in responses)
    if one == other == repeated:
        return [
            f"The server returned the same text for two seeds at temperature {PROBE_TEMPERATURE:g}: it does not sample. With "
            'transformers serve, set "do_sample": true in the model\'s generation_config.json.'
        ]
    if one != repeated:
        return [
            "The server returned two texts for the same seed: a run that is stopped and resumed will get different pairs."
        ]
    return []
