"""The server backend: the Stage 2 policy behind an OpenAI-compatible address (vLLM, TGI, llama.cpp, `transformers serve`).

The server renders the conversation with its own copy of the chat template and samples with its own generator: greedy
texts are those of the local backend (tests/models/test_server.py), sampled ones follow the same law and are others. Whether
the same seed gives the same text twice is the server's to say; `check` asks.
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
from engine.models.server.client import SWITCHES, Answer, Question, ServerClient
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
"""The highest that OpenAI's interface allows: two draws of so many tokens are the same if nothing is drawn."""
PROBE_TOP_P = 0.99
"""TGI refuses 1."""
CHECK_TRIES = 2
BATCHES_OF_CONCURRENCY = 4
"""So many times what is under way at once is handed over together: while its last replies come, places stand empty."""

# "stop" is OpenAI's, the others are what servers send in its place.
_FINISHED = {"stop", "eos", "eos_token", "stop_sequence", "end_turn"}
_CUT_OFF = {"length", "max_tokens"}


class ServerBackend:
    """Answers conversations by asking a server. `tokens` counts what it generated."""

    def __init__(self, client: ServerClient, tokenizer: PreTrainedTokenizerBase, *, is_the_policy: bool = True) -> None:
        """is_the_policy   whether the model there should read as the base model here does; a critic is another model"""
        self._is_the_policy = is_the_policy
        self.client = client
        self.tokenizer = tokenizer
        self.tokens = 0
        self.context_length: int | None = None
        """Tokens that conversation and reply may have together, as the server said at `check`; None if it did not."""
        self._answered = False
        self._special = control_pattern(tokenizer)
        self._switches = behaviour_of(tokenizer).asking.switches
        """With which the model is asked not to think; none once the server has refused them."""
        self._odd_endings: Counter[str] = Counter()

    def reply(
        self, conversations: Sequence[Conversation], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[Reply]:
        """One reply each, in order; a RefusedReply if the server will not take a conversation.

        Raises as `ServerClient.ask` does, and DataError if it has refused everything so far: then not the conversations
        are at fault.
        """
        answers = self.client.ask(
            [
                Question(
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
        """Tokens of the conversation, by the base model's tokenizer here: too long is known before anything is sent."""
        return prompt_length(self.tokenizer, conversation)

    def batch_size(self, longest: int) -> int:
        return self.client.concurrency * BATCHES_OF_CONCURRENCY

    def clear_cache(self) -> None:
        """What the server keeps is its own."""

    def check(self, settings: SamplingSettings) -> list[str]:
        """Ask the server a few short questions. Returns what a person should know before a long run, as sentences.

        settings   of the run: `transformers serve --continuous-batching` samples for its whole life as its first question
                   asked for, so the first question must not be another

        Raises AccessError, ConfigError (no such model: the nearest is named), DataError and NetworkError.
        """
        listed = self.client.models(tries=CHECK_TRIES)
        self.context_length = listed.get(self.client.model)
        answer, notes = self._asked_not_to_think(list(listed), settings)
        if listed and self.client.model not in listed:
            names = ", ".join(visible_line(name, 120) for name in list(listed)[:8])
            notes.append(f"The server answers for {self.client.model!r}, which it does not list; it lists {names}.")
        here = self.length(PROBE)
        if self._is_the_policy and answer.prompt_tokens is not None and answer.prompt_tokens != here:
            notes.append(
                f"The server reads a question of {here} tokens as {answer.prompt_tokens}: it has another chat template, or "
                f"another model, than {self.tokenizer.name_or_path}."
            )
        return notes + (self._about_sampling() if settings.temperature > 0 else [])

    def warnings(self) -> list[str]:
        """What was strange about the answers so far, as sentences."""
        return [
            f"{count} replies ended with {visible_line(ending, 40) or 'no finish_reason'!r}: counted as cut off."
            for ending, count in self._odd_endings.most_common()
        ]

    def _asked_not_to_think(self, listed: Sequence[str], settings: SamplingSettings) -> tuple[Answer, list[str]]:
        """The answer to a first question, and what to know of how it is asked. Not every server takes a template's switches."""
        try:
            return self._probe(listed, settings), []
        except Stage3Error as error:
            if not self._switches or SWITCHES not in f"{error.what} {error.why}":
                raise
        self._switches = {}
        note = f"The server does not take {SWITCHES}: the model may think first. A thought is taken out of its reply."
        return self._probe(listed, settings), [note]

    def _probe(self, listed: Sequence[str], settings: SamplingSettings) -> Answer:
        unlisted = bool(listed) and self.client.model not in listed
        try:
            question = Question(PROBE, 1, settings.temperature, settings.top_p, switches=self._switches)
            answer = self.client.ask([question], tries=CHECK_TRIES)[0]
        except Stage3Error as error:
            # `transformers serve` answers 500 for a name that it cannot load, others 404.
            if unlisted and error.exit_code in (ExitCode.USAGE, ExitCode.NETWORK):
                raise errors.unknown_model(self.client.address, self.client.model, listed, error.what) from None
            raise
        # Pinned to one folder, `transformers serve` lists others, or none, and names its own in the refusal.
        if answer.refused and (unlisted or (not listed and self.client.model in answer.refused)):
            raise errors.unknown_model(self.client.address, self.client.model, listed, answer.refused)
        if answer.refused:
            raise errors.refused(self.client.address, self.client.model, answer.refused)
        return answer

    def _about_sampling(self) -> list[str]:
        """Whether the server draws, and draws the same again. `transformers serve` takes a temperature without sampling
        if the model's generation_config does not set `do_sample`, and its seed is one for all that is under way.
        """
        questions = [Question(PROBE, PROBE_TOKENS, PROBE_TEMPERATURE, PROBE_TOP_P, seed) for seed in (1, 2, 1)]
        answers = self.client.ask(questions, tries=CHECK_TRIES)
        if any(answer.refused for answer in answers):
            return []
        one, other, again = (answer.text for answer in answers)
        if one == other == again:
            return [
                f"The server gave one text for two seeds at temperature {PROBE_TEMPERATURE:g}: it does not sample. With "
                'transformers serve, set "do_sample": true in the generation_config.json of the model.'
            ]
        if one != again:
            return ["The server gave two texts for one seed: a run that was stopped and resumed will have other pairs."]
        return []

    def _reply(self, answer: Answer) -> Reply:
        if answer.refused:
            return RefusedReply("", finished=False, tokens=0, reason=answer.refused, too_long=answer.too_long)
        if answer.finish_reason not in _FINISHED | _CUT_OFF:
            self._odd_endings[answer.finish_reason] += 1
        text = without_thought(answer.text).strip()
        if half := half_character(text):
            return RefusedReply("", False, answer.tokens or 0, f"half a character ({half}) is in it", no_text=True)
        tokens = len(self.tokenizer.encode(text, add_special_tokens=False)) if answer.tokens is None else answer.tokens
        # `transformers serve` says "length" of a reply whose end of turn is its last allowed token: cut off, for us.
        return Reply(text, finished=answer.finish_reason in _FINISHED, tokens=tokens)


def load_server_client(config: Stage3Config, role: ServerRole, stop: StopToken) -> ServerClient:
    """A client of the server, which nothing was asked yet. Raises ConfigError, AccessError, UnsafeError."""
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
    """A server as a backend. Nothing is asked of it yet: `check` does.

    token   the Hub's, for the base model's tokenizer; the server's own is read from the environment
    """
    from engine.models.loading import load_tokenizer

    tokenizer = load_tokenizer(config, token)
    return ServerBackend(load_server_client(config, role, stop), tokenizer, is_the_policy=role.role == "server")
