"""Seconds per pair and peak memory of DPO: this engine against the notebook's way, on the same data, in one run.

The notebook's way is plain TRL: one pair in a forward pass and 8 of them in a step, gradient checkpointing, a live reference.
Both train the same adapter on the same pairs in the same order; that their losses are equal is checked and printed. The model is
a random Gemma shape of 30 million parameters, the text is real: what gemma-2b-it wrote (short prompts) and conversations of
several turns (hh-rlhf), each in tokens of a vocabulary of 8,000 that was trained on both. Each way runs in a process of its own.

Three epochs are computed: three times the steps, once what comes before them. CPU seconds are of all threads; if a
neighbour shares the cores they are the figure to trust.

    python bench/training.py [--quick] [--pairs 24] [--threads 2] [--data DIR]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait would spin, and be counted
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.core.generators import drain
from engine.core.layout import CHECKPOINTS_DIR
from engine.process.environment import quiet_libraries

quiet_libraries()

DATA = Path(__file__).resolve().parents[2] / "shared/data"
VOCABULARY = 8000
MAX_LENGTH = 1024
STEP = 8
"""Pairs of one optimizer step."""
EPOCHS = (1, 3)
SAME_LOSS = 1e-5


@dataclass(frozen=True)
class Way:
    """One way to train. The first is plain TRL; the others are this engine, with some of it switched off."""

    name: str
    plain: bool = False
    recompute: bool = False
    once: bool = True
    """The reference before the first step, not in each."""
    shared: bool = True
    """The prompt read once, and only what predicts a reply through the head."""
    by_length: bool = True
    """Short pairs side by side up to the tokens of the longest."""


NOTEBOOK = Way("notebook: plain TRL", plain=True, recompute=True, once=False, shared=False, by_length=False)
ENGINE = Way("engine")
LADDER = (
    Way("no recomputation", once=False, shared=False, by_length=False),
    Way("+ reference before", shared=False, by_length=False),
    Way("+ prompt once, head on replies", by_length=False),
)
WITHOUT = (Way("engine, live reference", once=False), Way("engine, recomputation", recompute=True))
WAYS = {way.name: way for way in (NOTEBOOK, ENGINE, *LADDER, *WITHOUT)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument(
        "--quick", action="store_true", help="16 pairs with short prompts, and only the two ways as they are"
    )
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--set", dest="which", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(run(WAYS[arguments.way], arguments.prepared, arguments.which, arguments.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    sets = prepare(arguments.data, folder, 2 * STEP if arguments.quick else arguments.pairs)
    if arguments.quick:
        del sets["hh-rlhf"]
    ways = [NOTEBOOK, ENGINE] if arguments.quick else [NOTEBOOK, *LADDER, ENGINE, *WITHOUT]
    for which, pairs in sets.items():
        print(f"{which}: {describe(pairs)}; {arguments.threads} threads\n")
        print(
            f"{'':32}{'wall s/pair':>12}{'CPU s/pair':>12}{'times as fast, 1 and 3 epochs':>32}{'peak MB':>9}{'loss':>10}"
        )
        print(f"{'':32}{'steps':>12}{'steps':>12}{'wall':>16}{'CPU':>16}")
        results: dict[str, dict[str, Any]] = {}
        for way in ways:
            command = [sys.executable, __file__, "--way", way.name, "--prepared", str(folder), "--set", which]
            done = subprocess.run(
                [*command, "--threads", str(arguments.threads)], check=True, capture_output=True, text=True
            )
            results[way.name] = json.loads(done.stdout.splitlines()[-1])
            print(line(way, results, len(pairs)), flush=True)
        worst = max(difference(results[NOTEBOOK.name], result) for result in results.values())
        print(
            f"\nlargest difference in the loss of any step, any way: {worst:.1e}",
            "(equal)" if worst < SAME_LOSS else "(NOT EQUAL)",
        )
        print("where the CPU time goes, seconds per pair:")
        for way in (NOTEBOOK, ENGINE):
            parts = results[way.name]["parts"]
            print(
                f"  {way.name:22}" + "  ".join(f"{name} {seconds / len(pairs):.3f}" for name, seconds in parts.items())
            )
        print()


def line(way: Way, results: dict[str, dict[str, Any]], pairs: int) -> str:
    base, mine = results[NOTEBOOK.name], results[way.name]

    def faster(clock: str) -> str:
        def whole(result: dict[str, Any], epochs: int) -> float:
            return result[f"{clock}_before"] + epochs * result[f"{clock}_steps"]

        return "  ".join(f"{whole(base, epochs) / whole(mine, epochs):.2f}" for epochs in EPOCHS)

    return (
        f"{way.name:32}{mine['wall_steps'] / pairs:12.3f}{mine['cpu_steps'] / pairs:12.3f}{faster('wall'):>16}{faster('cpu'):>16}"
        f"{mine['peak'] / 2**20:9.0f}{difference(base, mine):10.0e}"
    )


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True))


def describe(pairs: list[dict[str, list[int]]]) -> str:
    def spread(name: str) -> str:
        lengths = sorted(len(pair[name]) for pair in pairs)
        return f"{lengths[0]} to {lengths[-1]} (median {lengths[len(lengths) // 2]})"

    parts = ", ".join(
        f"{name.removesuffix('_ids')} {spread(name)}" for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    )
    return f"{len(pairs)} pairs, tokens: {parts}"


# -- the data ----------------------------------------------------------------------------------------------------------


def prepare(data: Path, folder: Path, count: int) -> dict[str, list[dict[str, list[int]]]]:
    """Write the tokenizer and `count` pairs of each set to `folder`; return the pairs as token ids."""
    from engine.demo.tokenizer import train_tokenizer
    from engine.dpo.training.dataset import encode_rows

    rows = {"gemma-2b-it": list(gemma_rows(data)), "hh-rlhf": list(hh_rows(data))}
    texts = [m["content"] for kind in rows.values() for row in kind for key in row for m in row[key]]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    tokenizer.save_pretrained(folder / "tokenizer")
    sets = {}
    for which, found in rows.items():
        random.Random(7).shuffle(found)
        fitting = [pair for pair in encode_rows(found[: 2 * count], tokenizer) if pair.length <= MAX_LENGTH]
        sets[which] = [
            {"prompt_ids": pair.prompt_ids, "chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids}
            for pair in fitting[:count]
        ]
        (folder / f"{which}.json").write_text(json.dumps(sets[which]))
    return sets


def gemma_rows(data: Path) -> Iterator[dict[str, list[dict[str, str]]]]:
    for text in (data / "gemma-2b-it-pairs.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(text)
        replies = [record["revised_response"].strip(), record["base_response"].strip()]
        if all(replies) and replies[0] != replies[1]:
            yield row([record["prompt"]], *replies)


def hh_rows(data: Path) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Conversations in which the assistant has spoken before."""
    with gzip.open(data / "hh-rlhf-harmless-base-test.jsonl.gz", "rt", encoding="utf-8") as file:
        for text in file:
            record = json.loads(text)
            (prompt, chosen), (other, rejected) = (split(record[key]) for key in ("chosen", "rejected"))
            if prompt == other and len(prompt) >= 3 and chosen and rejected and chosen != rejected:
                yield row(prompt, chosen, rejected)


