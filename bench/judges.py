"""Gives the exam to every judge that is available on a machine without a model hub.

    python bench/judges.py --cache FOLDER [--adapter FOLDER]

The shipped exam has 60 comparisons with known answers and five kinds of faults; a judge that answers with a letter is
asked in both orders. The demo's judge also takes its own exam. SmolLM2-135M-Instruct takes it as `--judge self`, plain
and with a Stage 2 adapter (`bench/stage2.py`). Two judges without knowledge are controls: one prefers the longer text,
the other tosses a coin.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))  # `bench` is not part of the installed package

import torch

from bench.real_models import model_folder
from engine.demo.judge import GrammarJudge
from engine.pairs.judges.base import Comparison, Judge, LoadedPolicy, ScorePair
from engine.pairs.judges.exam import ExamResult, comparisons_of, result_of, shipped_exam, take_exam
from engine.pairs.judges.question import PrincipleSelector
from engine.pairs.judges.self_judge import SelfJudge
from engine.pairs.principles.constitution import load_constitution
from engine.run.stop import StopToken


class Longer:
    name, about = "the longer text", "a control"

    def score(self, cases: Sequence[Comparison]) -> list[ScorePair]:
        return [ScorePair(float(len(case.first)), float(len(case.second))) for case in cases]


class Coin:
    name, about = "a coin", "a control"

    def score(self, cases: Sequence[Comparison]) -> list[ScorePair]:
        return [ScorePair(random.random(), random.random()) for random in (Random(case.id) for case in cases)]


def self_judge(name: str, folder: Path, adapter: Path | None) -> Judge:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    judge = SelfJudge(LoadedPolicy(model, tokenizer), PrincipleSelector(load_constitution(None), 0))
    judge.name = f"self, {name}"
    return judge


def results(cache: Path, adapter: Path | None) -> Iterator[ExamResult]:
    exam = shipped_exam()
    for control in (Coin(), Longer()):
        yield result_of(control, exam, control.score(comparisons_of(exam)))
    demo = GrammarJudge()
    yield result_of(demo, exam, demo.score(comparisons_of(exam)))
    yield examined(demo)
    folder = model_folder("smollm2", cache)
    yield examined(self_judge("SmolLM2-135M-Instruct", folder, None))
    if adapter is not None:
        yield examined(self_judge("SmolLM2-135M-Instruct with Stage 2", folder, adapter))


def examined(judge: Judge) -> ExamResult:
    (result,) = [event for event in take_exam(judge, StopToken()) if isinstance(event, ExamResult)]
    return result


def row(result: ExamResult) -> str:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    cells = (
        result.judge,
        result.exam,
        f"{result.right} of {result.asked}",
        f"{result.accuracy_low:.0%} to {result.accuracy_high:.0%}",
        share(result.longer_chosen),
        share(result.first_place_chosen),
        share(result.on_the_letters),
        "passed" if result.passed else f"failed: {result.why_not}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="where model folders are kept")
    parser.add_argument("--adapter", type=Path, help="a Stage 2 adapter on SmolLM2")
    given = parser.parse_args()
    print("| judge | exam | right | 95 % | longer chosen | first place chosen | on the letters | |")
    print("|---|---|---|---|---|---|---|---|")
    for result in results(given.cache, given.adapter):
        print(row(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
