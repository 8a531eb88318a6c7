"""How well the detectors recognise unusable replies of models for which they were not made.

    python bench/detectors_by_model.py --data ../shared/data --cache FOLDER

For each labelled set of pairs, this prints F1 (every kind but `answer` is positive; identical revisions are left out)
from texts alone, and with relevance and surprise, which SmolLM2-135M-Instruct measures (see `bench/real_models.py`), or
the demo's base model for the demo's pairs. In the last column, the limits of both are fitted on the other sets only.

The sets: gemma-2b-it with a Stage 2 adapter (300 pairs), SmolLM2 with one (64), SmolLM2 without (112, `bench/labelled`), the demo's
model sampled at a high temperature (200, `bench/labelled`). The labels of the first are older than the kinds `critique` and
`off-topic`: such revisions are labelled `answer` there, and count as false alarms.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # `bench` is not part of the installed package

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.detectors import REPLIES, Counts, counts_of, interval, objections
from bench.real_models import model_folder
from engine.core.config import load_config
from engine.core.generators import drain
from engine.demo.preset import ASSETS
from engine.models.chat import Conversation
from engine.models.local_backend import LocalBackend
from engine.pairs import detectors
from engine.pairs.data.conversations import before_the_answer, transcript_turns
from engine.pairs.detectors import relevance as measuring
from engine.pairs.detectors.candidate import Candidate
from engine.pairs.detectors.relevance import is_nonsense, is_off_topic
from engine.pairs.generation.critique_revision import make_records
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.settings import GenerationSettings
from engine.pairs.relevance.measure import Answer, RelevanceMeter, ReplyMeasures
from engine.run.stop import StopToken

LABELLED = Path(__file__).with_name("labelled")
OWN_SET = LABELLED / "smollm2-without-adapter.jsonl"
HOT_DEMO = LABELLED / "demo-hot.jsonl"
HUMAN_REPLIES = 250
"""Number of preferred replies whose relevance is measured as if they were revisions."""
COST_PROMPTS = 16
GRID = list(product((10.0, 15.0, 20.0), (6.0, 9.0, 12.0), (2.0, 3.0, 4.0, 5.0, 6.0, 7.0), (1.0, 1.2, 1.4, 1.7, 2.0)))


class LabelledPair(NamedTuple):
    conversation: Conversation
    draft: str
    critique: str
    revision: str
    unusable: bool


def hh_rows(data: Path) -> list[str]:
    with gzip.open(data / REPLIES, "rt", encoding="utf-8") as rows:
        return [json.loads(row)["chosen"] for row in rows]


def shared_set(data: Path, name: str) -> list[LabelledPair]:
    rows = [json.loads(line) for line in (data / f"{name}.jsonl").open(encoding="utf-8")]
    labels = [json.loads(line) for line in (data / f"{name}.labels.jsonl").open(encoding="utf-8")]
    return [labelled(rows[one["line"]], one["kind"]) for one in labels if one["kind"] != "identical"]


def own_set(data: Path) -> list[LabelledPair]:
    prompts = hh_rows(data)
    found = []
    for line in OWN_SET.open(encoding="utf-8"):
        row = json.loads(line)
        found.append(
            labelled({**row, "messages": before_the_answer(transcript_turns(prompts[row["row"]]))}, row["kind"])
        )
    return found


def demo_set() -> list[LabelledPair]:
    rows = map(json.loads, HOT_DEMO.read_text(encoding="utf-8").splitlines())
    return [labelled(row, row["kind"]) for row in rows]


def labelled(row: dict[str, Any], kind: str) -> LabelledPair:
    conversation = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
    return LabelledPair(
        conversation, row["base_response"], row.get("critic_notes") or "", row["revised_response"], kind != "answer"
    )


def load_meter(folder: Path) -> RelevanceMeter:
    return RelevanceMeter(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    )


def measured(
    name: str, pairs: Sequence[Answer], folder: Path, meter: Callable[[], RelevanceMeter]
) -> list[ReplyMeasures | None]:
    """The measures of a set, cached by its name, because measuring takes minutes."""
    path = folder / f"measures-{name}.json"
    if not path.is_file():
        path.write_text(json.dumps(meter().measure(pairs)))
    return [one and ReplyMeasures(*one) for one in json.loads(path.read_text())]


class Judged(NamedTuple):
    """A pair that is judged repeatedly with different limits; the detectors of texts run only once."""

    candidate: Candidate
    is_unusable_by_text: bool
    """Whether a detector of texts objects."""
    unusable: bool
    """According to its label."""

    @property
    def refused(self) -> bool:
        return self.is_unusable_by_text or is_nonsense(self.candidate) or is_off_topic(self.candidate)


def judged(pair: LabelledPair, measures: ReplyMeasures | None) -> Judged:
    prompt, known = pair.conversation[-1]["content"], measures or (None, None)
    by_text = detectors.reasons(prompt, pair.draft, pair.revision, critique=pair.critique)
    candidate = Candidate(prompt, pair.draft, pair.revision, True, pair.critique, (), *known)
    return Judged(candidate, bool(by_text), pair.unusable)


class limits:
    """`with limits(…)`: temporarily replaces the detectors' limits."""

    def __init__(self, values: Limits) -> None:
        self._values = values

    def __enter__(self) -> None:
        self._before = (*measuring.MIN_RELEVANCE, measuring.MAX_SURPRISE)
        self._set(self._values)

    def __exit__(self, *error: object) -> None:
        self._set(self._before)

    def _set(self, values: Limits) -> None:
        *relevance, measuring.MAX_SURPRISE = values
        measuring.MIN_RELEVANCE = tuple(relevance)  # type: ignore[assignment]


