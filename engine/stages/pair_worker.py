"""A worker process that makes, measures or scores pairs, or evaluates: `python -m engine.stages.pair_worker`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.config import Stage3Config
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.workers.serve import Loaded, Work, serve
from engine.workers.tasks import Task


@dataclass(frozen=True)
class Request:
    """What a worker has to load."""

    kind: str
    """The kind of its rows: "pairs", "relevance", "scores" or "evaluation"."""
    config: dict[str, Any]
    """The configuration with this worker's GPU and the judge that passed its exam."""
    run: str
    """The run folder. The parent process holds its lock; workers lock nothing."""
    cache: str
    adapter: str
    """The folder of the Stage 2 adapter."""
    processes: int
    """The number of workers."""
    rows: str = ""
    """The file that the worker writes its rows to; set by the pool."""


def load(task: Task) -> Loaded:
    request = Request(**task)
    run = Run(Path(request.run), shared_cache=Path(request.cache))
    context = Context(Stage3Config(**request.config), run, StopToken())
    loads = {
        "pairs": _load_pair_maker,
        "relevance": _load_relevance_meter,
        "scores": _load_judge,
        "evaluation": _load_policies,
    }
    return loads[request.kind](request, context)


def _load_pair_maker(request: Request, context: Context) -> Loaded:
    from engine.models.local_backend import load_stage2_backend
    from engine.pairs.generation.in_processes import task_handler
    from engine.pairs.generation.methods import needs_judge, record_maker
    from engine.pairs.generation.settings import GenerationSettings
    from engine.stages.load_judge import load_judge, policy_of

    config = context.config
    backend = load_stage2_backend(config, Path(request.adapter), context.stop, None)
    backend.processes = request.processes
    judge = load_judge(context, policy_of(backend)) if needs_judge(config) else None
    make = record_maker(backend, GenerationSettings.of(config), judge, context.stop)
    return Loaded(task_handler(make, backend), {"context length": backend.context_length})


def _load_relevance_meter(_: Request, context: Context) -> Loaded:
    from engine.models.loading import load_base, load_tokenizer
    from engine.pairs.relevance.in_processes import task_handler
    from engine.pairs.relevance.measure import RelevanceMeter

    config = context.config
    meter = RelevanceMeter(load_base(config, None), load_tokenizer(config, None))
    return Loaded(task_handler(meter, config.base_model_id))


def _load_judge(_: Request, context: Context) -> Loaded:
    from engine.pairs.judges.in_processes import task_handler
    from engine.stages.load_judge import load_judge

    judge = load_judge(context)
    assert judge is not None  # one passed its exam
    return Loaded(task_handler(judge))


def _load_policies(request: Request, context: Context) -> Loaded:
    from engine.dpo.evaluation.in_processes import task_handler
    from engine.dpo.evaluation.policies import load_policies
    from engine.pairs.judges.in_processes import task_handler as judge_task_handler
    from engine.stages.load_judge import load_judge

    policies = load_policies(context.config, context.run, Path(request.adapter))

    def judging() -> Work:
        judge = load_judge(context, policies.reference)
        assert judge is not None  # one passed its exam
        return judge_task_handler(judge)

    return Loaded(task_handler(policies.run, judging))


if __name__ == "__main__":
    serve(load)
