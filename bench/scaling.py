"""CPU seconds and peak memory of a DPO step against the length of the replies, the parameters and the vocabulary, one
at a time.

Each point runs in its own process: the engine's own training with one pair per step, in float32, with the reference in
each step and without recomputation, on a Gemma shape with random weights and LoRA of rank 16 on all projections. Beside
the memory is the forecast of engine/dpo/planning/forecast.py, and beside the time the rate of the floating-point
operations that docs/scaling.md counts.

    python bench/scaling.py [--steps 4] [--threads 1]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.gpu import RANK, context_of
from engine.process.environment import quiet_libraries

quiet_libraries()

PROMPT_WORDS = 8
WORDS = [f"{first}{second}" for first in "bdfglmnprst" for second in ("a", "en", "il", "or", "u")]


@dataclass(frozen=True)
class Point:
    reply_tokens: int = 256
    hidden: int = 256
    layers: int = 6
    vocabulary: int = 8192


BASE = Point()
POINTS = (
    *(replace(BASE, reply_tokens=tokens) for tokens in (128, 256, 512, 1024)),
    *(replace(BASE, hidden=hidden) for hidden in (512, 768)),
    *(replace(BASE, vocabulary=vocabulary) for vocabulary in (32768, 131072)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        print(json.dumps(measure(Point(**json.loads(given.point)), given.steps)))
        return
    print("| tokens per pair | parameters, millions | vocabulary | CPU s per step | GFLOP/s | peak MB | forecast MB |")
    print("|---|---|---|---|---|---|---|")
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "OMP_WAIT_POLICY": "passive"}
    for point in POINTS:
        command = [sys.executable, __file__, "--steps", str(given.steps), "--point", json.dumps(asdict(point))]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        print(
            "| {tokens:,} | {millions:.1f} | {vocabulary:,} | {seconds:.2f} | {gflops:.0f} | {peak:.0f} | {forecast:.0f} |".format(
                **figures
            ),
            flush=True,
        )


def measure(point: Point, steps: int) -> dict[str, float]:
    """Train on `steps` pairs of this size; the first step is a warm-up and is left out."""
    import torch

    from engine.core.events import TrainStep
    from engine.demo.tokenizer import train_tokenizer
    from engine.dpo.planning.forecast import Shape, head_method, machine_of, training_memory
    from engine.dpo.planning.plan import TrainingPlan
    from engine.dpo.training.dataset import encode_rows
    from engine.dpo.training.trainer import train
    from engine.models.tensors import adapter_tensors, hash_tensors

    torch.manual_seed(3)
    tokenizer = train_tokenizer([" ".join(WORDS)] * 4, 600)
    policy = build(point, tokenizer)
    rows = [row(number, point.reply_tokens) for number in range(steps)]
    plan = TrainingPlan(1, 1, False, "live", "float32")
    with tempfile.TemporaryDirectory() as folder:
        given = argparse.Namespace(in_folder=Path(folder), tiny=True, max_length=4096)
        context = context_of(given, policy)
        config = context.config.model_copy(update={"gradient_accumulation_steps": 1, "dtype": "float32"})
        context = replace(context, config=config)
        context.run.record_stage("preflight", status="done", result={"plan": plan.as_dict()})
        machine = machine_of(torch.device("cpu"))
        times: list[float] = []
        working = train(context.config, context.run, rows, stop=context.stop, policy=policy, tokenizer=tokenizer,
                        reference_sha256=hash_tensors(adapter_tensors(policy, "default")))  # fmt: skip
        try:
            while True:
                if isinstance(next(working), TrainStep):
                    times.append(time.process_time())
        except StopIteration as end:
            trained = end.value
        shape = Shape.of(policy.config, context.run.result("adapter"))
    pair = encode_rows(rows[:1], tokenizer)[0]
    tokens = len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)
    terms = training_memory(
        shape,
        plan,
        max_length=-(-tokens // 2),
        context=machine.context,
        slack=machine.slack,
        head=head_method(config.head, machine.device_type),
        device_type=machine.device_type,
    )
    seconds = statistics.median(after - before for before, after in itertools.pairwise(times))
    return {
        "tokens": tokens,
        "millions": shape.base_parameters / 1e6,
        "vocabulary": point.vocabulary,
        "seconds": seconds,
        "gflops": 6 * shape.base_parameters * tokens / seconds / 1e9,
        "peak": trained.peak_bytes / 1e6,
        "forecast": sum(terms.values()) / 1e6,
    }


def row(number: int, tokens: int) -> Any:
    """A pair whose replies have about this many tokens each."""

    def words(start: int, count: int) -> str:
        return " ".join(WORDS[(start + 7 * index) % len(WORDS)] for index in range(count))

    def message(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    return {
        "prompt": message("user", words(number, PROMPT_WORDS)),
        "chosen": message("assistant", words(number + 1, tokens)),
        "rejected": message("assistant", words(number + 2, tokens)),
    }


def build(point: Point, tokenizer: Any) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(
        hidden_size=point.hidden,
        intermediate_size=4 * point.hidden,
        num_hidden_layers=point.layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=point.hidden // 4,
        vocab_size=point.vocabulary,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, task_type="CAUSAL_LM")
    policy = get_peft_model(GemmaForCausalLM(config), lora)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    return policy


if __name__ == "__main__":
    main()
