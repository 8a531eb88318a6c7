"""The seam between pairs and what answers conversations: the local model, a server, or one for drafts and one for revisions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from engine.core.config import Stage3Config
from engine.models.chat import Conversation
from engine.models.generation.sampling import Reply, SamplingSettings
from engine.models.server.roles import ServerRole, critic_server, policy_server
from engine.run.stop import StopToken


class Backend(Protocol):
    """Whatever answers conversations."""

    @property
    def tokens(self) -> int:
        """Generated so far."""
        ...

    def reply(
        self, conversations: Sequence[Conversation], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[Reply]:
        """One reply each, in order. Raises Stopped when the run is asked to stop."""
        ...

    def length(self, conversation: Conversation) -> int:
        """Tokens of the conversation as the model reads it."""
        ...

    def batch_size(self, longest: int) -> int:
        """Conversations to hand over at once, if the longest is of `longest` tokens with its reply."""
        ...

    def check(self, settings: SamplingSettings) -> list[str]:
        """Look before a long run; what a person should know of it, as sentences."""
        ...

    def warnings(self) -> list[str]:
        """What was strange about the replies so far, as sentences."""
        ...

    def clear_cache(self) -> None:
        """Keep nothing of what was read before."""
        ...

    @property
    def context_length(self) -> int | None:
        """Tokens that conversation and reply may have together; None if it is not known."""
        ...


def load_backend(config: Stage3Config, adapter: Path, stop: StopToken, token: str | None) -> Backend:
    """The policy: on the server of `--server-url`, else here, with the Stage 2 adapter. Beside it the critic of `--critic-url`,
    if there is one.
    """
    critic = critic_server(config)  # first, because half a server is told before a model is loaded
    policy = _load_policy(config, adapter, stop, token)
    return policy if critic is None else PolicyAndCritic(policy, _on_server(config, critic, stop, token))


def _load_policy(config: Stage3Config, adapter: Path, stop: StopToken, token: str | None) -> Backend:
    server = policy_server(config)
    if server is not None:
        return _on_server(config, server, stop, token)
    from engine.models.local_backend import load_stage2_backend

    return load_stage2_backend(config, adapter, stop, token)


def _on_server(config: Stage3Config, server: ServerRole, stop: StopToken, token: str | None) -> Backend:
    from engine.models.server.backend import load_server_backend

    return load_server_backend(config, server, stop, token)


class PolicyAndCritic:
    """A policy that drafts, and a critic that writes critiques and revisions: a backend whose replies are the policy's."""

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
        """The shorter of the two: draft, critique and revision stand in one conversation."""
        known = [one.context_length for one in (self.policy, self.critic) if one.context_length is not None]
        return min(known, default=None)


def critic_of(backend: Backend) -> Backend:
    """Who writes critiques and revisions."""
    return backend.critic if isinstance(backend, PolicyAndCritic) else backend
