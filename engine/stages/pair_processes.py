"""Worker processes that make pairs, score them, or compare both stages, each with the local models on its own GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.dpo.evaluation import in_processes as evaluation_in_processes
from engine.dpo.evaluation.in_processes import RunTasksInProcesses, policies_key
from engine.dpo.evaluation.tasks import EvaluationBackend
from engine.dpo.planning.process_count import local_processes
from engine.machine.device import resolve_device
from engine.models.adapters.source import adapter_folder
from engine.models.loading import load_tokenizer
from engine.pairs.generation import in_processes as pairs_in_processes
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.in_processes import MakeInProcesses, WorkerModels
from engine.pairs.generation.methods import is_generated_locally
from engine.pairs.judges import in_processes as scores_in_processes
from engine.pairs.judges.base import judge_name
from engine.pairs.judges.in_processes import ScoreInProcesses
from engine.pairs.judges.scores import ScoreBatches
from engine.pairs.relevance import in_processes as relevance_in_processes
from engine.pairs.relevance.in_processes import MeasureInProcesses
from engine.pairs.relevance.pairs import MeasureBatches
from engine.run.context import Context
from engine.stages.pair_worker import Request
from engine.workers.pool import WorkerPool

if TYPE_CHECKING:
    from engine.dpo.training.trainer import Trained

WORKER = "engine.stages.pair_worker"


def pair_process_count(config: Stage3Config, judge: str) -> int:
    """The number of processes that make pairs: this machine's if local models make them, else one.

    judge   the judge that ranks the drafts; "none" if the method needs none
    """
    return local_processes(config) if is_generated_locally(config, judge) else 1


def judge_process_count(config: Stage3Config) -> int:
    """The number of processes that score pairs with `--judge`: this machine's for a local model, else one."""
    return local_processes(config) if config.judge in ("self", "reward-model") else 1


def relevance_process_count(config: Stage3Config) -> int:
    """The number of processes that measure the relevance of pairs with the base model: this machine's."""
    return local_processes(config)


@contextmanager
def pair_workers(
    context: Context, judging: Context, identity: RecordIdentity, processes: int, prompts: int
) -> Iterator[MakeInProcesses]:
    """The workers, with the model loaded.

    judging   the context of the judge that ranks drafts; `context` if the method needs none
    prompts   the number of prompts that have no record yet
    """
    tokenizer = load_tokenizer(context.config, context.token_text)
    with _pool(judging, pairs_in_processes.KIND, processes, "make pairs") as pool:
        pool.grow(prompts)  # all at once, because each takes a while to load the model
        yield MakeInProcesses(WorkerModels(pool, tokenizer), context.run, identity)


@contextmanager
def relevance_workers(context: Context) -> Iterator[MeasureBatches]:
    """The workers, with the base model loaded."""
    with _pool(
        context, relevance_in_processes.KIND, relevance_process_count(context.config), "measure relevance"
    ) as pool:
        yield MeasureInProcesses(pool, context.run, context.config.base_model_id)


@contextmanager
def scoring_workers(context: Context, config: Stage3Config) -> Iterator[ScoreBatches]:
    """The workers, with the judge of `config` loaded."""
    with _pool(
        replace(context, config=config), scores_in_processes.KIND, judge_process_count(config), "score pairs"
    ) as pool:
        yield ScoreInProcesses(pool, context.run, judge_name(config) or "")


def evaluation_process_count(config: Stage3Config) -> int:
    """The number of processes that evaluate the training: this machine's."""
    return local_processes(config)


@contextmanager
def evaluation_workers(context: Context, trained: Trained, config: Stage3Config) -> Iterator[EvaluationBackend]:
    """The workers, with both models loaded.

    config   the configuration with the judge that passed its exam
    """
    judged = replace(context, config=trained.plan.applied_to(config))
    key = policies_key(config, trained.stage2_sha256, trained.tensors_sha256)
    with _pool(judged, evaluation_in_processes.KIND, evaluation_process_count(config), "evaluate") as pool:
        score = ScoreInProcesses(pool, context.run, judge_name(config) or "", evaluation_in_processes.KIND)
        yield EvaluationBackend(
            RunTasksInProcesses(pool, context.run, key), score if judge_process_count(config) > 1 else None
        )


def _pool(context: Context, kind: str, processes: int, doing: str) -> WorkerPool:
    adapter = adapter_folder(context.config, context.run, context.token_text)
    requests = [
        Request(
            kind=kind,
            config=_config_of_process(context.config, number).model_dump(mode="json"),
            run=str(context.run.folder),
            cache=str(context.run.cache),
            adapter=str(adapter),
            processes=processes,
        )
        for number in range(processes)
    ]
    threads = max(len(os.sched_getaffinity(0)) // processes, 1)
    return WorkerPool(context.run, kind, WORKER, [asdict(each) for each in requests], context.stop, doing, threads)


def _config_of_process(config: Stage3Config, number: int) -> Stage3Config:
    """The configuration with the GPU of one process."""
    if resolve_device(config).type != "cuda":
        return config
    return config.model_copy(update={"device": f"cuda:{number}"})
