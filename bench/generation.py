"""Tokens per second of draft, critique and revision: this engine compared with the notebook's method, in one run.

The notebook's method is one prompt at a time, with `model.generate` on the PEFT model and the adapter unmerged. Both
read the same prompts, generate the same number of tokens for each step of each prompt, and sample with the same
temperature and top-p. The model is a random Gemma shape of 30 million parameters, whose text is meaningless, so lengths
are drawn at random and no token ends a turn. Rows are token ids: the prompt of the next step is the last one with the
reply and the next request appended.

    python bench/generation.py [--prompts hh-rlhf.jsonl.gz] [--count 128] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads would spin, and count as CPU time

VOCABULARY = 8000
STEPS = 3
REQUEST_TOKENS = 60
"""Length of a critique or revision request, with the template's turn marks."""
SHORTEST, LONGEST = 8, 64
SLOW_PROMPTS = 12
"""The slow methods are timed on this many of the prompts, drawn evenly by length."""
PARTS_BATCH = 32


@dataclass(frozen=True)
class Work:
    """One prompt: its ids, the requests that follow, and the number of tokens to generate in each step."""

    prompt: list[int]
    requests: list[list[int]]
    reply_lengths: list[int]


def main() -> None:
    arguments = parse()
    import torch

    torch.set_num_threads(arguments.threads)
    works = make_works(arguments.count, arguments.prompts, ragged=not arguments.fixed)
    policy, merged = make_models()
    lengths = sorted(len(work.prompt) for work in works)
    millions = sum(parameter.numel() for parameter in merged.parameters()) / 1e6
    print(f"{millions:.1f} M parameters, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{len(works)} prompts of {lengths[0]} to {lengths[-1]} tokens (median {lengths[len(lengths) // 2]}), ", end=""
    )
    print(f"three steps of {SHORTEST if not arguments.fixed else LONGEST} to {LONGEST} tokens\n")
    print(f"{'':44}{'tokens':>8}{'wall s':>8}{'CPU s':>8}{'tokens/s':>10}{'ratio':>8}")
    few = drawn(works, SLOW_PROMPTS)
    base = report("notebook: one by one, adapter unmerged", few, lambda: notebook(policy, few), None)
    for size in (1, 2, 4, 8, 16, 32, 64, 128):
        part = drawn(works, max(SLOW_PROMPTS, 3 * size))
        if size <= len(part):
            report(f"engine, batches of {size}", part, lambda part=part, size=size: engine(merged, part, size), base)
    part = drawn(works, PARTS_BATCH)
    print(f"\nthe contribution of each part, in batches of {PARTS_BATCH}")
    report("the engine", part, lambda: engine(merged, part, PARTS_BATCH), base)
    report("adapter unmerged", part, lambda: engine(policy, part, PARTS_BATCH), base)
    report("without the prefix cache", part, lambda: engine(merged, part, PARTS_BATCH, use_cache=False), base)
    report("finished rows stay in the batch", part, lambda: engine(merged, part, PARTS_BATCH, compact=False), base)
    report("transformers: generate, padded", part, lambda: padded(merged, part, PARTS_BATCH), base)
    report("transformers: continuous batching", part, lambda: continuous(merged, part), base)


