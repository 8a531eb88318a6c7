"""Compares the evaluation of a trained run by one process and by several: whether the report is the same, and how long
it takes.

One process has all threads; N processes share them. Seconds include starting the processes and loading both models.
Each variant works in turn on a copy of the run folder, and starts from the training's last checkpoint.

    python bench/evaluation_processes.py RUN [--processes 1 2] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.process.environment import quiet_libraries

quiet_libraries()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{'processes':>9}{'s':>9}{'CPU s':>9}  same report")
    first = b""
    for processes in arguments.processes:
        seconds, cpu, report = measure(arguments.run, processes, arguments.threads)
        first = first or report
        print(f"{processes:9}{seconds:9.1f}{cpu:9.1f}  {difference(first, report)}", flush=True)


def difference(first: bytes, other: bytes) -> str:
    if first == other:
        return "yes"
    pairs = list(zip(leaves(json.loads(first)), leaves(json.loads(other)), strict=True))
    figures = [(a, b) for a, b in pairs if isinstance(a, float) and isinstance(b, float)]
    if any(pair not in figures and pair[0] != pair[1] for pair in pairs):
        return "NO"
    return f"all but figures, which differ by up to {max(abs(a - b) for a, b in figures):.1g}"


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


def measure(source: Path, processes: int, threads: int) -> tuple[float, float, bytes]:
    """(seconds, CPU seconds of all processes, the report)."""
    import torch

    from engine.core import layout
    from engine.core.config import Stage3Config
    from engine.dpo.evaluation.report import evaluate
    from engine.dpo.training.dataset import load_rows
    from engine.dpo.training.trainer import train
    from engine.run.context import Context
    from engine.run.folder import Run
    from engine.stages.load_judge import judge_loader
    from engine.stages.pair_processes import evaluation_workers

    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(max(threads // processes, 1))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(shutil.copytree(source, Path(folder) / "run")))
        (run.cache / layout.ANSWERS).unlink(missing_ok=True)
        given = {**run.manifest["config"], "output_dir": run.folder, "num_processes": processes}
        context = Context(Stage3Config(**given), run)
        rows, held_out = load_rows(run / layout.TRAIN_JSONL), load_rows(run / layout.EVAL_JSONL)
        trained = run_to_end(train(context.config, run, rows, stop=context.stop))
        elsewhere = partial(evaluation_workers, context, trained) if processes > 1 else None
        started, cpu = time.monotonic(), cpu_seconds()
        load_judge = judge_loader(context)
        run_to_end(evaluate(context.config, run, trained, held_out, load_judge, context.stop, elsewhere))
        report = (run / layout.EVALUATION_REPORT).read_bytes()
        return time.monotonic() - started, cpu_seconds() - cpu, report


def run_to_end(work: Generator[Any, None, Any]) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main()
