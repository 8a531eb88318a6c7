"""Stage 8: every pair judged, the gate, the report, and the data set that trains."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine import names
from engine.config import QualityOptions
from engine.errors import DamagedState, DataError
from engine.events import Check, Message
from engine.files import sha256_of_file, write_atomically, write_json
from engine.jsonl import BadLine, dumps
from engine.pairs.edits import apply_decision, read_edits
from engine.pairs.files import read_pairs
from engine.pairs.gate import Figure, Tally, failed, figures, report
from engine.pairs.record import Pair
from engine.pairs.training_set import hold_out, preference_row
from engine.stages.base import Context, StageResult, StageRun

OUTPUTS: tuple[str, ...] = (names.PAIRS_REPORT, "dpo_dataset")

NAME = "quality"


def depends_on(context: Context) -> dict[str, Any]:
    edits = context.run / names.EDITS_JSONL
    return {
        "pairs": context.run.result("pairs").get("pairs_sha256"),
        "edits": sha256_of_file(edits) if edits.exists() else None,
        **{field: getattr(context.config, field) for field in QualityOptions.model_fields},
    }


def run(context: Context) -> StageRun:
    config, run_ = context.config, context.run
    tally, usable = judge_run(run_ / names.PAIRS_JSONL, run_ / names.EDITS_JSONL)
    all_figures = figures(tally, config)
    for figure in all_figures:
        yield check_of(figure)
    if tally.training_scored == 0:
        yield Message("info", "Nothing scored these pairs: no judge is set (--judge).", NAME)
    for reason, count in tally.reasons.most_common():
        yield Check(NAME, f"left out: {reason}", "skipped", str(count))
    write_json(run_ / names.PAIRS_REPORT, report(tally, config))
    shut = failed(all_figures)
    if shut and config.accept_quality is None:
        raise gate_refusal(shut)
    if shut:
        yield Message("warning", f"The gate was opened by a person: {config.accept_quality}", NAME)
    train, held_out = hold_out(usable, config.eval_fraction, config.min_eval_pairs)
    if not train or not held_out:
        raise DataError(
            f"{len(usable)} usable pairs cannot be parted into training and held-out.",
            "There must be at least one on each side: without held-out pairs nobody would know whether training helped.",
            "Make more pairs: raise --num-examples.",
        )
    _write_rows(run_ / names.TRAIN_JSONL, train)
    _write_rows(run_ / names.EVAL_JSONL, held_out)
    yield Check(NAME, "held out", "ok", f"{len(held_out)} pairs, by prompt, before training")
    return StageResult(
        f"{len(train)} pairs to train on, {len(held_out)} held out, {tally.made - len(usable)} left out",
        {
            "train_sha256": sha256_of_file(run_ / names.TRAIN_JSONL),
            "eval_sha256": sha256_of_file(run_ / names.EVAL_JSONL),
            "train": len(train),
            "held_out": len(held_out),
            "left_out": dict(tally.reasons),
            "accepted_for": config.accept_quality if shut else None,
        },
    )


def judge_run(pairs_path: Path, edits_path: Path) -> tuple[Tally, list[Pair]]:
    """Tally and usable pairs of a run, after people's edits. Raises DamagedState for a line that is no pair."""
    decisions = read_edits(edits_path)
    tally, usable = Tally(), []
    for line, pair in read_pairs(pairs_path):
        if isinstance(pair, BadLine):
            raise DamagedState(
                f"Line {line + 1} of {pairs_path} is damaged: {pair.reason}.",
                "The program writes whole lines: something else changed the file.",
                "Mend or remove that line, then start again.",
            )
        decision = decisions.get(pair.id)
        edited = apply_decision(pair, decision)
        if tally.add(line, edited, decision).usable:
            usable.append(edited)
    return tally, usable


def check_of(figure: Figure) -> Check:
    """A figure of the gate as a line of the stage's table."""
    status = {True: "ok", None: "skipped", False: "failed" if figure.refuses else "warning"}[figure.passes]
    return Check(NAME, figure.name.replace("_", " "), status, figure.sentence)  # type: ignore[arg-type]


def gate_refusal(shut: list[Figure]) -> DataError:
    said = "; ".join(f"{figure.name.replace('_', ' ')} is {figure.sentence}" for figure in shut)
    return DataError(
        f"The gate is shut: {said}.",
        "Training on these pairs would spend GPU hours on what cannot teach.",
        f'{shut[0].mend} To train all the same: --accept-quality "your reason".',
    )


def _write_rows(path: Path, pairs: Iterable[Pair]) -> None:
    lines = "".join(dumps(preference_row(pair)) + "\n" for pair in pairs)
    write_atomically(path, lines.encode("ascii"))
