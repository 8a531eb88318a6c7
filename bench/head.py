"""Peak memory and seconds per pair of the variants of --head, by size of the vocabulary. Each cell runs in its own
process.

Measures one optimizer step of the engine's trainer on one pair (prompt of 30 tokens, two replies up to --length), after
an unmeasured one. The model is SmolLM2's shape with 4 layers and random weights, or --model with --adapter. The
reference's log-probabilities are given, so a step is one forward and one backward pass. Memory is the peak resident
memory in the measured step, and how much of it the step added. Seconds are CPU time, which other processes disturb
least.

    python bench/head.py [--vocabularies 32000 49152 256000] [--ways whole trl chunked] [--length 512] [--pairs 1] [--threads 1]
                         [--dtype float32] [--model DIR --adapter DIR]

TRL has no other variant on a CPU: its `use_liger_kernel` is deprecated, does not cover the head for DPO, and its
kernels need a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.process.environment import quiet_libraries

quiet_libraries()

PROMPT = 30
GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32000, 49152, 256000])
    parser.add_argument("--ways", nargs="+", default=["whole", "trl", "chunked"])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(measure(arguments, *json.loads(arguments.cell))))
        return
    sizes = [0] if arguments.model else arguments.vocabularies
    print(f"{arguments.pairs} pairs of 2 x {arguments.length} tokens, {arguments.dtype}, {arguments.threads} threads\n")
    print(f"{'vocabulary':>10}  {'head':10}{'peak GiB':>9}{'step GiB':>12}{'CPU s/pair':>12}{'loss':>12}")
    for vocabulary in sizes:
        for way in arguments.ways:
            cell = run_cell(__file__, vocabulary, way)
            print(
                f"{cell['vocabulary']:10,}  {way:10}{cell['peak'] / GIB:9.2f}{cell['added'] / GIB:12.2f}"
                f"{cell['seconds'] / arguments.pairs:12.2f}{cell['loss']:12.7f}",
                flush=True,
            )


def run_cell(bench: str, *cell: Any) -> dict[str, Any]:
    """Measure one cell in its own process, so that the memory peak is the cell's: run this bench again with `--cell`."""
    command = [sys.executable, bench, *sys.argv[1:], "--cell", json.dumps(cell)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(arguments: argparse.Namespace, vocabulary: int, way: str) -> dict[str, Any]:
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(arguments, vocabulary)
        pairs = make_pairs(policy, [(PROMPT, arguments.length - PROMPT, arguments.length - PROMPT)] * arguments.pairs)
        return measure_step(make_trainer(policy, pairs, arguments.dtype, way, Path(folder)))


def measure_step(trainer: Any) -> dict[str, Any]:
    """Memory and CPU seconds of the trainer's second step, and its loss."""
    from engine.dpo.training.trl_trainer import without_warnings

    trainer.create_optimizer()
    steps: list[tuple[MemoryPeak, float]] = []
    original = trainer.training_step

    def measured(*args: Any, **kwargs: Any) -> Any:
        memory, started = MemoryPeak(), time.process_time()
        with memory:
            loss = original(*args, **kwargs)
        steps.append((memory, time.process_time() - started))
        return loss

    trainer.training_step = measured
    with without_warnings():
        trainer.train()
    memory, seconds = steps[-1]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "vocabulary": trainer.model.config.vocab_size,
        "peak": memory.peak,
        "added": memory.peak - memory.before,
        "seconds": seconds,
        "loss": losses[-1],
    }


class MemoryPeak:
    """Measures the peak resident memory of this process inside a `with` block."""

    def __init__(self) -> None:
        import psutil

        self._process, self._over = psutil.Process(), threading.Event()
        self.before = self.peak = self._process.memory_info().rss

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def make_pairs(policy: Any, sizes: list[tuple[int, int, int]]) -> list[dict[str, list[int]]]:
    """Pairs of random tokens for two steps; each step has these (prompt, chosen, rejected) token counts."""
    import torch

    draw = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(3, policy.config.vocab_size, (count,), generator=draw).tolist()  # type: ignore[no-any-return]

    return [
        {f"{name}_ids": ids(count) for name, count in zip(("prompt", "chosen", "rejected"), counts, strict=True)}
        for counts in 2 * sizes
    ]


def make_trainer(policy: Any, pairs: list[dict[str, list[int]]], dtype: str, way: str, folder: Path) -> Any:
    """The engine's trainer for two steps, each with half of the pairs in one pass, and with given reference log-probabilities."""
    import torch

    from engine.core.config import Stage3Config
    from engine.demo.tokenizer import train_tokenizer
    from engine.dpo.training.dataset import EncodedPair
    from engine.dpo.training.encoded_pairs import EncodedPairs
    from engine.dpo.training.trl_trainer import build_trainer

    config = Stage3Config(
        output_dir=folder, device="cpu", dtype=dtype, head=way, gradient_checkpointing=False, save_steps=10**6
    )
    settings = {
        "num_train_epochs": 1.0, "max_steps": 2, "beta": 0.1, "learning_rate": 5e-5, "lr_scheduler_type": "linear",
        "warmup_steps": 0, "per_device_train_batch_size": len(pairs) // 2, "gradient_accumulation_steps": 1,
        "max_length": 2048, "seed": 42,
    }  # fmt: skip
    tokenizer = train_tokenizer(["a few words"], 300)
    encoded = EncodedPairs((EncodedPair(number, **pair) for number, pair in enumerate(pairs)), folder)
    trainer = build_trainer(config, folder, policy, tokenizer, encoded, settings, getattr(torch, dtype), "bench")
    assert trainer.head == way, trainer.why_head
    trainer._save_checkpoint = lambda *_: None
    trainer.use_reference_logps([(-1000.0, -1000.0)] * len(pairs))
    return trainer


def make_policy(arguments: argparse.Namespace, vocabulary: int) -> Any:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    dtype = getattr(torch, arguments.dtype)
    if arguments.model:
        base = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype)
        return PeftModel.from_pretrained(base, str(arguments.adapter), is_trainable=True)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=vocabulary, hidden_size=576, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(shape, dtype=dtype)
    return get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))


if __name__ == "__main__":
    main()
