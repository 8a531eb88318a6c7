"""Peak memory and CPU seconds of a training step, with a full attention mask and by rows. Each cell runs in its own
process.

Measures one optimizer step of the engine's trainer, after an unmeasured one, on pairs of the given lengths (tokens of
prompt+chosen+rejected, and pairs per pass). The model is --model with --adapter, or SmolLM2's shape with 4 layers and
random weights. Memory and seconds are measured as in bench/head.py. In ragged batches, prompts have half to all of that
length, and the replies get the rest.

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

from bench.head import GIB, make_pairs, make_policy, make_trainer, measure_step, run_cell

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
    print(f"{'pairs':20}{'attention':10}{'peak GiB':>9}{'step GiB':>12}{'CPU s':>8}{'loss':>12}")
    for shape in arguments.shapes:
        for way in arguments.ways:
            cell = run_cell(__file__, shape, way)
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
        policy = make_policy(arguments, 49152)
        pairs = make_pairs(policy, pair_sizes(shape, arguments.ragged))
        trainer = make_trainer(policy, pairs, arguments.dtype, "chunked", Path(folder))
        assert trainer.model.get_base_model().config._attn_implementation == NAME
        return measure_step(trainer)


def pair_sizes(shape: str, ragged: bool) -> list[tuple[int, int, int]]:
    """(prompt, chosen, rejected) tokens of each pair. `100+150+150x8`: eight pairs, prompts of 100 tokens, replies of 150."""
    lengths, _, count = shape.partition("x")
    prompt, chosen, rejected = map(int, lengths.split("+"))
    sizes = []
    for number in range(int(count or 1)):
        shift = number * prompt // (2 * int(count or 1)) if ragged else 0
        sizes.append((prompt - shift, chosen + shift // 2, rejected + shift - shift // 2))
    return sizes


if __name__ == "__main__":
    main()
