"""State shared by all stages of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from engine.core.config import Stage3Config
from engine.core.events import Tell, nobody
from engine.core.layout import CACHE_DIR
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

    cache_folder: Path | None = None
    """Folder of the keyed caches; default: in the run folder. A trial uses its sweep's."""

    tell: Tell = nobody
    """Reports what happens while the stage waits and cannot yield: a server that is left out. Set by the session."""

    @property
    def cache(self) -> Path:
        return self.cache_folder or self.run / CACHE_DIR

    @property
    def token_text(self) -> str | None:
        """The token as plain text, for the Hub's client."""
        return self.token.reveal() if self.token is not None else None
