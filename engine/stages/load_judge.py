"""Load the judge set with `--judge`. This module is above both the judges and the demo, so neither imports the other."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.core.errors import PreconditionError
from engine.core.events import Event
from engine.models.adapters.source import adapter_folder
from engine.pairs.generation.methods import needs_judge
from engine.pairs.judges.base import Judge, LoadedPolicy, LoadJudge
from engine.pairs.judges.examined_judge import ExaminedJudge, examined_judge

if TYPE_CHECKING:
    from engine.core.config import Stage3Config
    from engine.models.backend import Backend
    from engine.run.context import Context


def load_judge(context: Context, policy: LoadedPolicy | None = None) -> Judge | None:
    """The judge set with `--judge`, or None. `policy` is the Stage 2 policy if already loaded; else --judge self loads it.

    Raises a Stage3Error with the cause if the judge cannot be loaded: it never falls back to another judge.
    """
    match context.config.judge:
        case "none":
            return None
        case "auto":
            raise ValueError("--judge auto must be resolved first: engine.pairs.judges.examined_judge")
        case "self":
            from engine.pairs.judges.self_judge import load_self_judge

            return load_self_judge(context.config, policy or _stage2_policy(context))
        case "reward-model":
            from engine.pairs.judges.reward_model import load_reward_model

            return load_reward_model(context.config, context.token_text, context.stop)
        case "server":
            from engine.pairs.judges.server import connect_server_judge

            return connect_server_judge(context.config, context.stop, context.emit, context.token_text)
        case "demo":
            from engine.demo.judge import GrammarJudge

            return GrammarJudge()


def judge_loader(context: Context) -> LoadJudge:
    """`load_judge` for callers that have only the configuration."""

    def load(config: Stage3Config, policy: LoadedPolicy | None = None) -> Judge | None:
        return load_judge(replace(context, config=config), policy)

    return load


def _stage2_policy(context: Context) -> LoadedPolicy:
    """The Stage 2 policy, loaded from disk."""
    from engine.models.local_backend import load_stage2_backend

    adapter = adapter_folder(context.config, context.run, context.token_text)
    backend = load_stage2_backend(context.config, adapter, context.stop, context.token_text)
    return LoadedPolicy(backend.model, backend.tokenizer)


def ordering_judge(context: Context) -> Generator[Event, None, ExaminedJudge | None]:
    """The judge that ranks the method's drafts; None if the method needs none. Raises PreconditionError if it failed its exam."""
    if not needs_judge(context.config):
        return None
    examined = yield from examined_judge(context.config, context.run, judge_loader(context), context.stop)
    if examined.trusted is None:
        raise PreconditionError(
            f"--method {context.config.method} needs a judge that passes its exam.",
            examined.why_no_judge,
            "Use another --judge (reward-model, server), or --method contrast, which needs none.",
        )
    examined.release()  # free it, because the policy is loaded next and may itself be the judge
    return examined


def policy_of(backend: Backend) -> LoadedPolicy | None:
    """The policy of a local backend; None for a server."""
    model, tokenizer = getattr(backend, "model", None), getattr(backend, "tokenizer", None)
    return LoadedPolicy(model, tokenizer) if model is not None and tokenizer is not None else None
