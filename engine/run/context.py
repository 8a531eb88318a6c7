"""State shared by all stages of a run. Functions that stages call take the values they need, not the whole context."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.core.config import Stage3Config
from engine.core.events import EventSink, discard_event
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.security.secrets import Secret


@dataclass
class Context:
    config: Stage3Config
    run: Run
    stop: StopToken = field(default_factory=StopToken)
    token: Secret | None = None
    """The Hugging Face token, in memory only; set by the command or wizard, checked by stage credentials."""

    emit: EventSink = discard_event
    """Emits events while the stage waits and cannot yield, for example when a server is left out. Set by the session."""

    @property
    def token_text(self) -> str | None:
        """The token as plain text, for the Hub's client."""
        return self.token.reveal() if self.token is not None else None
