"""Compares stage pairs with one process and with several: whether the records are the same, and how long they take.

One process has all threads; N processes share them. Seconds are those of the full stage, including the start of the
processes and loading the model, and those from the first record to the last. Each variant runs in turn in its own run
folder.

    python bench/pair_processes.py --model FOLDER --adapter FOLDER --dataset FILE [--count 64] [--processes 1 2] [--threads 2]
                                   [--batch 8] [--tokens 48]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.process.environment import quiet_libraries

quiet_libraries()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    print(f"{'processes':>9}{'stage s':>10}{'records s':>11}{'tokens/s':>10}  same records")
    first = b""
    for processes in arguments.processes:
        stage_seconds, record_seconds, tokens, records = measure(arguments, processes)
        first = first or records
        same = "yes" if records == first else "NO"
        print(
            f"{processes:9}{stage_seconds:10.1f}{record_seconds:11.1f}{tokens / record_seconds:10.0f}  {same}",
            flush=True,
        )


def measure(arguments: argparse.Namespace, processes: int) -> tuple[float, float, int, bytes]:
    """(seconds of the stage, seconds between the first and the last record, generated tokens, the file)."""
    import torch

    from engine.core import layout
    from engine.core.config import load_config
    from engine.core.events import PairFailed, PairMade
    from engine.run.context import Context
    from engine.run.folder import Run
    from engine.stages import pairs

    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(max(arguments.threads // processes, 1))
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            {
                "output_dir": Path(folder) / "run",
                "base_model_id": arguments.model,
                "adapter_path": arguments.adapter,
                "dataset": arguments.dataset,
                "num_examples": arguments.count,
                "generation_batch_size": arguments.batch,
                "max_new_tokens": arguments.tokens,
                "num_processes": processes,
                "gradient_accumulation_steps": 8,
                "method": "contrast",
                "min_usable_share": 0.0,
                "accept_quality": "a measurement",
                "judge": "none",
                "device": "cpu",
            },
            environment={},
        )
        run = Run(config.output_dir)
        run.record_stage("adapter", status="done", result={"tensors_sha256": "a", "base_model_id": "b"})
        started, times, stage = time.monotonic(), [], pairs.run(Context(config, run))
        while True:
            try:
                event = next(stage)
            except StopIteration as end:
                tokens = end.value.result.generated_tokens
                break
            if isinstance(event, (PairMade, PairFailed)):
                times.append(time.monotonic())
        records = (run / layout.PAIRS_JSONL).read_bytes()
        return time.monotonic() - started, times[-1] - times[0], tokens, records


if __name__ == "__main__":
    main()
