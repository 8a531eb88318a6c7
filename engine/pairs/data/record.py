"""One line of `pairs.jsonl`, with the notebook's keys and ours. The format is a contract."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from engine.models.chat import Conversation

OK = "ok"
EMPTY_DRAFT = "empty draft"
FAILED_ON_SERVER = "failed on the server"
"""The server kept failing at this prompt while it answered others; `critic_notes` holds its error message."""

TEXT_LABELS = {
    "contrast": ("Under the opposite", "Under the principle"),
    "best-of-n": ("Worst draft", "Best draft"),
}
"""Labels of `base_response` and `revised_response` for methods without draft and revision."""
DRAFT_AND_REVISION = ("Draft", "Revision")


def text_labels(method: object) -> tuple[str, str]:
    """Labels for the two texts of a pair; draft and revision if the method is unknown."""
    return TEXT_LABELS.get(str(method), DRAFT_AND_REVISION)


@dataclass(frozen=True)
class PairRecord:
    """Draft, critique and revision of one prompt, and the outcome."""

    id: str
    prompt: str
    messages: Conversation
    base_response: str
    revised_response: str
    critic_notes: str
    principle_ids: tuple[str, ...]
    """The principle of each attempt, in order."""
    attempts: int
    status: str
    """`ok`, or why there is no pair."""
    base_score: float | None = None
    revised_score: float | None = None
    chosen: str = "revised"
    made_by: tuple[str, ...] = ()
    """The ones among `principle_ids` whose critique led to the revision, one per round. Empty if there is no pair."""
    finish: dict[str, str] = field(default_factory=dict)
    """How draft, critique and revision ended: `stopped` or `cut off`."""
    made_with: str = ""
    """A hash of everything its texts depend on (`engine.pairs.generation.identity`)."""
    prompt_tokens: int | None = None
    method: str = "critique-revision"
    """How it was generated (`--method`); empty if it was imported from a file that does not say.

    For every method, `base_response` is the rejected text and `revised_response` the chosen one: draft and revision, the answers
    under the opposite and under the principle, or the worst and the best draft."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair as read from any pairs file: ours, the notebook's, or TRL's with prompt, chosen and rejected."""

    id: str
    prompt: str
    messages: Conversation
    base_response: str
    """The draft: rejected, unless `chosen` says otherwise."""
    revised_response: str
    status: str = OK
    chosen: str = "revised"
    """Which of the two trains as the better one: `revised` or `base`."""
    critic_notes: str = ""
    principle_ids: tuple[str, ...] = ()
    made_by: tuple[str, ...] = ()
    """The ones among `principle_ids` whose attempt made the revision."""
    base_score: float | None = None
    revised_score: float | None = None
    finish: dict[str, str] = field(default_factory=dict)
    method: str = ""
    """How it was made; empty if the file does not say."""
    relevance: float | None = None
    """How much more likely the prompt makes the revision, in nats; None if not measured."""
    surprise: float | None = None
    """How much less likely the revision is than what the base model would have sampled, in nats per token; None if not measured."""

    @property
    def preferred(self) -> str:
        """The text that trains as the better one."""
        return self.base_response if self.chosen == "base" else self.revised_response

    @property
    def dispreferred(self) -> str:
        return self.revised_response if self.chosen == "base" else self.base_response
