"""Minutes, peak memory and forecast error of DPO training with Gemma 2B's shape, limited to 15 GB.

The weights are random and the text is real (`shared/data/gemma-2b-it-pairs.jsonl`, tokenised with a vocabulary trained
on it). The training is the engine's own, with the plan that its forecast chooses, and with fresh processes if memory
runs out.

    python bench/gpu.py [--pairs 1000] [--gb 15] [--max-length 1024] [--out FILE]
    python bench/gpu.py --tiny      the same on the CPU with a tiny shape, for a machine without a GPU
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.process.environment import quiet_libraries

quiet_libraries()

DATA = Path(__file__).resolve().parents[2] / "shared/data/gemma-2b-it-pairs.jsonl"
SHAPES: dict[bool, dict[str, int]] = {
    False: {
        "hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
        "intermediate_size": 16384, "vocab_size": 256000,
    },
    True: {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "intermediate_size": 64, "vocab_size": 2048,
    },
}  # fmt: skip
"""Shapes by --tiny. The first is from google/gemma-2b-it's config.json."""
WORDS = 2000
"""Size of the tokenizer's vocabulary. It is smaller than Gemma's, so a text has somewhat more tokens."""
RANK = 16
FIRST_STEPS = 5
CONTINUE = 75
"""Exit code of a process that ran out of memory: the next one continues with the reduced plan."""
GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--gb", type=float, default=15.0, help="GPU memory that torch may use, in GB (10^9 bytes)")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--in-folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.pairs = given.pairs or (24 if given.tiny else 1000)
    if given.in_folder:
        raise SystemExit(train_once(given))
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        for attempt in range(1, 9):  # noqa: B007
            code = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--in-folder", folder], check=False
            ).returncode
            if code != CONTINUE:
                break
        if code:
            raise SystemExit(code)
        figures = json.loads((Path(folder) / "figures.json").read_text())
    figures |= {"processes": attempt, "minutes_in_all": (time.monotonic() - started) / 60}
    for name, value in figures.items():
        print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")


