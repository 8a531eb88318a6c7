"""The server backend: the Stage 2 policy behind an OpenAI-compatible API (vLLM, TGI, llama.cpp, `transformers serve`).

The server renders conversations with its own copy of the chat template and samples with its own random numbers. Greedy texts
equal those of the local backend (tests/models/test_server.py); sampled ones have the same distribution. Whether a seed gives
the same text twice depends on the server; `check` finds out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.core.errors import ExitCode, NetworkError, Stage3Error
from engine.core.events import EventSink, discard_event
from engine.core.wording import plural
from engine.models.chat import Conversation
from engine.models.generation.sampling import RefusedReply, Reply, SamplingSettings, prompt_length
from engine.models.server import errors
from engine.models.server.address import server_address
from engine.models.server.api import SWITCHES, ChatRequest, ChatResponse
from engine.models.server.check import (
    CHECK_TRIES,
    PROBE,
    CheckedServer,
    combined_notes,
    require_same_model,
    sampling_notes,
)
from engine.models.server.client import ServerClient
from engine.models.server.pool import Server
from engine.models.server.roles import ServerRole
from engine.models.templates.behaviour import behaviour_of
from engine.models.templates.control_text import control_pattern, split_special_text
from engine.models.templates.thoughts import without_thought
from engine.run.stop import StopToken
from engine.security.sanitize import lone_surrogate, visible_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONVERSATIONS_PER_SLOT = 4
"""Conversations per concurrent request in a batch. More than one, because slots are idle while the last replies arrive."""

# OpenAI sends "stop"; some servers send one of the others instead.
_FINISHED = {"stop", "eos", "eos_token", "stop_sequence", "end_turn"}
_CUT_OFF = {"length", "max_tokens"}


class ServerBackend:
    """Generates replies on a server. `tokens` counts generated tokens."""

    def __init__(self, client: ServerClient, tokenizer: PreTrainedTokenizerBase, *, is_policy: bool = True) -> None:
        """is_policy   whether the server's model should tokenise as the local base model does; a critic is a different model"""
        self._is_policy = is_policy
        self.client = client
        self.tokenizer = tokenizer
        self.tokens = 0
        self.context_length: int | None = None
        """Maximum number of tokens of conversation and reply together, as reported at `check`; None if unknown."""
        self._has_served = False
        self._special = control_pattern(tokenizer)
        self._switches = behaviour_of(tokenizer).options.switches
        """Template arguments that turn thinking off; empty once the server has refused them."""
        self._unknown_finish_reasons: Counter[str] = Counter()

    def reply(
        self, conversations: Sequence[Conversation], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[Reply]:
        """One reply per conversation, in order; a RefusedReply if the server refuses a conversation.

        Raises what `ServerClient.send` raises, and DataError if the server has refused everything so far, because then the
        conversations are not at fault.
        """
        responses = self.client.send(
            [
                ChatRequest(
                    split_special_text(conversation, self._special),
                    settings.max_new_tokens,
                    settings.temperature,
                    settings.top_p,
                    seed if settings.temperature > 0 else None,
                    switches=self._switches,
                )
                for conversation, seed in zip(conversations, seeds, strict=True)
            ]
        )
        # A refusal for any other reason may be due to the server or the model's name rather than to the conversation.
        served = [not response.refused or response.too_long or response.failed for response in responses]
        self._has_served = self._has_served or any(served)
        if responses and not self._has_served:
            raise errors.refused(self.client.address, self.client.model, responses[0].refused)
        replies = [self._reply(response) for response in responses]
        self.tokens += sum(reply.tokens for reply in replies)
        return replies

    def length(self, conversation: Conversation) -> int:
        """Length in tokens according to the local tokenizer, so that a conversation that is too long is never sent."""
        return prompt_length(self.tokenizer, conversation)

    def batch_size(self, longest: int) -> int:
        return self.client.concurrency * CONVERSATIONS_PER_SLOT

    def clear_cache(self) -> None:
        """Nothing to do: the server has its own cache."""

    def check(self, settings: SamplingSettings) -> list[str]:
        """Send each server a few short requests before a long run. Returns notes for the user, as sentences.

        settings   the run's settings, because `transformers serve --continuous-batching` keeps the sampling settings of its
                   first request for as long as it runs

        If one of several servers cannot be reached, it is left out, with a note. Raises AccessError, ConfigError (unknown model,
        with the closest name; several servers with different models), DataError and NetworkError (no server is left).
        """
        checked: list[CheckedServer] = []
        unreachable: list[Stage3Error] = []
        for server, client in self.client.per_server():
            try:
                checked.append(self._check_server(server, client, settings))
            except NetworkError as error:
                unreachable.append(error)
                self.client.pool.keep_out(server, f"{error.what} {error.why}")
        if not checked:
            raise unreachable[0]
        require_same_model(checked, self.client.model)
        lengths = [one.context_length for one in checked if one.context_length is not None]
        self.context_length = min(lengths, default=None)
        self.client.read_loads()
        return [f"{error.what} {error.why} The others continue." for error in unreachable] + combined_notes(checked)

    def _check_server(self, server: Server, client: ServerClient, settings: SamplingSettings) -> CheckedServer:
        """Send the short requests to one server. Raises as `check`."""
        listed = client.models(tries=CHECK_TRIES)
        self.client.record_listing(server, listed)
        response, notes = self._probe_without_thinking(client, list(listed), settings)
        if listed and client.model not in listed:
            notes.append(
                f"The server accepts {client.model!r} but does not list it; it lists {errors.format_names(listed)}."
            )
        expected = self.length(PROBE)
        if self._is_policy and response.prompt_tokens is not None and response.prompt_tokens != expected:
            notes.append(
                f"The server counts {response.prompt_tokens} tokens in a prompt of {expected}: its chat template or model differs "
                f"from {self.tokenizer.name_or_path}."
            )
        notes += sampling_notes(client) if settings.temperature > 0 else []
        return CheckedServer(
            client.address, tuple(listed), listed.get(client.model), response.prompt_tokens, tuple(notes)
        )

    def warnings(self) -> list[str]:
        """Unusual things about the replies so far, as sentences."""
        return [
            f"{plural(count, 'reply', 'replies')} ended with {visible_line(ending, 40) or 'no finish_reason'!r}: counted as "
            "cut off."
            for ending, count in self._unknown_finish_reasons.most_common()
        ]

    def _probe_without_thinking(
        self, client: ServerClient, listed: Sequence[str], settings: SamplingSettings
    ) -> tuple[ChatResponse, list[str]]:
        """The response to a first request, and notes. Template arguments are dropped if the server does not accept them."""
        try:
            return self._probe(client, listed, settings), []
        except Stage3Error as error:
            if not self._switches or SWITCHES not in f"{error.what} {error.why}":
                raise
        self._switches = {}
        note = f"The server does not accept {SWITCHES}: the model may think first. Thoughts are removed from replies."
        return self._probe(client, listed, settings), [note]

    def _probe(self, client: ServerClient, listed: Sequence[str], settings: SamplingSettings) -> ChatResponse:
        unlisted = bool(listed) and client.model not in listed
        try:
            request = ChatRequest(PROBE, 1, settings.temperature, settings.top_p, switches=self._switches)
            response = client.send([request], tries=CHECK_TRIES)[0]
        except Stage3Error as error:
            # For a model that it cannot load, `transformers serve` returns 500, other servers 404.
            if unlisted and error.exit_code in (ExitCode.USAGE, ExitCode.NETWORK):
                raise errors.unknown_model(client.address, client.model, listed, error.what) from None
            raise
        # Pinned to one folder, `transformers serve` lists other models or none, and names its own one in the refusal.
        if response.refused and (unlisted or (not listed and client.model in response.refused)):
            raise errors.unknown_model(client.address, client.model, listed, response.refused)
        if response.refused:
            raise errors.refused(client.address, client.model, response.refused)
        return response

    def _reply(self, response: ChatResponse) -> Reply:
        if response.refused:
            return RefusedReply(
                "", False, tokens=0, reason=response.refused, too_long=response.too_long, failed=response.failed
            )
        if response.finish_reason not in _FINISHED | _CUT_OFF:
            self._unknown_finish_reasons[response.finish_reason] += 1
        text = without_thought(response.text).strip()
        if half := lone_surrogate(text):
            return RefusedReply("", False, response.tokens or 0, f"it contains half a character ({half})", no_text=True)
        tokens = (
            len(self.tokenizer.encode(text, add_special_tokens=False)) if response.tokens is None else response.tokens
        )
        # `transformers serve` reports "length" if the end of turn is the last allowed token; we count that as cut off.
        return Reply(text, finished=response.finish_reason in _FINISHED, tokens=tokens)


def load_server_client(
    config: Stage3Config, role: ServerRole, stop: StopToken, emit: EventSink = discard_event
) -> ServerClient:
    """A client for the servers of a role; sends nothing yet. Raises ConfigError, AccessError, UnsafeError.

    emit   receives an event when a server is left out or comes back, and how busy the servers are
    """
    addresses = [server_address(url, token_variable=role.token_variable, option=role.url_option) for url in role.urls]
    return ServerClient(
        addresses,
        role.model,
        stop,
        concurrency=config.server_concurrency,
        timeout_seconds=config.server_timeout,
        emit=emit,
    )


def load_server_backend(
    config: Stage3Config, role: ServerRole, stop: StopToken, token: str | None = None, emit: EventSink = discard_event
) -> ServerBackend:
    """A server as a backend; sends nothing until `check`.

    token   the Hub's token, for the base model's tokenizer; the server's own token comes from the environment
    """
    from engine.models.loading import load_tokenizer

    tokenizer = load_tokenizer(config, token)
    return ServerBackend(load_server_client(config, role, stop, emit), tokenizer, is_policy=role.role == "server")
