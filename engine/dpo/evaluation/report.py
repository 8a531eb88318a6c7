"""Compare Stage 2 and Stage 3 on held-out data, reach a verdict, and write `evaluation/report.json`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.core import layout
from engine.core.events import EvalDone, Event
from engine.dpo.evaluation.answers import (
    REFUSAL_TOKENS,
    AnswerJudge,
    JudgedAnswers,
    answers,
    distinct_prompts,
    judge_answers,
)
from engine.dpo.evaluation.comparison import compare, everyday_for, sample
from engine.dpo.evaluation.held_out import Figures, HeldOut, distance_on_own_answers, held_out_rewards
from engine.dpo.evaluation.in_processes import KIND, policies_key, reusing_results
from engine.dpo.evaluation.policies import Policies, run_tasks_here
from engine.dpo.evaluation.relevance import AnswerRelevance, answer_relevance
from engine.dpo.evaluation.tasks import EvaluationBackend, RunTasks, TaskQueue
from engine.dpo.evaluation.verdict import Limits, Verdict, verdict
from engine.dpo.training.dataset import Row
from engine.dpo.training.reference import REFERENCE_ADAPTER
from engine.models.loading import POLICY_ADAPTER
from engine.pairs.judges.examined_judge import ExaminedJudge, examined_judge
from engine.storage.files import sha256_of_json, write_json
from engine.workers.rows import remove_shares

__all__ = ["JudgedAnswers", "compare", "evaluate", "judge_answers"]

if TYPE_CHECKING:
    from pathlib import Path

    from engine.core.config import Stage3Config
    from engine.dpo.training.trainer import Trained
    from engine.models.chat import Conversation
    from engine.models.generation.sampling import Reply
    from engine.pairs.judges.base import LoadedPolicy, LoadJudge
    from engine.pairs.judges.scores import ScoreBatches
    from engine.run.folder import Run
    from engine.run.stop import StopToken

SHOWN_SAMPLES = 5


def select_part(rows: Sequence[Row], part: str) -> Sequence[Row]:
    """All rows, or those of every other prompt, so that the two halves have no prompt in common."""
    if part == "all":
        return rows
    prompts = [sha256_of_json(row["prompt"]) for row in rows]
    chosen = set(list(dict.fromkeys(prompts))[0 if part == "first" else 1 :: 2])
    return [row for row, prompt in zip(rows, prompts, strict=True) if prompt in chosen]


@dataclass(frozen=True)
class PolicyAnswers:
    """Both policies' answers, in the order of the prompts."""

    prompts: Sequence[Conversation]
    stage2: Sequence[Reply]
    stage3: Sequence[Reply]

    @property
    def both(self) -> tuple[Sequence[Reply], Sequence[Reply]]:
        return self.stage2, self.stage3

    @property
    def pairs(self) -> list[tuple[Reply, Reply]]:
        return list(zip(self.stage2, self.stage3, strict=True))


@dataclass(frozen=True)
class Measurements:
    """Everything measured with the two policies, except a judge's scores."""

    held_out: HeldOut
    answered: PolicyAnswers
    everyday: PolicyAnswers
    distance: Figures
    relevance: AnswerRelevance | None
    """None if it was not measured."""

    @property
    def answers(self) -> tuple[Sequence[Conversation], Sequence[Reply], Sequence[Reply]]:
        """The held-out prompts, Stage 2's answers, Stage 3's."""
        return self.answered.prompts, *self.answered.both


StartWorkers = Callable[["Stage3Config"], AbstractContextManager[EvaluationBackend]]
"""Starts processes that load both policies. The configuration contains the judge that passed its exam."""


def evaluate(
    config: Stage3Config,
    run: Run,
    trained: Trained,
    rows: Sequence[Row],
    load_judge: LoadJudge,
    stop: StopToken,
    start_workers: StartWorkers | None = None,
) -> Generator[Event, None, dict[str, Any]]:
    """Compare, decide, write `evaluation/report.json`, and return its contents. Raises Stopped.

    start_workers   to evaluate in other processes instead of this one, which frees the model of `trained`
    """
    rows = select_part(rows, config.eval_part)
    examined = yield from _examined(config, run, trained, load_judge, stop)
    policy: LoadedPolicy | None = None
    backends: AbstractContextManager[EvaluationBackend]
    if start_workers is None:
        policies = Policies.of(config, trained)
        key = policies_key(config, trained.stage2_sha256, trained.tensors_sha256)
        policy = policies.reference
        backends = nullcontext(EvaluationBackend(reusing_results(run_tasks_here(policies, stop), run, key)))
    else:
        trained.release()
        backends = start_workers(examined.config)
    with backends as backend:
        measured = yield from _measure(config, run, trained, rows, backend.run_tasks)
        judge = _answer_judge(examined, backend.score, load_judge, policy, stop)
        judged = yield from judge_answers(judge, *measured.answers)
        del judge
    remove_shares(run, KIND)
    report, done = _decide(config, trained, examined, measured, judged)
    write_json(run / layout.EVALUATION_REPORT, report)
    yield done
    return report


