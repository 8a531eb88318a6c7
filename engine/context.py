"""What a run gives to whoever works on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.config import Stage3Config
from engine.errors import PreconditionError
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

    def require_result(self, stage: str) -> dict[str, Any]:
        """The facts of a finished stage. Raises PreconditionError where it has not finished."""
        if self.run.stage(stage).get("status") not in ("done", "skipped"):
            raise PreconditionError(
                f"Stage {stage} has not finished.", "Later stages build on it.", f"Run `--until {stage}` first."
            )
        return self.run.result(stage)
