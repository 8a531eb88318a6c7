"""A run as it is after stage training: a tiny adapter, its tokenizer, pairs, reports, and files that are never packed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from engine.core import layout
from engine.models.loading import load_tokenizer
from engine.models.tensors import file_tensors, hash_tensors
from engine.run.context import Context
from engine.run.folder import Run
from engine.storage.files import write_json
from engine.storage.jsonl import dumps
from tests.support.tiny_models import build_adapter, build_context, pairs, write_rows

WEIGHTS = f"{layout.ADAPTER_DIR}/adapter_model.safetensors"
CARD = f"{layout.ADAPTER_DIR}/README.md"


def finished_run(folder: Path, base: Path, **options: object) -> Context:
    adapter = build_adapter(folder / layout.ADAPTER_DIR, base, seed=23)
    context = build_context(folder, base, adapter, **options)
    run = context.run
    load_tokenizer(context.config).save_pretrained(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    write_json(adapter / "adapter_config.json", {**settings, "base_model_name_or_path": "base"})
    (run / CARD).write_text("---\nlibrary_name: peft\n---\n\n# The card\n")
    write_rows(run / layout.TRAIN_JSONL, pairs(3))
    write_rows(run / layout.EVAL_JSONL, pairs(5)[3:])
    write_pairs(run / layout.PAIRS_JSONL, [{"id": f"pair{number}", "prompt": f"Mend {number}?"} for number in range(3)])
    write_json(run / layout.METRICS_JSON, {"verdict": "cannot tell", "seconds": 12.5})
    write_json(run / layout.EVALUATION_REPORT, {"verdict": "cannot tell", "samples": []})
    (run / "logs").mkdir()
    (run / "logs/events.jsonl").write_text('{"kind":"message","text":"hf_secret"}\n')
    (run / "checkpoints/checkpoint-2").mkdir(parents=True)
    (run / "checkpoints/checkpoint-2/optimizer.pt").write_bytes(b"\x80\x04.")
    run.manifest["config"] = context.config.model_dump(mode="json")
    tensors = hash_tensors(file_tensors(run / WEIGHTS))
    run.record_stage("training", status="done", result={"tensors_sha256": tensors, "verdict": "cannot tell"})
    return context


def copied(context: Context, folder: Path) -> Context:
    """A copy of the run in another folder, including its archive."""
    shutil.copytree(context.run.folder, folder)
    for beside in context.run.folder.parent.glob(f"{context.run.folder.name}_artifacts.zip*"):
        shutil.copy2(beside, folder.parent)
    run = Run(folder)
    run.manifest["config"]["output_dir"] = str(folder)
    run.save()
    return Context(context.config.model_copy(update={"output_dir": folder}), run)


def write_pairs(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(dumps(row) + "\n" for row in rows))
