"""Seconds per pair and peak memory of DPO: this engine compared with the notebook's method, on the same data, in one
run.

The notebook's method is plain TRL: one pair per forward pass and 8 per step, gradient checkpointing, a live reference.
Both train the same adapter on the same pairs in the same order; whether their losses are equal is checked and printed.
The model is a random Gemma shape of 30 million parameters. The text is real: replies of gemma-2b-it (short prompts) and
conversations of several turns (hh-rlhf), both tokenised with a vocabulary of 8,000 that was trained on them. Each
variant runs in its own process.

Three epochs are computed, not run: three times the steps, plus once what precedes them. CPU seconds are those of all
threads; trust them if other work shares the cores.

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

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads would spin, and count as CPU time
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.core.generators import drain
from engine.core.layout import CHECKPOINTS_DIR
from engine.process.environment import quiet_libraries

quiet_libraries()

DATA = Path(__file__).resolve().parents[2] / "shared/data"
VOCABULARY = 8000
MAX_LENGTH = 1024
STEP = 8
"""Pairs per optimizer step."""
EPOCHS = (1, 3)
SAME_LOSS = 1e-5


@dataclass(frozen=True)
class Variant:
    """One way to train: plain TRL, or this engine with some parts turned off."""

    name: str
    plain: bool = False
    recompute: bool = False
    once: bool = True
    """Compute the reference before the first step, not in each."""
    shared: bool = True
    """Read the prompt once, and send only positions that predict a reply through the head."""
    by_length: bool = True
    """Batch short pairs together, up to the tokens of the longest."""


NOTEBOOK = Variant("notebook: plain TRL", plain=True, recompute=True, once=False, shared=False, by_length=False)
ENGINE = Variant("engine")
LADDER = (
    Variant("no recomputation", once=False, shared=False, by_length=False),
    Variant("+ reference before", shared=False, by_length=False),
    Variant("+ prompt once, head on replies", by_length=False),
)
WITHOUT = (Variant("engine, live reference", once=False), Variant("engine, recomputation", recompute=True))
VARIANTS = {variant.name: variant for variant in (NOTEBOOK, ENGINE, *LADDER, *WITHOUT)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument(
        "--quick", action="store_true", help="16 pairs with short prompts, and only plain TRL and the full engine"
    )
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--set", dest="which", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(run(VARIANTS[arguments.variant], arguments.prepared, arguments.which, arguments.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    sets = prepare(arguments.data, folder, 2 * STEP if arguments.quick else arguments.pairs)
    if arguments.quick:
        del sets["hh-rlhf"]
    variants = [NOTEBOOK, ENGINE] if arguments.quick else [NOTEBOOK, *LADDER, ENGINE, *WITHOUT]
    for which, pairs in sets.items():
        print(f"{which}: {describe(pairs)}; {arguments.threads} threads\n")
        print(f"{'':32}{'wall s/pair':>12}{'CPU s/pair':>12}{'speed-up, 1 and 3 epochs':>32}{'peak MB':>9}{'loss':>10}")
        print(f"{'':32}{'steps':>12}{'steps':>12}{'wall':>16}{'CPU':>16}")
        results: dict[str, dict[str, Any]] = {}
        for variant in variants:
            command = [sys.executable, __file__, "--variant", variant.name, "--prepared", str(folder), "--set", which]
            done = subprocess.run(
                [*command, "--threads", str(arguments.threads)], check=True, capture_output=True, text=True
            )
            results[variant.name] = json.loads(done.stdout.splitlines()[-1])
            print(line(variant, results, len(pairs)), flush=True)
        worst = max(difference(results[NOTEBOOK.name], result) for result in results.values())
        print(
            f"\nlargest difference in the loss of any step and variant: {worst:.1e}",
            "(equal)" if worst < SAME_LOSS else "(NOT EQUAL)",
        )
        print("where the CPU time goes, seconds per pair:")
        for variant in (NOTEBOOK, ENGINE):
            parts = results[variant.name]["parts"]
            print(
                f"  {variant.name:22}"
                + "  ".join(f"{name} {seconds / len(pairs):.3f}" for name, seconds in parts.items())
            )
        print()


def line(variant: Variant, results: dict[str, dict[str, Any]], pairs: int) -> str:
    base, mine = results[NOTEBOOK.name], results[variant.name]

    def faster(clock: str) -> str:
        def total(result: dict[str, Any], epochs: int) -> float:
            return result[f"{clock}_before"] + epochs * result[f"{clock}_steps"]

        return "  ".join(f"{total(base, epochs) / total(mine, epochs):.2f}" for epochs in EPOCHS)

    return (
        f"{variant.name:32}{mine['wall_steps'] / pairs:12.3f}{mine['cpu_steps'] / pairs:12.3f}"
        f"{faster('wall'):>16}{faster('cpu'):>16}"
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
    """Conversations with an earlier assistant turn."""
    with gzip.open(data / "hh-rlhf-harmless-base-test.jsonl.gz", "rt", encoding="utf-8") as file:
        for text in file:
            record = json.loads(text)
            (prompt, chosen), (other, rejected) = (split(record[key]) for key in ("chosen", "rejected"))
            if prompt == other and len(prompt) >= 3 and chosen and rejected and chosen != rejected:
                yield row(prompt, chosen, rejected)


def split(text: str) -> tuple[list[str], str]:
    """(the turns before, starting with the user; the last reply)."""
    turns = [turn.strip() for part in text.split("\n\nHuman: ")[1:] for turn in part.split("\n\nAssistant: ")]
    return turns[:-1], turns[-1]


def row(prompt: list[str], chosen: str, rejected: str) -> dict[str, list[dict[str, str]]]:
    turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(prompt)]
    replies = ([{"role": "assistant", "content": reply}] for reply in (chosen, rejected))
    return dict(zip(("prompt", "chosen", "rejected"), (turns, *replies), strict=True))


# -- one variant, in its own process -----------------------------------------------------------------------------------


@dataclass
class Clock:
    """CPU seconds by part of the work; nested parts are subtracted from the outer one."""

    seconds: dict[str, float] = field(default_factory=dict)
    stack: list[tuple[str, list[float]]] = field(default_factory=list)
    """Parts in progress, and the seconds of the parts inside them."""

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


def run(variant: Variant, prepared: Path, which: str, threads: int) -> dict[str, Any]:
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
        build = plain_trainer if variant.plain else engine_trainer
        trainer, before = build(variant, policy, tokenizer, pairs, Path(folder))
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


def plain_trainer(
    variant: Variant, policy: Any, tokenizer: Any, pairs: Any, folder: Path
) -> tuple[Any, Callable[[], None]]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class OnTokens(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # already tokenised, as in the engine

    arguments = DPOConfig(
        output_dir=str(folder), **settings(len(pairs)), use_cpu=True, bf16=False, gradient_checkpointing=variant.recompute,
        logging_steps=1, save_strategy="no", disable_tqdm=True, report_to="none", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = OnTokens(model=policy, args=arguments, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    return trainer, lambda: None


def engine_trainer(
    variant: Variant, policy: Any, tokenizer: Any, pairs: Any, folder: Path
) -> tuple[Any, Callable[[], None]]:
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
        output_dir=folder, device="cpu", dtype="float32", gradient_checkpointing=variant.recompute, save_steps=10**6
    )
    context = Context(config, Run(folder))
    if not variant.shared:
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
    trainer._save_checkpoint = lambda *_: None  # neither does the notebook's method here
    if not variant.by_length:
        trainer.max_tokens = 0

    def before() -> None:
        if variant.once:
            working = reference_logps(
                policy, pairs, trainer.data_collator, batch_size=1 if variant.by_length else 0, dtype=torch.float32,
                cache=KeyedCache(folder / "logps.jsonl"), policy="bench", stop=context.stop,
            )  # fmt: skip
            trainer.use_reference_logps(drain(working))

    return trainer, before


if __name__ == "__main__":
    main()
