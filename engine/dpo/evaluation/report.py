"""Stage 2 and Stage 3 side by side on held-out data, and the verdict: `evaluation/report.json`."""

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
from engine.dpo.evaluation.both_models import BothModels, ask_here
from engine.dpo.evaluation.comparison import compare, everyday_for, sample
from engine.dpo.evaluation.held_out import Figures, HeldOut, distance_on_own_answers, held_out_rewards
from engine.dpo.evaluation.in_processes import KIND, after_processes, key_of_models
from engine.dpo.evaluation.line import Ask, Asked, Line
from engine.dpo.evaluation.relevance import AnswerRelevance, answer_relevance
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


def part_of(rows: Sequence[Row], part: str) -> Sequence[Row]:
    """All rows, or those of every other prompt, so that the two halves share no prompt."""
    if part == "all":
        return rows
    prompts = [sha256_of_json(row["prompt"]) for row in rows]
    wanted = set(list(dict.fromkeys(prompts))[0 if part == "first" else 1 :: 2])
    return [row for row, prompt in zip(rows, prompts, strict=True) if prompt in wanted]


@dataclass(frozen=True)
class BothAnswer:
    """The answers of Stage 2 and Stage 3, in the order of the prompts."""

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
class Measured:
    """What both models were asked, and what came of it."""

    held_out: HeldOut
    answered: BothAnswer
    everyday: BothAnswer
    distance: Figures
    relevance: AnswerRelevance | None
    """None where it was not measured."""

    @property
    def answers(self) -> tuple[Sequence[Conversation], Sequence[Reply], Sequence[Reply]]:
        """The held-out prompts, Stage 2's answers, Stage 3's."""
        return self.answered.prompts, *self.answered.both


Elsewhere = Callable[["Stage3Config"], AbstractContextManager[Asked]]
"""Loads both models into other processes. The configuration has the judge that passed its exam."""


def evaluate(
    config: Stage3Config,
    run: Run,
    trained: Trained,
    rows: Sequence[Row],
    load_judge: LoadJudge,
    stop: StopToken,
    elsewhere: Elsewhere | None = None,
) -> Generator[Event, None, dict[str, Any]]:
    """Compare, decide, write `evaluation/report.json`, and return what it says. Raises Stopped.

    elsewhere   other processes do it instead of this one, which gives up the model of `trained`
    """
    rows = part_of(rows, config.eval_part)
    examined = yield from _examined(config, run, trained, load_judge, stop)
    policy: LoadedPolicy | None = None
    asking: AbstractContextManager[Asked]
    if elsewhere is None:
        both = BothModels.of(config, trained)
        models = key_of_models(config, trained.stage2_sha256, trained.tensors_sha256)
        policy = both.reference
        asking = nullcontext(Asked(after_processes(ask_here(both, stop), run, models)))
    else:
        trained.release()
        asking = elsewhere(examined.config)
    with asking as asked:
        measured = yield from _measure(config, run, trained, rows, asked.ask)
        judge = _answer_judge(examined, asked.score, load_judge, policy, stop)
        judged = yield from judge_answers(judge, *measured.answers)
        del judge
    remove_shares(run, KIND)
    report, done = _decided(config, trained, examined, measured, judged)
    write_json(run / layout.EVALUATION_REPORT, report)
    yield done
    return report


def _decided(
    config: Stage3Config,
    trained: Trained,
    examined: ExaminedJudge,
    measured: Measured,
    judged: JudgedAnswers | None,
) -> tuple[dict[str, Any], EvalDone]:
    """The report, and the event with the end of it."""
    answered, held_out = measured.answered, measured.held_out
    comparison, about_answers = compare(
        *measured.answers,
        judged,
        relevance=measured.relevance,
        everyday=measured.everyday.pairs,
        margins=held_out.margins,
        trained=trained.tensors_sha256 != trained.stage2_sha256,
        why_no_judge=examined.why_no_judge,
    )
    found = verdict(comparison, Limits.of(config))
    figures: Figures = {**about_answers, **measured.distance, **held_out.figures}
    samples = [sample(prompt, one) for prompt, one in zip(answered.prompts, comparison.answers, strict=True)]
    report = _report(config, found, figures, samples, measured.everyday, judged) | {"exams": examined.as_dict()}
    shown = tuple({key: one[key] for key in ("prompt", "stage2", "stage3")} for one in samples[:SHOWN_SAMPLES])
    return report, EvalDone(found.word, found.reasons, figures, shown, found.rule)


def _measure(
    config: Stage3Config, run: Run, trained: Trained, rows: Sequence[Row], ask: Ask
) -> Generator[Event, None, Measured]:
    """All that both models are asked. What the second line asks depends on the answers."""
    first = Line(ask)
    rewards = held_out_rewards(first, config, trained, rows)
    answering = _answer_both(first, config, trained, rows, run.cache)
    held_out = yield from rewards
    answered, everyday = yield from answering
    second = Line(ask)
    moved = distance_on_own_answers(second, config, trained, answered.prompts, *answered.both)
    reading = answer_relevance(second, answered.prompts, *answered.both) if config.relevance else None
    distance = yield from moved
    relevance = None if reading is None else (yield from reading)
    return Measured(held_out, answered, everyday, distance, relevance)


def _examined(
    config: Stage3Config, run: Run, trained: Trained, load_judge: LoadJudge, stop: StopToken
) -> Generator[Event, None, ExaminedJudge]:
    """Before anything is answered, while this process has the models: --judge self needs one."""
    reference = BothModels.of(config, trained).reference
    examined = yield from examined_judge(config, run, load_judge, stop, reference)
    examined.release()  # answering needs the memory
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
    line: Line, config: Stage3Config, trained: Trained, rows: Sequence[Row], cache_folder: Path
) -> Generator[Event, None, tuple[BothAnswer, BothAnswer]]:
    """Both models answer held-out prompts, and everyday questions as far as a refusal shows. Collect with `yield from`."""
    answer = partial(answers, line, config, trained, cache_folder=cache_folder)
    prompts = distinct_prompts(rows, config.eval_prompts)
    everyday = everyday_for(prompts, config.eval_harmless_prompts)
    stages = (REFERENCE_ADAPTER, POLICY_ADAPTER)
    to_prompts = [answer(prompts, adapter) for adapter in stages]
    to_everyday = [answer(everyday, adapter, most_tokens=REFUSAL_TOKENS) for adapter in stages]

    def collected() -> Generator[Event, None, tuple[BothAnswer, BothAnswer]]:
        before, after = (yield from to_prompts[0]), (yield from to_prompts[1])
        everyday_before, everyday_after = (yield from to_everyday[0]), (yield from to_everyday[1])
        return BothAnswer(prompts, before, after), BothAnswer(everyday, everyday_before, everyday_after)

    return collected()


def _report(
    config: Stage3Config,
    found: Verdict,
    figures: Figures,
    samples: Sequence[Mapping[str, Any]],
    everyday: BothAnswer,
    judged: JudgedAnswers | None,
) -> dict[str, Any]:
    return {
        "verdict": found.word,
        "rule": found.rule,
        "reasons": list(found.reasons),
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