def split(text: str) -> tuple[list[str], str]:
    """Messages, the person's first, and the assistant's last."""
    turns = [turn.strip() for part in text.split("\n\nHuman: ")[1:] for turn in part.split("\n\nAssistant: ")]
    return turns[:-1], turns[-1]


def row(prompt: list[str], chosen: str, rejected: str) -> dict[str, list[dict[str, str]]]:
    said = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(prompt)]
    replies = ([{"role": "assistant", "content": reply}] for reply in (chosen, rejected))
    return dict(zip(("prompt", "chosen", "rejected"), (said, *replies), strict=True))


# -- one way, in its own process ---------------------------------------------------------------------------------------


@dataclass
class Clock:
    """CPU seconds by part of the work; a part within a part is taken out of the outer one."""

    seconds: dict[str, float] = field(default_factory=dict)
    stack: list[tuple[str, list[float]]] = field(default_factory=list)
    """Parts that are under way, and what parts within them took."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started, inner = time.process_time(), [0.0]
        self.stack.append((name, inner))
        try:
            yield
        finally:
            self.stack.pop()
            taken = time.process_time() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + taken - sum(inner)
            if self.stack:
                self.stack[-1][1].append(taken)

    def within(self, name: str) -> bool:
        return any(part == name for part, _ in self.stack)

    def watch(self, owner: Any, attribute: str, name: Callable[[], str]) -> None:
        real = getattr(owner, attribute)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.part(name()):
                return real(*args, **kwargs)

        setattr(owner, attribute, watched)


def run(way: Way, prepared: Path, which: str, threads: int) -> dict[str, Any]:
    import torch
    from transformers import AutoTokenizer
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    from bench.generation import make_models
    from engine.dpo.training.trl_trainer import without_warnings
    from engine.models.head import LabelStatisticsFunction

    torch.set_num_threads(threads)
    pairs = json.loads((prepared / f"{which}.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    policy = make_models()[0]
    with tempfile.TemporaryDirectory() as folder:
        build = plain_trainer if way.plain else engine_trainer
        trainer, before = build(way, policy, tokenizer, pairs, Path(folder))
        clock = Clock()

        clock.watch(policy, "forward", lambda: "forward" if torch.is_grad_enabled() else "reference")
        for head in (ChunkedLogProbFunction, LabelStatisticsFunction):
            clock.watch(head, "forward", lambda: "reference" if clock.within("reference") else "head, forward")
            clock.watch(head, "backward", lambda: "head, backward")
        clock.watch(trainer.accelerator, "backward", lambda: "backward")
        wall, cpu = time.perf_counter(), time.process_time()
        with clock.part("reference"):
            before()
        before_wall, before_cpu = time.perf_counter() - wall, time.process_time() - cpu
        trainer.create_optimizer()
        clock.watch(trainer.optimizer, "step", lambda: "optimizer")
        wall, cpu = time.perf_counter(), time.process_time()
        with without_warnings(), clock.part("rest"):
            trainer.train()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "wall_before": before_wall,
        "cpu_before": before_cpu,
        "wall_steps": wall,
        "cpu_steps": cpu,
        "parts": clock.seconds,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def settings(pairs: int) -> dict[str, Any]:
    return {
        "num_train_epochs": 1.0,
        "max_steps": -1,
        "beta": 0.1,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "linear",
        "warmup_steps": pairs // STEP // 10,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": STEP,
        "max_length": MAX_LENGTH,
        "seed": 42,
    }


def plain_trainer(way: Way, policy: Any, tokenizer: Any, pairs: Any, folder: Path) -> tuple[Any, Callable[[], None]]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class OnTokens(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # tokenised already, as the engine's are

    arguments = DPOConfig(
        output_dir=str(folder), **settings(len(pairs)), use_cpu=True, bf16=False, gradient_checkpointing=way.recompute,
        logging_steps=1, save_strategy="no", disable_tqdm=True, report_to="none", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = OnTokens(model=policy, args=arguments, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    return trainer, lambda: None


def engine_trainer(way: Way, policy: Any, tokenizer: Any, pairs: Any, folder: Path) -> tuple[Any, Callable[[], None]]:
    import torch

    from engine.core.config import Stage3Config
    from engine.dpo.training import trl_trainer
    from engine.dpo.training.dataset import EncodedPair
    from engine.dpo.training.encoded_pairs import EncodedPairs
    from engine.dpo.training.reference import reference_logps
    from engine.run.context import Context
    from engine.run.folder import Run
    from engine.storage.keyed_cache import KeyedCache

    config = Stage3Config(
        output_dir=folder, device="cpu", dtype="float32", gradient_checkpointing=way.recompute, save_steps=10**6
    )
    context = Context(config, Run(folder))
    if not way.shared:
        trl_trainer.share_prompt_computation = lambda policy: False
    trainer = trl_trainer.build_trainer(
        context.config,
        context.run / CHECKPOINTS_DIR,
        policy,
        tokenizer,
        EncodedPairs((EncodedPair(number, **pair) for number, pair in enumerate(pairs)), folder),
        settings(len(pairs)),
        torch.float32,
        "bench",
    )
    trainer._save_checkpoint = lambda *_: None  # the notebook's way saves none here either
    if not way.by_length:
        trainer.max_tokens = 0

    def before() -> None:
        if way.once:
            working = reference_logps(
                policy, pairs, trainer.data_collator, batch_size=1 if way.by_length else 0, dtype=torch.float32,
                cache=KeyedCache(folder / "logps.jsonl"), policy="bench", stop=context.stop,
            )  # fmt: skip
            trainer.use_reference_logps(drain(working))

    return trainer, before


if __name__ == "__main__":
    main()
