"""Load the judge of `--judge`: above both the judges and the demo, so that neither imports the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.pairs.judges.base import Judge, LoadedPolicy

if TYPE_CHECKING:
    from engine.run.context import Context


def load_judge(context: Context, policy: LoadedPolicy | None = None) -> Judge | None:
    """The judge of `--judge`, or None. `policy` is the Stage 2 policy if it is loaded already; else --judge self loads it.

    Raises a Stage3Error with the cause if the judge cannot be loaded; it never falls back to another judge.
    """
    match context.config.judge:
        case "none":
            return None
        case "auto":
            raise ValueError("which judge it is, its exam tells: engine.pairs.judges.examination")
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
