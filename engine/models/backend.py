"""The seam between pairs and what answers conversations: the local model, or a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from engine.core.config import Stage3Config
from engine.models.chat import Conversation
from engine.models.generation.sampling import Reply, SamplingSettings
from engine.models.server.roles import critic_server, policy_server
from engine.run.stop import StopToken


class Backend(Protocol):
    """Whatever answers conversations."""

    tokens: int
    """Generated so far."""

    def reply(
        self, conversations: Sequence[Conversation], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[Reply]:
        """One reply each, in order. Raises Stopped when the run is asked to stop."""
        ...

    def length(self, conversation: Conversation) -> int:
        """Tokens of the conversation as the model reads it."""
        ...

    def batch_size(self, longest: int) -> int:
        """Conversations to hand over at once, where the longest is of `longest` tokens with its reply."""
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
        """Tokens that conversation and reply may have together; None where it is not known."""
        ...


def load_backend(config: Stage3Config, adapter: Path, stop: StopToken, token: str | None) -> Backend:
    """The server of `--server-url`, else the local model with the Stage 2 adapter."""
    server = policy_server(config)
    if server is not None:
        from engine.models.server.backend import load_server_backend

        return load_server_backend(config, server, stop, token)
    from engine.models.local_backend import load_stage2_backend

    return load_stage2_backend(config, adapter, stop, token)


def load_critic(config: Stage3Config, stop: StopToken, token: str | None) -> Backend | None:
    """The server of `--critic-url`, which writes critiques and revisions; None where the policy does."""
    server = critic_server(config)
    if server is None:
        return None
    from engine.models.server.backend import load_server_backend

    return load_server_backend(config, server, stop, token)