def _decide(
    config: Stage3Config,
    trained: Trained,
    examined: ExaminedJudge,
    measured: Measurements,
    judged: JudgedAnswers | None,
) -> tuple[dict[str, Any], EvalDone]:
    """The report, and the event that announces it."""
    answered, held_out = measured.answered, measured.held_out
    verdict_input, answer_figures = compare(
        *measured.answers,
        judged,
        relevance=measured.relevance,
        everyday=measured.everyday.pairs,
        margins=held_out.margins,
        trained=trained.tensors_sha256 != trained.stage2_sha256,
        why_no_judge=examined.why_no_judge,
    )
    reached = verdict(verdict_input, Limits.of(config))
    figures: Figures = {**answer_figures, **measured.distance, **held_out.figures}
    samples = [sample(prompt, both) for prompt, both in zip(answered.prompts, verdict_input.answers, strict=True)]
    report = _report(config, reached, figures, samples, measured.everyday, judged) | {"exams": examined.as_dict()}
    shown = tuple({key: each[key] for key in ("prompt", "stage2", "stage3")} for each in samples[:SHOWN_SAMPLES])
    return report, EvalDone(reached.label, reached.reasons, figures, shown, reached.rule)


def _measure(
    config: Stage3Config, run: Run, trained: Trained, rows: Sequence[Row], run_tasks: RunTasks
) -> Generator[Event, None, Measurements]:
    """Measure in two rounds, because the tasks of the second one depend on the answers."""
    first = TaskQueue(run_tasks)
    pending_rewards = held_out_rewards(first, config, trained, rows)
    pending_answers = _answer_both(first, config, trained, rows, run.cache)
    held_out = yield from pending_rewards
    answered, everyday = yield from pending_answers
    second = TaskQueue(run_tasks)
    pending_distance = distance_on_own_answers(second, config, trained, answered.prompts, *answered.both)
    pending_relevance = answer_relevance(second, answered.prompts, *answered.both) if config.relevance else None
    distance = yield from pending_distance
    relevance = None if pending_relevance is None else (yield from pending_relevance)
    return Measurements(held_out, answered, everyday, distance, relevance)


def _examined(
    config: Stage3Config, run: Run, trained: Trained, load_judge: LoadJudge, stop: StopToken
) -> Generator[Event, None, ExaminedJudge]:
    """Examine the judge first, while this process has the policies in memory: --judge self needs one."""
    reference = Policies.of(config, trained).reference
    examined = yield from examined_judge(config, run, load_judge, stop, reference)
    examined.release()  # generating answers needs the memory
    return examined


def _answer_judge(
    examined: ExaminedJudge,
    score: ScoreBatches | None,
    load_judge: LoadJudge,
    policy: LoadedPolicy | None,
    stop: StopToken,
) -> AnswerJudge | None:
    """None if no judge passed its exam."""
    exam = examined.trusted
    if exam is not None and score is not None:
        return AnswerJudge(exam.judge, exam.about, score)
    judge = examined.judge(load_judge, policy)
    return None if judge is None else AnswerJudge.here(judge, stop)


def _answer_both(
    queue: TaskQueue, config: Stage3Config, trained: Trained, rows: Sequence[Row], cache_folder: Path
) -> Generator[Event, None, tuple[PolicyAnswers, PolicyAnswers]]:
    """Submit held-out prompts, and everyday questions with short answers, to both policies. Collect with `yield from`."""
    answer = partial(answers, queue, config, trained, cache_folder=cache_folder)
    prompts = distinct_prompts(rows, config.eval_prompts)
    everyday = everyday_for(prompts, config.eval_harmless_prompts)
    stages = (REFERENCE_ADAPTER, POLICY_ADAPTER)
    to_prompts = [answer(prompts, adapter) for adapter in stages]
    to_everyday = [answer(everyday, adapter, max_tokens=REFUSAL_TOKENS) for adapter in stages]

    def collected() -> Generator[Event, None, tuple[PolicyAnswers, PolicyAnswers]]:
        before, after = (yield from to_prompts[0]), (yield from to_prompts[1])
        everyday_before, everyday_after = (yield from to_everyday[0]), (yield from to_everyday[1])
        return PolicyAnswers(prompts, before, after), PolicyAnswers(everyday, everyday_before, everyday_after)

    return collected()


def _report(
    config: Stage3Config,
    reached: Verdict,
    figures: Figures,
    samples: Sequence[Mapping[str, Any]],
    everyday: PolicyAnswers,
    judged: JudgedAnswers | None,
) -> dict[str, Any]:
    return {
        "verdict": reached.label,
        "rule": reached.rule,
        "reasons": list(reached.reasons),
        "judge": None if judged is None else judged.judge,
        "judge_about": None if judged is None else judged.about,
        "part": config.eval_part,
        "limits": asdict(Limits.of(config)),
        "figures": figures,
        "decoding": {"temperature": 0.0, "max_new_tokens": config.max_new_tokens},
        "samples": samples,
        "everyday": [
            {"prompt": prompt[-1]["content"], "stage2": before.text, "stage3": after.text}
            for prompt, (before, after) in zip(everyday.prompts, everyday.pairs, strict=True)
        ],
    }
