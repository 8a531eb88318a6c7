"""Peak memory and CPU seconds of a step, with a mask of all columns and by rows: each cell in a process of its own.

One optimizer step of the engine's trainer, after one that is not measured, on pairs of these lengths (prompt+chosen+rejected
tokens, and how many of them in one pass). The model is the folder --model with --adapter, or SmolLM2's shape with 4 layers and
random weights. Memory and seconds are those of bench/head.py. Ragged batches have prompts of half to the whole of that length, and
the replies take what is left of it.

    python bench/attention.py [--shapes 30+994+994 1000+60+60 500+300+300x4 …] [--ways mask rows] [--ragged] [--threads 1]
                              [--dtype float32] [--model DIR --adapter DIR]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.head import GIB, in_a_process, pairs_of, policy_of, step_of, trainer_of

SHAPES = ["30+994+994", "300+500+500", "1000+60+60", "100+150+150", "40+60+60", "100+150+150x8"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--ways", nargs="+", default=["mask", "rows"])
    parser.add_argument("--ragged", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(measure(arguments, *json.loads(arguments.cell))))
        return
    print(f"{'pairs':20}{'attention':10}{'peak GiB':>9}{'of the step':>12}{'CPU s':>8}{'loss':>12}")
    for shape in arguments.shapes:
        for way in arguments.ways:
            cell = in_a_process(__file__, shape, way)
            print(
                f"{shape:20}{way:10}{cell['peak'] / GIB:9.2f}{cell['added'] / GIB:12.2f}{cell['seconds']:8.2f}"
                f"{cell['loss']:12.7f}",
                flush=True,
            )


def measure(arguments: argparse.Namespace, shape: str, way: str) -> dict[str, Any]:
    import torch

    from engine.dpo.planning.forecast import ROWS_FROM
    from engine.dpo.training.attention import NAME

    ROWS_FROM["cpu"] = 0 if way == "rows" else sys.maxsize
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        policy = policy_of(arguments, 49152)
        pairs = pairs_of(policy, sizes_of(shape, arguments.ragged))
        trainer = trainer_of(policy, pairs, arguments.dtype, "chunked", Path(folder))
        assert trainer.model.get_base_model().config._attn_implementation == NAME
        return step_of(trainer)


def sizes_of(shape: str, ragged: bool) -> list[tuple[int, int, int]]:
    """`100+150+150x8` is eight pairs of prompts of 100 tokens and replies of 150."""
    lengths, _, count = shape.partition("x")
    prompt, chosen, rejected = map(int, lengths.split("+"))
    sizes = []
    for number in range(int(count or 1)):
        less = number * prompt // (2 * int(count or 1)) if ragged else 0
        sizes.append((prompt - less, chosen + less // 2, rejected + less - less // 2))
    return sizes


if __name__ == "__main__":
    main()