def drawn(works: Sequence[Work], count: int) -> list[Work]:
    """This many of the prompts, evenly by length."""
    by_length = sorted(works, key=lambda work: len(work.prompt))
    count = min(count, len(works))
    return [by_length[(2 * i + 1) * len(works) // (2 * count)] for i in range(count)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prompts", type=Path, help="a dataset whose conversations give the lengths; random by default"
    )
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fixed", action="store_true", help=f"every step generates {LONGEST} tokens")
    return parser.parse_args()


def report(name: str, works: Sequence[Work], run: Callable[[], None], base: float | None) -> float:
    """Time `run`, print a line, and return its tokens per second."""
    tokens = sum(sum(work.reply_lengths) for work in works)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rate = tokens / wall
    print(f"{name:44}{tokens:8}{wall:8.1f}{cpu:8.1f}{rate:10.1f}{rate / (base or rate):8.2f}", flush=True)
    return rate


def make_works(count: int, prompts: Path | None, *, ragged: bool) -> list[Work]:
    draw = random.Random(5)

    def ids(length: int) -> list[int]:
        return [draw.randrange(10, VOCABULARY) for _ in range(length)]

    requests = [[ids(REQUEST_TOKENS) for _ in range(STEPS - 1)] for _ in range(16)]
    lengths = real_lengths(prompts, count) if prompts else [draw.randrange(30, 300) for _ in range(count)]
    return [
        Work(
            ids(n),
            draw.choice(requests),
            [draw.randint(SHORTEST, LONGEST) if ragged else LONGEST for _ in range(STEPS)],
        )
        for n in lengths
    ]


def real_lengths(path: Path, count: int) -> list[int]:
    """Lengths of real conversations in tokens of a vocabulary of this size, trained on them."""
    from engine.core.config import load_config
    from engine.demo.tokenizer import train_tokenizer
    from engine.models.generation.sampling import prompt_length
    from engine.pairs.generation.prompts import load_prompts

    options = {"dataset": str(path), "split": "train", "num_examples": count * 2}
    prompts = load_prompts(load_config(options, environment={}))
    tokenizer = train_tokenizer([message["content"] for prompt in prompts for message in prompt.messages], VOCABULARY)
    lengths = [prompt_length(tokenizer, prompt.messages) for prompt in prompts]
    return [length for length in lengths if length <= 1024][:count]


def make_models() -> tuple:
    """The policy with its adapter unmerged, and a copy with the adapter merged."""
    import copy

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(1)
    config = GemmaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    policy = get_peft_model(GemmaForCausalLM(config), LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    policy.eval()
    return policy, copy.deepcopy(policy).merge_and_unload().eval()


def notebook(model, works: Sequence[Work]) -> None:
    import torch

    for work in works:
        ids = list(work.prompt)
        for step in range(STEPS):
            with torch.no_grad():
                out = model.generate(
                    input_ids=torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    max_new_tokens=work.reply_lengths[step],
                    min_new_tokens=work.reply_lengths[step],
                    do_sample=True,
                    temperature=0.7,
                    top_p=0.9,
                    top_k=0,
                )
            ids = out[0].tolist() + (work.requests[step] if step < STEPS - 1 else [])


def batches(works: Sequence[Work], size: int) -> Iterator[list[Work]]:
    from engine.pairs.generation.critique_revision import plan_batches

    return plan_batches(works, [len(work.prompt) for work in works], size)


def engine(model, works: Sequence[Work], size: int, *, use_cache=True, compact=True) -> None:
    from engine.models.generation import decoding
    from engine.models.generation.prefix_cache import PrefixCache
    from engine.models.generation.samplers import Nucleus

    default, decoding.COMPACT_AT = decoding.COMPACT_AT, decoding.COMPACT_AT if compact else 0.0
    cache = PrefixCache()
    for batch in batches(works, size):
        rows = [list(work.prompt) for work in batch]
        for step in range(STEPS):
            choose = Nucleus(0.7, 0.9, range(len(rows)), LONGEST, "cpu")
            limits = [work.reply_lengths[step] for work in batch]
            used = cache if use_cache else None
            replies = decoding.generate_batch(model, rows, choose, [], limits, pad=0, prefix_cache=used)
            if use_cache:
                cache.keep_rows([row.prefix for row in replies])
            assert [len(row.ids) for row in replies] == limits
            if step < STEPS - 1:
                rows = [
                    [*row, *one.ids, *work.requests[step]] for row, one, work in zip(rows, replies, batch, strict=True)
                ]
    decoding.COMPACT_AT = default


def padded(model, works: Sequence[Work], size: int) -> None:
    """Each batch runs until its longest row is complete."""
    import torch

    for batch in batches(works, size):
        rows = [list(work.prompt) for work in batch]
        for step in range(STEPS):
            width = max(map(len, rows))
            most = max(work.reply_lengths[step] for work in batch)
            with torch.no_grad():
                out = model.generate(
                    input_ids=torch.tensor([[0] * (width - len(row)) + row for row in rows]),
                    attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
                    max_new_tokens=most,
                    min_new_tokens=most,
                    do_sample=True,
                    temperature=0.7,
                    top_p=0.9,
                    top_k=0,
                )
            if step < STEPS - 1:
                rows = [
                    [*row, *line[width : width + work.reply_lengths[step]], *work.requests[step]]
                    for row, line, work in zip(rows, out.tolist(), batch, strict=True)
                ]


def continuous(model, works: Sequence[Work]) -> None:
    from transformers import GenerationConfig
    from transformers.generation import ContinuousBatchingConfig

    rows = [list(work.prompt) for work in works]
    for step in range(STEPS):
        settings = GenerationConfig(
            max_new_tokens=LONGEST, do_sample=True, temperature=0.7, top_p=0.9, top_k=0, eos_token_id=-1, pad_token_id=0
        )
        blocks = ContinuousBatchingConfig(max_batch_tokens=512, num_blocks=1024, page_size=32)
        with model.continuous_batching_context_manager(
            generation_config=settings, continuous_batching_config=blocks
        ) as manager:
            names = [
                manager.add_request(row, max_new_tokens=work.reply_lengths[step])
                for row, work in zip(rows, works, strict=True)
            ]
            found = {}
            while len(found) < len(names):
                result = manager.get_result(timeout=60)
                if result is None or result.error:
                    raise RuntimeError(f"continuous batching: {result and result.error}")
                if result.is_finished():
                    found[result.request_id] = result.generated_tokens
        if step < STEPS - 1:
            rows = [
                [*row, *found[name], *work.requests[step]] for row, name, work in zip(rows, names, works, strict=True)
            ]


if __name__ == "__main__":
    main()
