"""Seconds and peak memory to check a million pairs, import them, make a training set of them, and open them in the
browser. Each step runs in its own process.

The pairs are synthetic: random sentences, 0.8 kB each, all usable and all different. No judge scores them and no model
reads them. Step "encode" is what training does before it loads a model, with the demo's tokenizer.

    python bench/big_data.py [--pairs 1000000] [--folder DIR] [--steps make validate export import quality browser encode]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.core.config import Stage3Config
from engine.core.layout import TRAIN_JSONL
from engine.run.context import Context
from engine.run.folder import Run

THINGS = (
    "tap",
    "lamp",
    "door",
    "kettle",
    "bicycle",
    "radio",
    "shelf",
    "window",
    "clock",
    "chair",
    "drawer",
    "hinge",
    "lock",
)
PLACES = ("kitchen", "cellar", "garden", "office", "workshop", "hallway", "attic", "garage")
STEPS = (
    "Start by looking at the {thing} in good light, and note what moves and what does not.",
    "Turn the power or the water off before you touch anything near the {thing}.",
    "Take out the screws one by one and lay them on a cloth in the order in which they came.",
    "Clean the parts with warm water and a soft brush, then let them dry for an hour.",
    "A drop of oil on the joint is enough; more of it only collects dust in the {place}.",
    "Compare the worn piece with a new one from the shop before you put it in.",
    "Put everything back in reverse order and tighten each screw by hand first.",
    "Try it several times, and listen for sounds that were not there before.",
    "If it still sticks, the frame may have moved, and somebody with a level should look at it.",
    "Write down what you did, since the same {thing} will need it again next winter.",
)
ENDS = ("Then it should work again.", "That is usually all it takes.", "Ask again if it does not help.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", nargs="+", default=list(BENCH_STEPS))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        measure(given)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{given.pairs:,} pairs\n{'':12}{'seconds':>10}{'CPU s':>10}{'peak MB':>10}")
        for step in given.steps:
            command = [sys.executable, __file__, "--pairs", str(given.pairs), "--folder", str(folder), "--step", step]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{step:12}{found['seconds']:10.1f}{found['cpu']:10.1f}{found['peak']:10.0f}  {found['result']}",
                flush=True,
            )


def measure(given: argparse.Namespace) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    result = BENCH_STEPS[given.step](given.folder, given.pairs)
    figures = {
        "seconds": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "result": result,
    }
    print(json.dumps(figures))


# -- the steps ---------------------------------------------------------------------------------------------------------


def make(folder: Path, count: int) -> str:
    draw = random.Random(7)
    with pairs_of(folder).open("w", encoding="ascii") as file:
        for number in range(count):
            file.write(json.dumps(row(number, draw)) + "\n")
    return f"{pairs_of(folder).stat().st_size / 1e6:,.0f} MB"


def row(number: int, draw: random.Random) -> dict[str, str]:
    names = {"thing": draw.choice(THINGS), "place": draw.choice(PLACES)}
    prompt = "How do I mend the {thing} in the {place} of house {number}?".format(**names, number=number)

    def reply() -> str:
        return " ".join(
            [*(step.format(**names) for step in draw.sample(STEPS, draw.choice((3, 4, 5)))), draw.choice(ENDS)]
        )

    return {"prompt": prompt, "base_response": reply(), "revised_response": f"For the {names['thing']}: {reply()}"}


def validate(folder: Path, _: int) -> str:
    from engine.pairs.assessment.validation import validate as check

    found = check(pairs_of(folder), Stage3Config(output_dir=folder / "run"))
    return f"gate {'open' if found.open else 'shut'}"


def export(folder: Path, _: int) -> str:
    from engine.pairs.assessment.validation import validate as check

    found = check(pairs_of(folder), Stage3Config(output_dir=folder / "run"), export=folder / "export.jsonl", force=True)
    return f"{found.report['export']['pairs']:,} pairs written"


def imported(folder: Path, _: int) -> str:
    from engine.stages.import_pairs import import_pairs

    context = run_of(folder)
    return finished(context, import_pairs(context, pairs_of(folder)))


def quality(folder: Path, _: int) -> str:
    from engine.stages import quality as stage

    context = run_of(folder)
    return finished(context, stage.run(context))


def browser(folder: Path, _: int) -> str:
    from tui.pair_browser.store import PairStore

    store, started, first = PairStore(run_of(folder).run), time.perf_counter(), 0.0
    while update := store.read():
        store.apply(update)
        first = first or time.perf_counter() - started
    return f"{len(store.rows):,} rows, the first after {first:.2f} s"


def encode(folder: Path, _: int) -> str:
    from transformers import AutoTokenizer

    from engine.dpo.training.dataset import LongPair, drop_long_pairs, encoded, load_rows
    from engine.dpo.training.encoded_pairs import EncodedPairs

    context, too_long = run_of(folder), list[LongPair]()
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).resolve().parents[1] / "engine/demo/assets/base")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = load_rows(context.run / TRAIN_JSONL)
    pairs = EncodedPairs(drop_long_pairs(encoded(rows, tokenizer), 1024, too_long), context.run.folder)
    tokens = sum(pair.tokens_read for pair in pairs)
    return f"{len(pairs):,} pairs, {tokens:,} tokens, {len(too_long):,} too long; {before:.0f} MB before the first"


BENCH_STEPS: dict[str, Callable[[Path, int], str]] = {
    "make": make, "validate": validate, "export": export, "import": imported, "quality": quality,
    "browser": browser, "encode": encode,
}  # fmt: skip


def pairs_of(folder: Path) -> Path:
    return folder / "pairs-of-the-bench.jsonl"


def run_of(folder: Path) -> Context:
    config = Stage3Config(
        output_dir=folder / "run", pairs=pairs_of(folder), judge="none", relevance=False, accept_quality="a bench"
    )
    return Context(config, Run(config.output_dir))


def finished(context: Context, stage: Iterator[Any]) -> str:
    """Run a stage to its end and return its summary, with the size of the training set if there is one."""
    while True:
        try:
            next(stage)
        except StopIteration as end:
            size = (context.run / TRAIN_JSONL).stat().st_size / 1e6 if (context.run / TRAIN_JSONL).exists() else 0
            return f"{end.value.summary} ({size:,.0f} MB of training pairs)" if size else str(end.value.summary)


if __name__ == "__main__":
    main()
