"""The interface to whatever generates replies: the local model, a server, or one for drafts and another for revisions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from engine.core.config import Stage3Config
from engine.core.events import EventSink, discard_event
from engine.models.chat import Conversation
from engine.models.generation.sampling import Reply, SamplingSettings
from engine.models.server.roles import ServerRole, critic_server, policy_server
from engine.run.stop import StopToken


class ModelSizes(Protocol):
    """The sizes that a stage needs to plan its batches, and how much the model has generated."""

    @property
    def tokens(self) -> int:
        """Tokens generated so far."""
        ...

    def length(self, conversation: Conversation) -> int:
        """Length of the rendered conversation in tokens."""
        ...

    def batch_size(self, longest: int) -> int:
        """How many conversations to pass at once, if the longest has `longest` tokens, including its reply."""
        ...

    @property
    def context_length(self) -> int | None:
        """Maximum number of tokens of conversation and reply together; None if unknown."""
        ...


class Backend(ModelSizes, Protocol):
    """Generates replies to conversations."""

    def reply(
        self, conversations: Sequence[Conversation], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[Reply]:
        """One reply per conversation, in order. Raises Stopped if a stop is requested."""
        ...

    def check(self, settings: SamplingSettings) -> list[str]:
        """Check the backend before a long run. Returns notes for the user, as sentences."""
        ...

    def warnings(self) -> list[str]:
        """Anything unusual about the replies so far, as sentences."""
        ...

    def clear_cache(self) -> None:
        """Drop cached prefixes."""
        ...


def load_backend(
    config: Stage3Config, adapter: Path, stop: StopToken, token: str | None, emit: EventSink = discard_event
) -> Backend:
    """The policy on the server of `--server-url`, or the local base model with the Stage 2 adapter; with the critic of
    `--critic-url`, if set.

    emit   receives events about servers while requests are in progress
    """
    critic = critic_server(config)  # first, so that incomplete options are reported before a model is loaded
    policy = _load_policy(config, adapter, stop, token, emit)
    return policy if critic is None else PolicyAndCritic(policy, _load_server(config, critic, stop, token, emit))


def _load_policy(config: Stage3Config, adapter: Path, stop: StopToken, token: str | None, emit: EventSink) -> Backend:
    server = policy_server(config)
    if server is not None:
        return _load_server(config, server, stop, token, emit)
    from engine.models.local_backend import load_stage2_backend

    return load_stage2_backend(config, adapter, stop, token)


def _load_server(
    config: Stage3Config, server: ServerRole, stop: StopToken, token: str | None, emit: EventSink
) -> Backend:
    from engine.models.server.backend import load_server_backend

    return load_server_backend(config, server, stop, token, emit)


class PolicyAndCritic:
    """A policy for drafts and a critic for critiques and revisions. As a backend, it replies with the policy."""

    def __init__(self, policy: Backend, critic: Backend) -> None:
        self.policy, self.critic = policy, critic

    @property
    def tokens(self) -> int:
        return self.policy.tokens + self.critic.tokens

    def reply(
        self, conversations: Sequence[Conversation], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[Reply]:
        return self.policy.reply(conversations, settings, seeds)

    def length(self, conversation: Conversation) -> int:
        return self.policy.length(conversation)

    def batch_size(self, longest: int) -> int:
        return self.policy.batch_size(longest)

    def check(self, settings: SamplingSettings) -> list[str]:
        return [*self.policy.check(settings), *(f"The critic: {note}" for note in self.critic.check(settings))]

    def warnings(self) -> list[str]:
        return [*self.policy.warnings(), *(f"The critic: {note}" for note in self.critic.warnings())]

    def clear_cache(self) -> None:
        self.policy.clear_cache()
        self.critic.clear_cache()

    @property
    def context_length(self) -> int | None:
        """The shorter context of the two, because draft, critique and revision share one conversation."""
        known = [one.context_length for one in (self.policy, self.critic) if one.context_length is not None]
        return min(known, default=None)


def critic_of(backend: Backend) -> Backend:
    """The backend for critiques and revisions."""
    return backend.critic if isinstance(backend, PolicyAndCritic) else backend