def train_once(given: argparse.Namespace) -> int:
    """In one process, train to the end or until memory runs out."""
    import torch

    from engine.core.errors import RestartNeeded
    from engine.dpo.planning.forecast import Shape, machine_of
    from engine.dpo.planning.plan import current_plan
    from engine.dpo.training.dataset import encode_rows
    from engine.dpo.training.trainer import train
    from engine.models.tensors import adapter_tensors, hash_tensors
    from engine.stages.preflight import PlanInputs

    cuda = not given.tiny
    if cuda:
        cap = given.gb * 1e9 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(cap, 1.0), 0)
    rows, tokenizer = read(given.data, given.pairs)
    policy = build(given.tiny, tokenizer)
    context = context_of(given, policy)
    machine = machine_of(torch.device("cuda", 0) if cuda else torch.device("cpu"))
    if cuda:  # the memory already in use is the model; the cap includes it
        machine = replace(machine, room=int(given.gb * 1e9))
    shape = Shape.of(policy.config, context.run.result("adapter"))
    dtype = "bfloat16" if cuda else "float32"
    config = context.config.model_copy(update={"dtype": dtype})
    grounds = PlanInputs(config, shape, machine, "the benchmark's")
    if not context.run.result("preflight"):
        context.run.record_stage("preflight", status="done", result={"plan": grounds.choose().as_dict()})
    plan = current_plan(context.run, context.config, dtype)
    print(f"{plan.in_words}: {plan.why.get('micro_batch', '')}", flush=True)

    times: list[float] = []
    working = train(context.config, context.run, rows, stop=context.stop, policy=policy, tokenizer=tokenizer,
                    reference_sha256=hash_tensors(adapter_tensors(policy, "default")))  # fmt: skip
    try:
        trained = run_training(working, times)
    except RestartNeeded as restart:
        print(f"\n{restart}", flush=True)
        return CONTINUE
    figures = {
        "device": torch.cuda.get_device_name(0) if cuda else "CPU",
        "plan": trained.plan.in_words,
        "pairs": trained.pairs,
        "steps": trained.steps,
        "minutes": trained.seconds / 60,
        "seconds_a_pair": trained.seconds / trained.pairs,
        **memory_figures(encode_rows(rows, tokenizer), given.max_length, shape, trained, machine),
        "steps_forecast_error": error_of_first_steps(times),
    }
    if cuda:
        figures["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    (given.in_folder / "figures.json").write_text(json.dumps(figures))
    return 0


def run_training(working: Iterator[Any], times: list[float]) -> Any:
    """Print each step, record its time, and return the training's result."""
    from engine.core.events import TrainStep

    while True:
        try:
            event = next(working)
        except StopIteration as end:
            print()
            return end.value
        if isinstance(event, TrainStep):
            times.append(time.monotonic())
            step = f"step {event.step}/{event.total_steps}, {event.tokens_per_second:.0f} tokens/s"
            print(f"\r{step}", end="", flush=True)


def memory_figures(pairs: Sequence[Any], max_length: int, shape: Any, trained: Any, machine: Any) -> dict[str, Any]:
    """The measured peak beside the forecast. The plan is for two replies of --max-length, so the forecast is computed again for the
    longest pair in the data.
    """
    from engine.dpo.planning.forecast import training_memory

    longest = max(
        len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)
        for pair in pairs
        if pair.length <= max_length
    )
    terms = training_memory(
        shape, trained.plan, max_length=-(-longest // 2), context=machine.context, slack=machine.slack
    )
    measured = trained.peak_bytes + (machine.context if machine.device_type == "cuda" else 0)
    return {
        "longest_pair_tokens": longest,
        "peak_gib": measured / GIB,
        "peak_forecast_gib": sum(terms.values()) / GIB,
        "peak_forecast_error": sum(terms.values()) / measured - 1,
        "terms_gib": {name: round(size / GIB, 3) for name, size in terms.items()},
    }


def error_of_first_steps(times: Sequence[float]) -> float:
    """Relative error of extrapolating the training time from the first FIRST_STEPS steps."""
    longest = max(len(times) - 1, 1)
    first = min(FIRST_STEPS, longest)
    predicted = (times[first] - times[0]) / first * longest if len(times) > 1 else 0.0
    actual = times[-1] - times[0]
    return predicted / actual - 1 if actual else 0.0


def read(path: Path, count: int) -> tuple[list[Any], Any]:
    """`count` pairs with different replies, and a tokenizer trained on them."""
    from engine.demo.tokenizer import train_tokenizer

    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    replies = [(r["prompt"], r["revised_response"].strip(), r["base_response"].strip()) for r in records]
    # Identical replies teach nothing: use the next prompt's rejected reply, which also has a realistic length.
    pairs = [
        (prompt, chosen, rejected if rejected != chosen else replies[(i + 1) % len(replies)][2])
        for i, (prompt, chosen, rejected) in enumerate(replies)
    ]
    pairs = [pair for pair in pairs if all(text.strip() for text in pair) and pair[1] != pair[2]]
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in (pairs[i % len(pairs)] for i in range(count))
    ]
    return rows, train_tokenizer([" ".join(pair) for pair in pairs], WORDS)


def build(tiny: bool, tokenizer: Any) -> Any:
    """A Gemma with random weights and an adapter on all projections, the same in every process."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(3)
    config = GemmaConfig(
        **SHAPES[tiny],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if tiny else torch.bfloat16)
    try:
        with torch.device("cpu" if tiny else "cuda"):
            base = GemmaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    policy = get_peft_model(
        base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    return policy


def context_of(given: argparse.Namespace, policy: Any) -> Any:
    from engine.core.config import load_config
    from engine.run.context import Context
    from engine.run.folder import Run

    config = load_config(
        {
            "output_dir": given.in_folder / "run",
            "device": "cpu" if given.tiny else "cuda",
            "max_length": given.max_length,
            "max_too_long_share": 1.0,
            "save_steps": 25,
        },
        environment={},
    )
    context = Context(config, Run(config.output_dir))
    lora = policy.peft_config["default"]
    counts = {
        "base_parameters": sum(p.numel() for n, p in policy.named_parameters() if "lora_" not in n),
        "trainable_parameters": sum(p.numel() for n, p in policy.named_parameters() if "lora_" in n),
    }
    context.run.record_stage(
        "adapter", status="done", result={**counts, "rank": RANK, "target_modules": sorted(lora.target_modules)}
    )
    return context


if __name__ == "__main__":
    main()
