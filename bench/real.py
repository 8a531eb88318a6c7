"""Runs the ten stages on a real model, from its package to a refusal or a verdict; `make real` starts it.

    python bench/real.py --data ../shared/data --cache FOLDER [--only critique-revision]

It takes SmolLM2-135M-Instruct from its package (`bench/real_models.py`), trains a Stage 2 adapter on hh-rlhf
(`bench/stage2.py`), and runs `stage3-tui --auto` on real prompts twice:

    critique-revision   the small model critiques and revises its own drafts, which it cannot do: the expected result is a refusal
                        with a reason (exit 9)
    contrast            the model answers as an assistant that follows a principle and as one that does the opposite: it trains, and
                        ends with a verdict

No judge passes its exam here (`bench/judges.py`), so the second run gives the reason why its pairs are accepted: they
were read.

Prints the exit code of each command and, from its run folder, the figures of the gate, the verdict, and the cost of
relevance.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `bench` is not part of the installed package

from bench.detectors import REPLIES
from bench.real_models import model_folder
from bench.stage2 import train
from engine.core import layout

ROOT = Path(__file__).parents[1]
STAGE2 = {"side": "rejected", "steps": 60, "learning_rate": 2e-4}
COMMON = (
    "--split train[:1100] --max-new-tokens 128 --max-prompt-tokens 256 --max-length 384 --seed 1 --beta 0.1 "
    "--learning-rate 3e-4 --num-train-epochs 3 --per-device-train-batch-size 2 --gradient-accumulation-steps 4 "
    "--eval-fraction 0.3 --eval-prompts 60"
)
"""The prompts are from the rows before those on which Stage 2 was trained."""
CONFIGURATIONS = {
    "critique-revision": "--num-examples 220 --method critique-revision",
    "contrast": "--num-examples 220 --method contrast",
}
READ = "of 100 pairs of this recipe, read blind, 35 were better, 20 worse and 45 no different (bench/RESULTS.md)"


def stage2_adapter(model: Path, data: Path, cache: Path) -> Path:
    folder = cache / "smollm2-stage2"
    if not (folder / "adapter_model.safetensors").is_file():
        train(model, folder, data / REPLIES, **STAGE2)  # type: ignore[arg-type]
    return folder


def run(name: str, model: Path, adapter: Path, data: Path, cache: Path, more: list[str]) -> dict[str, Any]:
    """Run one command to its end, and return its results as plain data."""
    folder = cache / "runs" / name
    command = [
        *(sys.executable, "-m", "tui.cli", "--auto"),
        *("--base-model-id", str(model), "--adapter-path", str(adapter), "--dataset", str(data / REPLIES)),
        *("--output-dir", str(folder), *COMMON.split(), *CONFIGURATIONS[name].split()),
        *(("--accept-quality", READ) if name == "contrast" else ()),
        *more,
    ]
    print(f"\n{name}: stage3-tui {' '.join(command[3:])}", flush=True)
    started = time.monotonic()
    done = subprocess.run(command, cwd=cache, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    return {"exit": done.returncode, "seconds": round(time.monotonic() - started), **figures(folder)}


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, file in (("pairs", layout.PAIRS_REPORT), ("evaluation", layout.EVALUATION_REPORT)):
        if (folder / file).is_file():
            report = json.loads((folder / file).read_text(encoding="utf-8"))
            found[name] = report.get("gate", {}).get("figures") or {
                key: report.get(key) for key in ("verdict", "reasons")
            }
            found[f"{name}_figures"] = report.get("figures")
    found["seconds_of_stages"] = seconds_of_stages(folder)
    return found


def seconds_of_stages(folder: Path) -> dict[str, float]:
    """Seconds of each stage, from its first event to its last."""
    begun: dict[str, float] = {}
    spent: dict[str, float] = {}
    for line in (folder / layout.EVENTS_JSONL).open(encoding="utf-8"):
        event = json.loads(line)
        stage, at = event.get("stage"), event["time"]
        if isinstance(stage, str):
            begun.setdefault(stage, at)
            spent[stage] = round(at - begun[stage], 1)
    return spent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = (
        "Other options are passed to stage3-tui: --dtype bfloat16 takes half the time on a CPU that supports it."
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder with hh-rlhf")
    parser.add_argument("--cache", type=Path, required=True, help="folder for models, the adapter and the runs")
    parser.add_argument("--only", choices=sorted(CONFIGURATIONS))
    given, more = parser.parse_known_args()
    cache, data = given.cache.resolve(), given.data.resolve()  # the commands run in another folder
    model = model_folder("smollm2", cache)
    adapter = stage2_adapter(model, data, cache)
    for name in [given.only] if given.only else CONFIGURATIONS:
        print(json.dumps(run(name, model, adapter, data, cache, more), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
