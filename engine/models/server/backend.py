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
from engine.core.errors import ExitCode, Stage3Error
from engine.models.chat import Conversation
from engine.models.generation.sampling import RefusedReply, Reply, SamplingSettings, prompt_length
from engine.models.server import errors
from engine.models.server.address import server_address
from engine.models.server.client import SWITCHES, ChatRequest, ChatResponse, ServerClient
from engine.models.server.roles import ServerRole
from engine.models.templates.behaviour import behaviour_of
from engine.models.templates.control_text import control_pattern, split_special_text
from engine.models.templates.thoughts import without_thought
from engine.run.stop import StopToken
from engine.security.sanitize import half_character, visible_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE: Conversation = [{"role": "user", "content": "Name an animal, a colour and a town."}]
PROBE_TOKENS = 24
PROBE_TEMPERATURE = 2.0
"""The maximum of OpenAI's API, at which two samples of this many tokens are equal only if the server does not sample."""
PROBE_TOP_P = 0.99
"""TGI refuses 1."""
CHECK_TRIES = 2
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
        self._answered = self._answered or any(not answer.refused or answer.too_long for answer in answers)
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
        """Send the server a few short requests. Returns notes for the user before a long run, as sentences.

        settings   those of the run, because `transformers serve --continuous-batching` keeps the sampling settings of its
                   first request for as long as it runs

        Raises AccessError, ConfigError (unknown model; names the nearest), DataError and NetworkError.
        """
        listed = self.client.models(tries=CHECK_TRIES)
        self.context_length = listed.get(self.client.model)
        answer, notes = self._asked_not_to_think(list(listed), settings)
        if listed and self.client.model not in listed:
            names = ", ".join(visible_line(name, 120) for name in list(listed)[:8])
            notes.append(f"The server accepts {self.client.model!r} but does not list it; it lists {names}.")
        here = self.length(PROBE)
        if self._is_the_policy and answer.prompt_tokens is not None and answer.prompt_tokens != here:
            notes.append(
                f"The server counts {answer.prompt_tokens} tokens in a prompt of {here}: its chat template or model differs "
                f"from {self.tokenizer.name_or_path}."
            )
        return notes + (self._about_sampling() if settings.temperature > 0 else [])

    def warnings(self) -> list[str]:
        """Unusual things about the replies so far, as sentences."""
        return [
            f"{count} replies ended with {visible_line(ending, 40) or 'no finish_reason'!r}: counted as cut off."
            for ending, count in self._odd_endings.most_common()
        ]

    def _asked_not_to_think(self, listed: Sequence[str], settings: SamplingSettings) -> tuple[ChatResponse, list[str]]:
        """The response to a first request, and notes. Not every server accepts template arguments."""
        try:
            return self._probe(listed, settings), []
        except Stage3Error as error:
            if not self._switches or SWITCHES not in f"{error.what} {error.why}":
                raise
        self._switches = {}
        note = f"The server does not accept {SWITCHES}: the model may think first. Thoughts are removed from replies."
        return self._probe(listed, settings), [note]

    def _probe(self, listed: Sequence[str], settings: SamplingSettings) -> ChatResponse:
        unlisted = bool(listed) and self.client.model not in listed
        try:
            question = ChatRequest(PROBE, 1, settings.temperature, settings.top_p, switches=self._switches)
            answer = self.client.ask([question], tries=CHECK_TRIES)[0]
        except Stage3Error as error:
            # For a model that it cannot load, `transformers serve` returns 500, other servers 404.
            if unlisted and error.exit_code in (ExitCode.USAGE, ExitCode.NETWORK):
                raise errors.unknown_model(self.client.address, self.client.model, listed, error.what) from None
            raise
        # Pinned to one folder, `transformers serve` lists other models or none, and names its own one in the refusal.
        if answer.refused and (unlisted or (not listed and self.client.model in answer.refused)):
            raise errors.unknown_model(self.client.address, self.client.model, listed, answer.refused)
        if answer.refused:
            raise errors.refused(self.client.address, self.client.model, answer.refused)
        return answer

    def _about_sampling(self) -> list[str]:
        """Whether the server samples, and whether seeds are reproducible. `transformers serve` ignores the temperature unless the
        model's generation_config sets `do_sample`, and it has one seed for all requests in progress.
        """
        questions = [ChatRequest(PROBE, PROBE_TOKENS, PROBE_TEMPERATURE, PROBE_TOP_P, seed) for seed in (1, 2, 1)]
        answers = self.client.ask(questions, tries=CHECK_TRIES)
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

    def _reply(self, answer: ChatResponse) -> Reply:
        if answer.refused:
            return RefusedReply("", finished=False, tokens=0, reason=answer.refused, too_long=answer.too_long)
        if answer.finish_reason not in _FINISHED | _CUT_OFF:
            self._odd_endings[answer.finish_reason] += 1
        text = without_thought(answer.text).strip()
        if half := half_character(text):
            return RefusedReply("", False, answer.tokens or 0, f"half a character ({half}) is in it", no_text=True)
        tokens = len(self.tokenizer.encode(text, add_special_tokens=False)) if answer.tokens is None else answer.tokens
        # `transformers serve` reports "length" if the end of turn is the last allowed token; we count that as cut off.
        return Reply(text, finished=answer.finish_reason in _FINISHED, tokens=tokens)


def load_server_client(config: Stage3Config, role: ServerRole, stop: StopToken) -> ServerClient:
    """A client for the server; sends nothing yet. Raises ConfigError, AccessError, UnsafeError."""
    return ServerClient(
        server_address(role.url, token_variable=role.token_variable, option=role.url_option),
        role.model,
        stop,
        concurrency=config.server_concurrency,
        timeout_seconds=config.server_timeout,
    )


def load_server_backend(
    config: Stage3Config, role: ServerRole, stop: StopToken, token: str | None = None
) -> ServerBackend:
    """A server as a backend; sends nothing until `check`.

    token   the Hub's, for the base model's tokenizer; the server's own token comes from the environment
    """
    from engine.models.loading import load_tokenizer

    tokenizer = load_tokenizer(config, token)
    return ServerBackend(load_server_client(config, role, stop), tokenizer, is_policy=role.role == "server")
