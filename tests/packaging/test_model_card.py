"""The model card has the adapter's origin and evaluation, and its two lines of code work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.demo.preset import ASSETS
from engine.packaging.model_card import loading_code, model_card
from engine.pairs.assessment.gate import Tally, figures, report
from tests.support.good_pairs import META, pair

EVALUATION: dict[str, Any] = {
    "verdict": "cannot tell",
    "rule": "no judge",
    "reasons": ["No judge scored the answers.", "Unusable answers: 3% before, 7% after."],
    "judge": None,
    "judge_about": None,
    "figures": {"reward_accuracy": 0.8125, "stage3_mean_score": None, "prompts": 37},
}


def card(**changes: Any) -> str:
    values: dict[str, Any] = {
        "base": "google/gemma-2b-it",
        "revision": "96988410cbdaeb8d5093d1ebdc5a8fb563e02bad",
        "data": {"dataset": "Anthropic/hh-rlhf", "split": "test[:1000]", "pairs trained on": 811, "pairs held out": 93},
        "pairs_report": {},
        "hyperparameters": {"beta": 0.1, "learning_rate": 5e-5, "optimizer steps": 102},
        "evaluation": EVALUATION,
        "versions": {"torch": "2.13.0", "trl": "1.16.0"},
        "hashes": {"Stage 2 tensors": "cda8", "Stage 3 tensors": "efa4"},
    }
    return model_card(**{**values, **changes})


def section(text: str, title: str) -> str:
    return text.split(f"## {title}")[1].split("\n## ")[0]


def pairs_report(config: Any, *, good: int, meta: int) -> dict[str, Any]:
    """Stage quality's report on this many good pairs and meta pairs."""
    tally = Tally()
    for number in range(good + meta):
        made = pair(number, **({"revised_response": META} if number >= good else {}))
        tally.add(number, made, None, made=made)
    assert figures(tally, config)
    return report(tally, config)


def test_the_card_as_a_whole():
    assert card() == (Path(__file__).parent / "card.txt").read_text(encoding="utf-8")


def test_the_verdict_is_a_heading_above_its_reasons_and_figures():
    text = section(card(), "Is it better than Stage 2? Cannot tell")
    assert "- No judge scored the answers.\n- Unusable answers: 3% before, 7% after." in text
    assert "No judge scored the answers." in text
    assert "| reward accuracy | 0.8125 |" in text and "| stage3 mean score | not measured |" in text


def test_the_judge_is_named_and_described():
    judged = {**EVALUATION, "judge": "self", "judge_about": "the Stage 2 policy, asked in both orders"}
    assert "Judge: self (the Stage 2 policy, asked in both orders)." in card(evaluation=judged)


def test_pairs_made_left_out_and_held_out_are_counted(config: Any):
    text = section(card(pairs_report=pairs_report(config(min_pairs=5), good=9, meta=4)), "Data")
    for line in ("| pairs made | 13 |", "| pairs usable | 9 |", "| left out: meta | 4 |", "| pairs held out | 93 |"):
        assert line in text
    assert "people" not in text


def test_a_gate_that_its_figures_opened_is_reported_as_open(config: Any):
    text = section(card(pairs_report=pairs_report(config(min_pairs=5), good=9, meta=0)), "The gate")
    assert "Open by its figures." in text
    assert "| training pairs | 9 | ≥ 5 | passes |" in text and "| longer share | 0 | ≤ 0.9 | passes |" in text


def test_a_gate_that_a_person_opened_is_reported_with_the_reason_and_what_failed(config: Any):
    opened = config(min_pairs=50, accept_quality="a trial | run")
    text = section(card(pairs_report=pairs_report(opened, good=9, meta=4)), "The gate")
    assert "Shut by its figures, but opened with the reason: a trial \\| run" in text
    assert "| training pairs | 9 | ≥ 50 | refuses |" in text and "| meta share | 0.3077 | ≤ 0.02 | warning |" in text


def test_a_gate_that_stayed_shut_is_reported_as_shut(config: Any):
    text = section(card(pairs_report=pairs_report(config(min_pairs=50), good=9, meta=0)), "The gate")
    assert "Shut by its figures.\n" in text and "person" not in text


def test_untrusted_text_neither_ends_a_cell_nor_starts_html():
    assert "| dataset | evil \\| 'x' &lt;script> |" in card(data={"dataset": "evil | `x`\n<script>"})


def test_the_code_has_the_commit_of_the_base_and_the_card_says_where_a_local_base_must_be():
    assert "revision='96988410cbdaeb8d5093d1ebdc5a8fb563e02bad')" in section(card(), "Use")
    assert "with the base model's folder in it as `base`" in section(card(base="base", revision=None), "Use")
    assert "the base model's folder" not in section(card(), "Use")


def test_the_two_lines_of_the_card_load_the_adapter_and_it_generates(tmp_path: Path):
    folder = Path(shutil.copytree(ASSETS / "adapter", tmp_path / "lora_adapters"))
    (folder / "base").symlink_to(ASSETS / "base")
    code = re.findall(r"```python\n(.*?)```", card(base="base", revision=None), re.DOTALL)[0]
    assert code.splitlines() == list(loading_code("base", None, "."))
    messages = "[{'role': 'user', 'content': 'How do I clean the oven?'}]"
    code += f"""
tokenizer = transformers.AutoTokenizer.from_pretrained("base")
ids = tokenizer.apply_chat_template({messages}, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(repr(tokenizer.decode(model.generate(**ids, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the oven" in done.stdout.rpartition("model")[2]


def test_a_card_without_a_report_on_the_pairs_says_so():
    assert "No report." in section(card(), "The gate")


@pytest.mark.parametrize("verdict", ["better", "no different", "worse"])
def test_each_verdict_is_a_heading(verdict: str):
    assert f"## Is it better than Stage 2? {verdict.capitalize()}\n" in card(
        evaluation={**EVALUATION, "verdict": verdict}
    )
