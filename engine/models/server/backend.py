"""The server backend: the Stage 2 policy behind an OpenAI-compatible API (vLLM, TGI, llama.cpp, `transformers serve`).

The server renders conversations with its own copy of the chat template and samples with its own random numbers: greedy texts
equal those of the local backend (tests/models/test_server.py), sampled ones have the same distribution. Whether a seed gives
the same text twice depends on the server; `check` finds out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.core.errors import ExitCode, NetworkError, Stage3Error
from engine.core.events import EventSink, discard_event
from engine.models.chat import Conversation
from engine.models.generation.sampling import RefusedReply, Reply, SamplingSettings, prompt_length
from engine.models.server import errors
from engine.models.server.address import server_address
from engine.models.server.api import SWITCHES, ChatRequest, ChatResponse
from engine.models.server.check import (
    CHECK_TRIES,
    PROBE,
    CheckedServer,
    about_sampling,
    notes_of,
    require_the_same,
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

BATCHES_OF_CONCURRENCY = 4
"""Batches are this many times the concurrency, because slots stay idle while the last replies of a batch arrive."""

# "stop" is OpenAI's; some servers send the others instead.
_FINISHED = {"stop", "eos", "eos_token", "stop_sequence", "end_turn"}
_CUT_OFF = {"length", "max_tokens"}


class ServerBackend:
    """Generates replies by asking a server. `tokens` counts generated tokens."""

    def __init__(self, client: ServerClient, tokenizer: PreTrainedTokenizerBase, *, is_policy: bool = True) -> None:
        """is_policy   whether the server's model should tokenise like the local base model; a critic is a different model"""
        self._is_the_policy = is_policy
        self.client = client
        self.tokenizer = tokenizer
        self.tokens = 0
        self.context_length: int | None = None
        """Most tokens of conversation and reply together, as reported at `check`; None if unknown."""
        self._answered = False
        self._special = control_pattern(tokenizer)
        self._switches = behaviour_of(tokenizer).options.switches
        """Template arguments that turn thinking off; empty once the server has refused them."""
        self._odd_endings: Counter[str] = Counter()

    def reply(
        self, conversations: Sequence[Conversation], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[Reply]:
        """One reply per conversation, in order; a RefusedReply if the server refuses a conversation.

        Raises what `ServerClient.ask` raises, and DataError if the server has refused everything so far, because then the
        conversations are not at fault.
        """
        answers = self.client.ask(
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
        told_apart = [not answer.refused or answer.too_long or answer.failed for answer in answers]
        self._answered = self._answered or any(told_apart)
        if answers and not self._answered:
            raise errors.refused(self.client.address, self.client.model, answers[0].refused)
        replies = [self._reply(answer) for answer in answers]
        self.tokens += sum(reply.tokens for reply in replies)
        return replies

    def length(self, conversation: Conversation) -> int:
        """Length in tokens by the local tokenizer, so that too long conversations are known before anything is sent."""
        return prompt_length(self.tokenizer, conversation)

    def batch_size(self, longest: int) -> int:
        return self.client.concurrency * BATCHES_OF_CONCURRENCY

    def clear_cache(self) -> None:
        """Nothing to do: the server has its own cache."""

    def check(self, settings: SamplingSettings) -> list[str]:
        """Send each server a few short requests. Returns notes for the user before a long run, as sentences.

        settings   those of the run, because `transformers serve --continuous-batching` keeps the sampling settings of its
                   first request for as long as it runs

        One of several that cannot be reached is left out, with a note. Raises AccessError, ConfigError (unknown model, names
        the nearest; several servers with different models), DataError and NetworkError (no server is left).
        """
        found: list[CheckedServer] = []
        lost: list[Stage3Error] = []
        for server, alone in self.client.each():
            try:
                found.append(self._checked(server, alone, settings))
            except NetworkError as error:
                lost.append(error)
                self.client.pool.still_out(server, f"{error.what} {error.why}")
        if not found:
            raise lost[0]
        require_the_same(found, self.client.model)
        known = [one.context_length for one in found if one.context_length is not None]
        self.context_length = min(known, default=None)
        self.client.read_loads()
        return [f"{error.what} {error.why} The others go on." for error in lost] + notes_of(found)

    def _checked(self, server: Server, alone: ServerClient, settings: SamplingSettings) -> CheckedServer:
        """What one server answers to the short requests. Raises as `check`."""
        listed = alone.models(tries=CHECK_TRIES)
        self.client.has_listed(server, listed)
        answer, notes = self._asked_not_to_think(alone, list(listed), settings)
        if listed and alone.model not in listed:
            notes.append(
                f"The server accepts {alone.model!r} but does not list it; it lists {errors.shown_names(listed)}."
            )
        here = self.length(PROBE)
        if self._is_the_policy and answer.prompt_tokens is not None and answer.prompt_tokens != here:
            notes.append(
                f"The server counts {answer.prompt_tokens} tokens in a prompt of {here}: its chat template or model differs "
                f"from {self.tokenizer.name_or_path}."
            )
        notes += about_sampling(alone) if settings.temperature > 0 else []
        return CheckedServer(alone.address, tuple(listed), listed.get(alone.model), answer.prompt_tokens, tuple(notes))

    def warnings(self) -> list[str]:
        """Unusual things about the replies so far, as sentences."""
        return [
            f"{count} replies ended with {visible_line(ending, 40) or 'no finish_reason'!r}: counted as cut off."
            for ending, count in self._odd_endings.most_common()
        ]

    def _asked_not_to_think(
        self, alone: ServerClient, listed: Sequence[str], settings: SamplingSettings
    ) -> tuple[ChatResponse, list[str]]:
        """The response to a first request, and notes. Not every server accepts template arguments."""
        try:
            return self._probe(alone, listed, settings), []
        except Stage3Error as error:
            if not self._switches or SWITCHES not in f"{error.what} {error.why}":
                raise
        self._switches = {}
        note = f"The server does not accept {SWITCHES}: the model may think first. Thoughts are removed from replies."
        return self._probe(alone, listed, settings), [note]

    def _probe(self, alone: ServerClient, listed: Sequence[str], settings: SamplingSettings) -> ChatResponse:
        unlisted = bool(listed) and alone.model not in listed
        try:
            question = ChatRequest(PROBE, 1, settings.temperature, settings.top_p, switches=self._switches)
            answer = alone.ask([question], tries=CHECK_TRIES)[0]
        except Stage3Error as error:
            # For a model that it cannot load, `transformers serve` returns 500, other servers 404.
            if unlisted and error.exit_code in (ExitCode.USAGE, ExitCode.NETWORK):
                raise errors.unknown_model(alone.address, alone.model, listed, error.what) from None
            raise
        # Pinned to one folder, `transformers serve` lists other models or none, and names its own one in the refusal.
        if answer.refused and (unlisted or (not listed and alone.model in answer.refused)):
            raise errors.unknown_model(alone.address, alone.model, listed, answer.refused)
        if answer.refused:
            raise errors.refused(alone.address, alone.model, answer.refused)
        return answer

    def _reply(self, answer: ChatResponse) -> Reply:
        if answer.refused:
            return RefusedReply(
                "", False, tokens=0, reason=answer.refused, too_long=answer.too_long, failed=answer.failed
            )
        if answer.finish_reason not in _FINISHED | _CUT_OFF:
            self._odd_endings[answer.finish_reason] += 1
        text = without_thought(answer.text).strip()
        if half := lone_surrogate(text):
            return RefusedReply("", False, answer.tokens or 0, f"half a character ({half}) is in it", no_text=True)
        tokens = len(self.tokenizer.encode(text, add_special_tokens=False)) if answer.tokens is None else answer.tokens
        # `transformers serve` reports "length" if the end of turn is the last allowed token; we count that as cut off.
        return Reply(text, finished=answer.finish_reason in _FINISHED, tokens=tokens)


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

    token   the Hub's, for the base model's tokenizer; the server's own token comes from the environment
    """
    from engine.models.loading import load_tokenizer

    tokenizer = load_tokenizer(config, token)
    return ServerBackend(load_server_client(config, role, stop, emit), tokenizer, is_policy=role.role == "server")
