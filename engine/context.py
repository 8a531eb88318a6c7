"""What a run gives to whoever works on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.config import Stage3Config
from engine.run import Run
from engine.secrets import Secret
from engine.stop import StopToken


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
