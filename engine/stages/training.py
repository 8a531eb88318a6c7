"""Stage 9: train the Stage 2 adapter with DPO against itself, compare both, and give a verdict."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.core import layout
from engine.core.errors import NumbersError
from engine.core.events import Check, EvalDone, Message, PairFailed, PairMade, TrainStep
from engine.core.layout import ADAPTER_WEIGHTS
from engine.core.wording import plural
from engine.dpo.planning.forecast import against_measured, seconds_at_work
from engine.dpo.planning.plan import effective_batch, oom_history
from engine.hub.references import is_local, local_path
from engine.models.templates.option import template_key
from engine.packaging.model_card import model_card
from engine.pairs.judges.base import judge_name
from engine.run.journal import read_entries
from engine.run.reports import PairsReport
from engine.run.results import AdapterResult, TrainingResult
from engine.stages.base import Context, StageEnd, StageRun
from engine.stages.load_judge import judge_loader
from engine.stages.pair_processes import evaluation_process_count, evaluation_workers
from engine.storage.documents import read_json_or_none
from engine.storage.files import sha256_of_file, write_atomically, write_json

if TYPE_CHECKING:
    from engine.dpo.training.trainer import Trained

HYPERPARAMETERS = (
    "num_train_epochs",
    "beta",
    "learning_rate",
    "optim",
    "max_length",
    "max_too_long_share",
    "seed",
    "dtype",
    "load_in_4bit",
)

READ_AS = {
    "chat_template": template_key,
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), effective_batch),
    "judge": judge_name,
    # Part of the judge's name, if relevant.
    "server_model": lambda config: None,
    "judge_model": lambda config: None,
    "reward_model_id": lambda config: None,
}


def evidence(context: Context) -> dict[str, Any]:
    """The hashes of the files that differ from what stage quality wrote."""
    quality = context.run.results.quality
    written = (
        {} if quality is None else {layout.TRAIN_JSONL: quality.train_sha256, layout.EVAL_JSONL: quality.eval_sha256}
    )
    found = {name: _hash(context.run / name) for name in (layout.TRAIN_JSONL, layout.EVAL_JSONL)}
    return {name: sha256 for name, sha256 in found.items() if sha256 != written.get(name)}


def run(context: Context) -> StageRun:
    from engine.dpo.evaluation.report import evaluate
    from engine.dpo.training.dataset import load_rows
    from engine.dpo.training.distributed import train_as_planned

    started, config, run_ = time.monotonic(), context.config, context.run
    stage2 = run_.results.adapter
    assert stage2 is not None  # the pipeline ran stage adapter
    rows, held_out = load_rows(context.run / layout.TRAIN_JSONL), load_rows(context.run / layout.EVAL_JSONL)
    trained = yield from train_as_planned(
        config, run_, rows, stop=context.stop, token=context.token_text, reference_sha256=stage2.tensors_sha256
    )
    effect = _save(context, trained, stage2)
    whose = "differs from Stage 2" if trained.tensors_sha256 != stage2.tensors_sha256 else "identical to Stage 2"
    yield Check("adapter", "ok", f"finite, {whose}, changes a logit by up to {effect:.4g}")
    context.stop.raise_if_requested()
    workers, processes = None, evaluation_process_count(config)
    if processes > 1:
        workers = partial(evaluation_workers, context, trained)
        yield Message("info", f"{processes} processes evaluate; the log of each is in {layout.PROCESSES_DIR}/.")
    load_judge = judge_loader(context)
    report = yield from evaluate(config, run_, trained, held_out, load_judge, context.stop, workers)
    compared = _forecast_compared(context, trained)
    for name, figures in compared.items():
        yield Check(f"forecast: {name}", "ok", _forecast_details(name, figures))
    metrics = _metrics(context, trained, report, len(rows), time.monotonic() - started)
    card = _card(context, trained, report, stage2)
    write_atomically(context.run / layout.ADAPTER_DIR / "README.md", card.encode("utf-8", errors="backslashreplace"))
    write_json(context.run / layout.METRICS_JSON, metrics)
    return StageEnd(
        f"{plural(trained.steps, 'step')}, final loss {trained.losses[-1]:.4f}; Stage 3 against Stage 2: {report['verdict']}",
        TrainingResult(
            tensors_sha256=trained.tensors_sha256,
            adapter_sha256=sha256_of_file(context.run / layout.ADAPTER_DIR / ADAPTER_WEIGHTS),
            steps=trained.steps,
            final_loss=trained.losses[-1],
            verdict=report["verdict"],
            effect=effect,
            plan=trained.plan.as_dict(),
            memory_ran_out=tuple(oom_history(context.run)),
        ),
    )


def base_name(context: Context) -> str:
    """The name of the base model for the adapter's configuration: the Hub id, or a local folder's name without its path."""
    name = context.config.base_model_id
    return local_path(name).name if is_local(name) else name


def _save(context: Context, trained: Trained, stage2: AdapterResult) -> float:
    """Write the Stage 3 adapter, and check the file: the trained tensors, finite, with an effect."""
    from engine.dpo.training.trainer import save_adapter
    from engine.models.adapters.effect import effect_on_logits
    from engine.models.adapters.weights import refuse_bad_numbers
    from engine.models.tensors import file_tensors, hash_tensors

    folder = context.run / layout.ADAPTER_DIR
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_adapter(trained, folder, base_name=base_name(context), base_revision=stage2.base_model_commit)
    tensors = file_tensors(folder / ADAPTER_WEIGHTS)
    refuse_bad_numbers(tensors)
    if hash_tensors(tensors) != trained.tensors_sha256:
        raise NumbersError(
            f"{folder / ADAPTER_WEIGHTS} does not contain the trained adapter.",
            "Its tensors differ from those in memory.",
            "Run the same command again: it continues from the last checkpoint.",
        )
    return effect_on_logits(trained.model, trained.tokenizer)


def _metrics(context: Context, trained: Trained, report: dict[str, Any], rows: int, seconds: float) -> dict[str, Any]:
    losses, margins = trained.losses, trained.margins
    return {
        "verdict": report["verdict"],
        "reasons": report["reasons"],
        "train": {
            "steps": trained.steps,
            "loss_before_first_step": trained.first_loss,
            "mean_loss": sum(losses) / len(losses),
            "final_loss": losses[-1],
            "final_margin": margins[-1],
            "losses": losses,
            "margins": margins,
        },
        "data": {
            "pairs_in_file": rows,
            "pairs_trained": trained.pairs,
            "left_out_too_long": trained.too_long,
            "quality": _quality(context),
        },
        "evaluation": report["figures"],
        "tensors_sha256": trained.tensors_sha256,
        "plan": trained.plan.as_dict(),
        "memory_ran_out": oom_history(context.run),
        "forecast": _forecast_compared(context, trained),
        "seconds": round(seconds, 3),
    }


def _forecast_compared(context: Context, trained: Trained) -> dict[str, dict[str, float]]:
    """Preflight's forecast against the measurements; empty without a forecast."""
    entries = list(read_entries(context.run / layout.EVENTS_JSONL))
    training = seconds_at_work(entries, "training", (TrainStep,))
    measured = {
        "seconds_pairs": seconds_at_work(entries, "pairs", (PairMade, PairFailed)),
        "seconds_training": training,
        "seconds_evaluation": seconds_at_work(entries, "training", (TrainStep, EvalDone)) - training,
        "peak_bytes": float(trained.peak_bytes),
    }
    preflight = context.run.results.preflight
    return against_measured({} if preflight is None else preflight.forecast, measured)


