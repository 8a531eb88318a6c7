"""What a judge is: it scores two replies to one conversation.

Stage quality asks it about drafts and revisions, the evaluation about Stage 2's and Stage 3's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from engine.core.config import Stage3Config
from engine.models.chat import Conversation

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.run.context import Context

Outcome = Literal["better", "equal", "worse", "not scored"]


@dataclass(frozen=True)
class Comparison:
    """Two replies to one conversation."""

    id: str
    conversation: Conversation
    first: str
    """The draft, or Stage 2's answer."""
    second: str
    """The revision, or Stage 3's answer."""
    principle_id: str | None = None
    """The principle that the revision was made by; a judge that needs one draws it if there is none."""
    criterion: str | None = None
    """What to judge by, in place of a principle of the constitution."""


@dataclass(frozen=True)
class ScorePair:
    """What a judge gives the two replies of a case: higher is better, comparable within the case.

    Both are None if the judge cannot score this case (too long for it); `detail` then says why under "not scored".
    """

    first: float | None
    second: float | None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """Of the second reply. Better only if its score is strictly higher."""
        if self.first is None or self.second is None:
            return "not scored"
        return "better" if self.second > self.first else "worse" if self.second < self.first else "equal"


def too_long(tokens: int, most: int) -> ScorePair:
    """Of a case that does not fit the judge: cutting it would score another text."""
    return ScorePair(
        None, None, {"not scored": f"longer than the {most} tokens that the judge reads", "tokens": tokens}
    )


class Judge(Protocol):
    name: str
    """As `judge_name` has it."""
    about: str
    """Who judges, and the unit of its scores, in one sentence."""

    def score(self, cases: Sequence[Comparison]) -> list[ScorePair]:
        """One a case, in their order, as one batch. Raises a Stage3Error rather than guess; memory errors pass through."""
        ...


@runtime_checkable
class TellsFlaws(Protocol):
    """A judge that also tells of one reply alone whether it may be sent."""

    def flawed(self, conversation: Conversation, reply: str) -> bool: ...


@dataclass(frozen=True)
class LoadedPolicy:
    """A Stage 2 policy that is in memory already; `active` holds its adapter on while it is asked."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    active: Callable[[], AbstractContextManager[None]] = nullcontext


class LoadJudge(Protocol):
    """Loads the judge of `--judge`; None if it is "none". `policy` is the Stage 2 policy, if it is in memory."""

    def __call__(self, context: Context, policy: LoadedPolicy | None = None) -> Judge | None: ...


def judge_name(config: Stage3Config) -> str | None:
    """What the judge of `--judge` is called in scores and reports, known before it is loaded; None if nothing scores."""
    match config.judge:
        case "none":
            return None
        case "reward-model":
            return f"reward-model {config.reward_model_id}"
        case "server":
            return f"server {config.judge_model or config.server_model}"
        case "auto":
            return (
                f"the first that passes: {', '.join(filter(None, (_server(config), config.reward_model_id, 'self')))}"
            )
        case name:
            return name


def _server(config: Stage3Config) -> str | None:
    return config.judge_model or config.server_model if config.judge_url or config.server_url else None
