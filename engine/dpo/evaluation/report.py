"""Stage 2 and Stage 3 side by side on held-out data, and the verdict: `evaluation/report.json`."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.core import layout
from engine.core.events import EvalDone, Event
from engine.dpo.evaluation.answers import (
    REFUSAL_TOKENS,
    JudgedAnswers,
    answers,
    distinct_prompts,
    judge_answers,
    reference_policy,
)
from engine.dpo.evaluation.comparison import compare, everyday_for, sample
from engine.dpo.evaluation.held_out import Figures, distance_on_own_answers, held_out_rewards
from engine.dpo.evaluation.relevance import answer_relevance
from engine.dpo.evaluation.verdict import Limits, Verdict, verdict
from engine.dpo.training.dataset import Row
from engine.dpo.training.reference import REFERENCE_ADAPTER
from engine.models.loading import POLICY_ADAPTER
from engine.models.tensors import adapter_tensors, hash_tensors
from engine.pairs.judges.examined_judge import examined_judge
from engine.storage.files import sha256_of_json, write_json

__all__ = ["JudgedAnswers", "compare", "evaluate", "judge_answers"]

if TYPE_CHECKING:
    from pathlib import Path

    from engine.core.config import Stage3Config
    from engine.dpo.training.trainer import Trained
    from engine.models.chat import Conversation
    from engine.models.generation.sampling import Reply
    from engine.pairs.judges.base import LoadJudge
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
    def pairs(self) -> list[tuple[Reply, Reply]]:
        return list(zip(self.stage2, self.stage3, strict=True))


def evaluate(
    config: Stage3Config, run: Run, trained: Trained, rows: Sequence[Row], load_judge: LoadJudge, stop: StopToken
) -> Generator[Event, None, dict[str, Any]]:
    """Compare, decide, write `evaluation/report.json`, and return what it says. Raises Stopped."""
    rows = part_of(rows, config.eval_part)
    held_out = yield from held_out_rewards(config, trained, rows, stop)
    answered, everyday = yield from _answer_both(config, trained, rows, run.cache, stop)
    prompts, stage2, stage3 = answered.prompts, answered.stage2, answered.stage3
    distance = yield from distance_on_own_answers(config, trained, prompts, stage2, stage3, stop)
    relevance = None
    if config.relevance:
        relevance = yield from answer_relevance(trained, prompts, stage2, stage3, stop)
    reference = reference_policy(trained)
    examined = yield from examined_judge(config, run, load_judge, stop, reference)
    judge = examined.judge(load_judge, reference)
    judged = yield from judge_answers(judge, prompts, stage2, stage3, stop)
    del judge

    comparison, about_answers = compare(
        prompts,
        stage2,
        stage3,
        judged,
        relevance=relevance,
        everyday=everyday.pairs,
        margins=held_out.margins,
        trained=trained.tensors_sha256 != hash_tensors(adapter_tensors(trained.model, REFERENCE_ADAPTER)),
        why_no_judge=examined.why_none,
    )
    found = verdict(comparison, Limits.of(config))
    figures: Figures = {**about_answers, **distance, **held_out.figures}
    samples = [sample(prompt, one) for prompt, one in zip(prompts, comparison.answers, strict=True)]
    report = _report(config, found, figures, samples, everyday, judged) | {"exams": examined.as_dict()}
    write_json(run / layout.EVALUATION_REPORT, report)
    shown = tuple({key: one[key] for key in ("prompt", "stage2", "stage3")} for one in samples[:SHOWN_SAMPLES])
    yield EvalDone(found.word, found.reasons, figures, shown, found.rule)
    return report


def _answer_both(
    config: Stage3Config, trained: Trained, rows: Sequence[Row], cache_folder: Path, stop: StopToken
) -> Generator[Event, None, tuple[BothAnswer, BothAnswer]]:
    """Both models answer held-out prompts, and everyday questions as far as a refusal shows."""
    answer = partial(answers, config, trained, cache_folder=cache_folder, stop=stop)
    prompts = distinct_prompts(rows, config.eval_prompts)
    stage2 = yield from answer(prompts, REFERENCE_ADAPTER)
    stage3 = yield from answer(prompts, POLICY_ADAPTER)
    everyday = everyday_for(prompts, config.eval_harmless_prompts)
    before = yield from answer(everyday, REFERENCE_ADAPTER, most_tokens=REFUSAL_TOKENS)
    after = yield from answer(everyday, POLICY_ADAPTER, most_tokens=REFUSAL_TOKENS)
    return BothAnswer(prompts, stage2, stage3), BothAnswer(everyday, before, after)


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
