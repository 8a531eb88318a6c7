"""The model card of the Stage 3 adapter: its origin, its evaluation, and the two lines that load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BOUND_SIGNS = {"at least": "≥", "at most": "≤"}


def loading_code(base: str, revision: str | None, adapter: str) -> tuple[str, str]:
    """The two lines of Python that load `adapter` over `base`, imports included."""
    at = f", revision={revision!r}" if revision else ""
    return (
        f"import peft, transformers; base = transformers.AutoModelForCausalLM.from_pretrained({base!r}{at})",
        f"model = peft.PeftModel.from_pretrained(base, {adapter!r})",
    )


def model_card(
    *,
    base: str,
    revision: str | None,
    data: Mapping[str, Any],
    pairs_report: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    versions: Mapping[str, str],
    hashes: Mapping[str, str],
) -> str:
    """The card as Markdown; every mapping becomes a table in its own order.

    base           as in `adapter_config.json`: a Hub id, or the bare name of a local folder
    revision       the base's commit on the Hub; None for a local folder
    pairs_report   `pairs/report.json`, for counts and the gate; empty if there is none
    evaluation     `evaluation/report.json`
    """
    sections = (
        _head(base),
        _verdict(evaluation),
        _use(base, revision),
        _section("Data", table({**data, **counts_of(pairs_report)})),
        _section("The gate", gate_text(pairs_report.get("gate", {}))),
        _section("Training", table(hyperparameters)),
        _origin(base, revision, hashes, versions),
    )
    return "\n\n".join(sections) + "\n"


def _section(title: str, *parts: str) -> str:
    return "\n\n".join((f"## {title}", *parts))


def _head(base: str) -> str:
    """The Hub's metadata, and the introduction."""
    return f"""---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [lora, dpo, constitutional-ai]
---

# Stage 3 "constitutional" LoRA adapter

Trained by stage3-tui: DPO of a Stage 2 LoRA adapter against itself, on pairs of its own answers."""


def _verdict(evaluation: Mapping[str, Any]) -> str:
    reasons = "\n".join(f"- {_inline(reason)}" for reason in evaluation["reasons"])
    title = f"Is it better than Stage 2? {str(evaluation['verdict']).capitalize()}"
    return _section(title, reasons, _judge(evaluation), table(evaluation["figures"]))


def _judge(evaluation: Mapping[str, Any]) -> str:
    exams = [_exam(exam) for exam in evaluation.get("exams", [])]
    if evaluation.get("judge") is None:
        return "\n\n".join(["No judge scored the answers.", *exams])
    judge = f"Judge: {_inline(evaluation['judge'])} ({_inline(evaluation.get('judge_about', 'no description'))})."
    return "\n\n".join([judge, *exams])


def _exam(exam: Mapping[str, Any]) -> str:
    """The result of a judge's exam."""
    result = f"{_inline(exam['judge'])} {'passed' if exam['passed'] else 'failed'} its exam ({_inline(exam['exam'])})."
    figures = {
        "comparisons with known answers": exam["asked"],
        "accuracy": exam["accuracy"],
        "accuracy, 95 % interval": f"{exam['accuracy_low']:.4g} to {exam['accuracy_high']:.4g}",
        **{f"accuracy on {kind}": share for kind, share in exam["by_kind"].items()},
        "chose the longer answer": exam["longer_chosen"],
        "the longer answer is right": exam["longer_is_better"],
        "chose the answer in first place": exam["first_place_chosen"],
        "probability on the letters": exam["on_the_letters"],
    }
    return f"{result}\n\n{table({name: value for name, value in figures.items() if value is not None})}"


def _use(base: str, revision: str | None) -> str:
    code = "\n".join(("```python", *loading_code(base, revision, "."), "```"))
    return _section("Use", f"In this folder{_base_location(base, revision)}:", code)


def _base_location(base: str, revision: str | None) -> str:
    if revision:
        return ""
    return f", with the base model's folder in it as `{_inline(base)}` (or use its path instead)"


def _origin(base: str, revision: str | None, hashes: Mapping[str, str], versions: Mapping[str, str]) -> str:
    commit = revision or "a local folder"
    return _section("Where it comes from", table({"base model": base, "base commit": commit, **hashes, **versions}))


def counts_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of all pairs and of usable ones, of the reasons why others were left out, and of people's changes."""
    if not report:
        return {}
    left_out = {f"left out: {reason}": count for reason, count in report.get("left_out", {}).items()}
    people = {f"{what} by people": count for what, count in report.get("people", {}).items() if count}
    figures = report.get("figures", {})
    methods = {f"pairs by {method}": count for method, count in report.get("methods", {}).items()}
    return {"pairs made": report.get("pairs"), **methods, "pairs usable": figures.get("usable"), **left_out, **people}


def gate_text(gate: Mapping[str, Any]) -> str:
    if not gate:
        return "No report."
    if gate.get("accepted_for") is not None and gate.get("failed"):
        status = f"Shut by its figures, but opened with the reason: {_inline(gate['accepted_for'])}"
    elif gate.get("failed"):
        status = "Shut by its figures."
    else:
        status = "Open by its figures."
    rows = [
        f"| {_plain(figure['name'])} | {_shown(figure['value'])} | {BOUND_SIGNS.get(figure['bound'], figure['bound'])} "
        f"{_shown(figure['threshold'])} | {_passes(figure)} |"
        for figure in gate.get("figures", [])
    ]
    return "\n".join([status, "", "| figure | value | threshold | |", "|---|---|---|---|", *rows])


def _passes(figure: Mapping[str, Any]) -> str:
    if figure["passes"] is None:
        return "not measured"
    return "passes" if figure["passes"] else "refuses" if figure["refuses"] else "warning"


def table(values: Mapping[str, Any]) -> str:
    lines = [
        f"| {_plain(key)} | {_inline(_shown(value))} |"
        for key, value in values.items()
        if not isinstance(value, (dict, list))
    ]
    return "\n".join(["| | |", "|---|---|", *lines])


def _plain(name: str) -> str:
    return _inline(name.replace("_", " "))


def _shown(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _inline(text: object) -> str:
    """Escape text for a table cell, so that it cannot end the cell or start HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