def _forecast_details(name: str, figures: dict[str, float]) -> str:
    unit, divisor = ("GiB", 1 << 30) if "bytes" in name else ("s", 1)
    predicted, measured = figures["forecast"] / divisor, figures["measured"] / divisor
    return f"{predicted:.1f} {unit}; measured {measured:.1f} {unit} ({figures['relative_error']:+.0%})"


def _quality(context: Context) -> dict[str, Any]:
    """The counts of stage quality: made, left out and why, the gate's figures; empty without its report."""
    report = _pairs_report(context)
    gate = {key: value for key, value in report.get("gate", {}).items() if key != "figures"}
    counted: dict[str, Any] = {
        key: report[key] for key in ("pairs", "figures", "left_out", "people", "scored") if key in report
    }
    return {**counted, "gate": gate} if report else {}


def _pairs_report(context: Context) -> dict[str, Any]:
    """The report of stage quality; empty if missing or damaged. It is for people: training does not depend on it."""
    report = read_json_or_none(context.run / layout.PAIRS_REPORT, PairsReport)
    return {} if report is None else report.model_dump()


def _origin_of_pairs(context: Context, dataset: str) -> dict[str, Any]:
    """The prompts that the pairs were made from, or the file that they were imported from."""
    pairs = context.run.results.pairs
    if pairs is None or pairs.imported is None:
        return {"dataset": dataset, "split": (pairs.split if pairs else "") or context.config.split}
    imported = pairs.imported
    names = {
        "name": "pairs imported from",
        "sha256": "SHA-256 of that file",
        "rows": "rows",
        "bad_rows": "rows left out",
    }
    return {name: imported.get(key) for key, name in names.items()}


def _card(context: Context, trained: Trained, report: dict[str, Any], stage2: AdapterResult) -> str:
    config = context.config
    dataset = local_path(config.dataset).name if is_local(config.dataset) else config.dataset
    hyperparameters = {name: getattr(config, name) for name in HYPERPARAMETERS} | {
        "dtype": trained.plan.dtype,
        "effective batch": trained.plan.effective_batch,
        "split": trained.plan.in_words,
    }
    return model_card(
        base=base_name(context),
        revision=stage2.base_model_commit,
        data={
            **_origin_of_pairs(context, dataset),
            "pairs trained on": trained.pairs,
            "pairs too long to train on": len(trained.too_long),
            "pairs held out": report["figures"]["pairs"] + report["figures"]["pairs_too_long"],
        },
        pairs_report=_pairs_report(context),
        hyperparameters={**hyperparameters, "optimizer steps": trained.steps, "final loss": trained.losses[-1]},
        evaluation=report,
        versions=_versions(),
        hashes={"Stage 2 tensors": stage2.tensors_sha256, "Stage 3 tensors": trained.tensors_sha256},
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from engine import __version__

    return {"stage3-tui": __version__, **{name: version(name) for name in ("torch", "transformers", "trl", "peft")}}


def _hash(path: Path) -> str | None:
    return sha256_of_file(path) if path.is_file() else None
