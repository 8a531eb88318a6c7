"""What a run gives to whoever works on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.core.config import Stage3Config
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.security.secrets import Secret


@dataclass
class Context:
    config: Stage3Config
    run: Run
    stop: StopToken = field(default_factory=StopToken)
    token: Secret | None = None
    """The Hugging Face token, in memory only; set by whoever started the run, checked by the stage credentials."""

    @property
    def token_text(self) -> str | None:
        """The token as the Hub's client takes it."""
        return self.token.reveal() if self.token is not None else None