Limits = tuple[float, float, float, float]
Set = list[Judged]


def counts(one: Set) -> Counts:
    return counts_of([pair.refused for pair in one], [pair.unusable for pair in one])


def fitted_without(name: str, sets: dict[str, Set]) -> Limits:
    """The limits with the best mean F1 over the other sets."""
    others = [one for other, one in sets.items() if other != name]

    def mean_f1(values: Limits) -> float:
        with limits(values):
            return sum(counts(one).f1 for one in others) / len(others)

    return max(GRID, key=mean_f1)


def table(sets: dict[str, Set]) -> Iterator[str]:
    yield f"{'':24}{'n':>5}{'unusable':>10}   {'texts alone':>12}{'with both (95 %)':>26}{'limits fitted on the others':>34}"
    for name, one in sets.items():
        true = [pair.unusable for pair in one]
        alone = counts_of([pair.is_unusable_by_text for pair in one], true)
        both = counts(one)
        low, high = interval([pair.refused for pair in one], true)
        best = fitted_without(name, sets)
        with limits(best):
            left_out = counts(one)
        yield (
            f"{name:24}{len(true):5}{sum(true):10}   {alone.f1:12.3f}{both.f1:12.3f} ({low:.3f}–{high:.3f})"
            f"{left_out.f1:14.3f} at {'/'.join(f'{value:g}' for value in best)}"
        )
        yield f"{'':24}{'':15}   precision {both.precision:.3f}, recall {both.recall:.3f}"


def human_answers(data: Path) -> list[Answer]:
    found = []
    for text in Random(3).sample(hh_rows(data), HUMAN_REPLIES):
        prompt = before_the_answer(transcript_turns(text))
        found.append(Answer(prompt, text.rpartition("\n\nAssistant:")[2].strip()))
    return found


def cost(data: Path, cache: Path) -> str:
    """CPU seconds of measuring relevance compared with generating the same pairs, on one thread."""
    folder = model_folder("smollm2", cache)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    backend = LocalBackend(model, tokenizer, StopToken(), COST_PROMPTS)
    settings = GenerationSettings.of(load_config({"max_new_tokens": 96, "max_attempts": 1, "seed": 1}, environment={}))
    conversations = [before_the_answer(transcript_turns(text)) for text in hh_rows(data)[:COST_PROMPTS]]
    prompts = [Prompt(str(number), messages) for number, messages in enumerate(conversations)]
    started = time.process_time()
    records = drain(make_records(prompts, backend, settings))
    generated = time.process_time() - started
    meter = RelevanceMeter(model, tokenizer)
    started = time.process_time()
    meter.measure([Answer(record.messages, record.revised_response) for record in records])
    measured_in = time.process_time() - started
    return (
        f"{len(records)} pairs: generated in {generated:.1f} s, the relevance of all their revisions in {measured_in:.1f} s "
        f"({measured_in / generated:.0%})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with hh-rlhf and the labelled pairs")
    parser.add_argument("--cache", type=Path, required=True, help="where models and measured relevances are kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    of_smollm2 = cache(lambda: load_meter(model_folder("smollm2", given.cache)))
    of_the_demo = cache(lambda: load_meter(ASSETS / "base"))
    pairs = {
        "gemma-2b-it, Stage 2": (shared_set(given.data, "gemma-2b-it-pairs"), of_smollm2),
        "SmolLM2-135M, Stage 2": (shared_set(given.data, "smollm2-pairs"), of_smollm2),
        "SmolLM2-135M, no adapter": (own_set(given.data), of_smollm2),
        "demo, temperature 1.4": (demo_set(), of_the_demo),
    }
    sets: dict[str, Set] = {}
    for name, (one, meter) in pairs.items():
        answers = [Answer(pair.conversation, pair.revision) for pair in one]
        found = measured(name.replace(" ", "-"), answers, given.cache, meter)
        sets[name] = [judged(*both) for both in zip(one, found, strict=True)]
    print(*table(sets), sep="\n")
    print(f"\n{cost(given.data, given.cache)}")
    number, reasons = objections(given.data / REPLIES)
    print(f"\n{number} preferred replies, texts alone: {reasons.total() / number:.1%} refused")
    human = human_answers(given.data)
    found = measured("human", human, given.cache, of_smollm2)
    as_revisions = [
        Candidate(one.conversation[-1]["content"], "-", one.reply, True, "", (), *(known or (None, None)))
        for one, known in zip(human, found, strict=True)
    ]
    off_topic, nonsense = (sum(map(holds, as_revisions)) / len(human) for holds in (is_off_topic, is_nonsense))
    print(
        f"{len(human)} of them taken as revisions: {off_topic:.1%} would fit any message, {nonsense:.1%} are nonsense"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
