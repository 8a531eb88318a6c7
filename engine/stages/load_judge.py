"""The judge of `--judge`. It stands above the judges and the demo, which do not know each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.pairs.generation.methods import needs_judge
from engine.pairs.judges.base import Judge, LoadedPolicy

if TYPE_CHECKING:
    from engine.models.backend import Backend
    from engine.run.context import Context


def load_judge(context: Context, policy: LoadedPolicy | None = None) -> Judge | None:
    """The judge of `--judge`, or None. `policy` is the Stage 2 policy where it is loaded; --judge self loads it otherwise.

    Raises a Stage3Error, with its cause, for a judge that cannot be loaded: there is no other to fall back on.
    """
    match context.config.judge:
        case "none":
            return None
        case "self":
            from engine.pairs.judges.self_judge import load_self_judge

            return load_self_judge(context, policy)
        case "reward-model":
            from engine.pairs.judges.reward_model import load_reward_model

            return load_reward_model(context)
        case "server":
            from engine.pairs.judges.server import connect_server_judge

            return connect_server_judge(context)
        case "demo":
            from engine.demo.judge import GrammarJudge

            return GrammarJudge()


def ordering_judge(context: Context, backend: Backend) -> Judge | None:
    """The judge that the method makes pairs with; None where it needs none. The policy is not loaded twice for it."""
    if not needs_judge(context.config):
        return None
    model, tokenizer = getattr(backend, "model", None), getattr(backend, "tokenizer", None)
    return load_judge(context, LoadedPolicy(model, tokenizer) if model is not None and tokenizer is not None else None)
