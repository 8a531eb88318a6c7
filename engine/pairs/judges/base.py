"""The interface of a judge, which scores two replies to one conversation.

Stage quality compares drafts with revisions, the evaluation Stage 2's with Stage 3's answers.
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

Outcome = Literal["better", "equal", "worse", "not scored"]


SERVER_FAILED = "the server failed at it"
"""Why a comparison has no score. The next start scores it again."""


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
    """The principle behind the revision; if None, judges that need a principle draw one."""
    criterion: str | None = None
    """The criterion to judge by, instead of a principle of the constitution."""


@dataclass(frozen=True)
class ScorePair:
    """A judge's scores of the two replies. Higher is better; scores are comparable only within one comparison.

    Both are None if the judge cannot score them (for example, because they are too long); `detail["not scored"]` is the reason.
    """

    first: float | None
    second: float | None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """The outcome for the second reply, which is better only if its score is strictly higher."""
        if self.first is None or self.second is None:
            return "not scored"
        return "better" if self.second > self.first else "worse" if self.second < self.first else "equal"


def too_long(tokens: int, limit: int) -> ScorePair:
    """The result for a comparison that does not fit the judge's context. Truncated, it would be a different text."""
    return ScorePair(
        None, None, {"not scored": f"longer than the {limit} tokens that the judge reads", "tokens": tokens}
    )


class Judge(Protocol):
    name: str
    """Equal to `judge_name`."""
    about: str
    """What the judge is, and the unit of its scores, in one sentence."""

    def score(self, comparisons: Sequence[Comparison]) -> list[ScorePair]:
        """Score one batch, in order. Raises a Stage3Error instead of guessing; out-of-memory errors pass through."""
        ...


@runtime_checkable
class FindsFlaws(Protocol):
    """A judge that can also decide whether a single reply is unacceptable."""

    def flawed(self, conversation: Conversation, reply: str) -> bool: ...


@dataclass(frozen=True)
class LoadedPolicy:
    """A Stage 2 policy that is already in memory; `active` enables its adapter for the duration of a `with` block."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    active: Callable[[], AbstractContextManager[None]] = nullcontext


class LoadJudge(Protocol):
    """Loads the judge of `--judge`; None for "none". `policy` is the Stage 2 policy, if it is already in memory."""

    def __call__(self, config: Stage3Config, policy: LoadedPolicy | None = None) -> Judge | None: ...


def judge_name(config: Stage3Config) -> str | None:
    """The name of `--judge` in scores and reports, known before the judge is loaded; None for "none"."""
    match config.judge:
        case "none":
            return None
        case "reward-model":
            return f"reward-model {config.reward_model_id}"
        case "server":
            return f"server {config.judge_model or config.server_model}"
        case "auto":
            return f"the first to pass: {', '.join(filter(None, (_server(config), config.reward_model_id, 'self')))}"
        case name:
            return name


def _server(config: Stage3Config) -> str | None:
    return config.judge_model or config.server_model if config.judge_url or config.server_url else None
