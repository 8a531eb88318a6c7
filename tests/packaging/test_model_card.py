"""The model card has the adapter's origin and evaluation, and its two lines of code run."""

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
from engine.packaging.model_card import load_lines, model_card
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
    """Stage quality's report over these numbers of good pairs and of meta pairs."""
    tally = Tally()
    for number in range(good + meta):
        made = pair(number, **({"revised_response": META} if number >= good else {}))
        tally.add(number, made, None, made=made)
    assert figures(tally, config)
    return report(tally, config)


def test_the_whole_card_reads_as_one_text():
    assert card() == (Path(__file__).parent / "card.txt").read_text(encoding="utf-8")


def test_the_word_stands_in_a_heading_with_its_reasons_and_the_figures_under_it():
    told = section(card(), "Is it better than Stage 2? Cannot tell")
    assert "- No judge scored the answers.\n- Unusable answers: 3% before, 7% after." in told
    assert "No judge scored the answers." in told
    assert "| reward accuracy | 0.8125 |" in told and "| stage3 mean score | not measured |" in told


def test_the_judge_is_named_with_what_it_is():
    judged = {**EVALUATION, "judge": "self", "judge_about": "the Stage 2 policy, asked in both orders"}
    assert "Judge: self (the Stage 2 policy, asked in both orders)." in card(evaluation=judged)


def test_what_was_made_what_was_left_out_and_what_trained_are_counted(config: Any):
    told = section(card(pairs_report=pairs_report(config(min_pairs=5), good=9, meta=4)), "Data")
    for line in ("| pairs made | 13 |", "| pairs usable | 9 |", "| left out: meta | 4 |", "| pairs held out | 93 |"):
        assert line in told
    assert "people" not in told


def test_a_gate_that_its_figures_opened_says_that_nobody_had_to(config: Any):
    told = section(card(pairs_report=pairs_report(config(min_pairs=5), good=9, meta=0)), "The gate")
    assert "Open by its figures." in told
    assert "| training pairs | 9 | ≥ 5 | passes |" in told and "| longer share | 0 | ≤ 0.9 | passes |" in told


def test_a_gate_that_a_person_opened_says_why_and_what_failed(config: Any):
    opened = config(min_pairs=50, accept_quality="a trial | run")
    told = section(card(pairs_report=pairs_report(opened, good=9, meta=4)), "The gate")
    assert "Shut by its figures, but opened with the reason: a trial \\| run" in told
    assert "| training pairs | 9 | ≥ 50 | refuses |" in told and "| meta share | 0.3077 | ≤ 0.02 | warning |" in told


def test_a_shut_gate_that_nobody_opened_is_reported_as_one(config: Any):
    told = section(card(pairs_report=pairs_report(config(min_pairs=50), good=9, meta=0)), "The gate")
    assert "Shut by its figures.\n" in told and "person" not in told


def test_foreign_text_neither_ends_a_cell_nor_begins_html():
    told = card(data={"dataset": "evil | `x`\n<script>"})
    assert "| dataset | evil \\| 'x' &lt;script> |" in told


def test_the_commit_of_the_base_is_in_the_lines_and_a_local_base_says_where_it_must_stand():
    assert "revision='96988410cbdaeb8d5093d1ebdc5a8fb563e02bad')" in section(card(), "Use")
    assert "with the base model's folder in it as `base`" in section(card(base="base", revision=None), "Use")
    assert "the base model's folder" not in section(card(), "Use")


def test_two_lines_of_the_card_load_the_adapter_and_it_speaks(tmp_path: Path):
    folder = Path(shutil.copytree(ASSETS / "adapter", tmp_path / "lora_adapters"))
    (folder / "base").symlink_to(ASSETS / "base")
    code = re.findall(r"```python\n(.*?)```", card(base="base", revision=None), re.DOTALL)[0]
    assert code.splitlines() == list(load_lines("base", None, "."))
    asked = "[{'role': 'user', 'content': 'How do I clean the oven?'}]"
    code += f"""
tokenizer = transformers.AutoTokenizer.from_pretrained("base")
ids = tokenizer.apply_chat_template({asked}, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(repr(tokenizer.decode(model.generate(**ids, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the oven" in done.stdout.rpartition("model")[2]


def test_a_card_with_nothing_known_of_the_pairs_says_so():
    assert "No report." in section(card(), "The gate")


@pytest.mark.parametrize("verdict", ["better", "no different", "worse"])
def test_each_word_is_reported_as_it_is(verdict: str):
    assert f"## Is it better than Stage 2? {verdict.capitalize()}\n" in card(
        evaluation={**EVALUATION, "verdict": verdict}
    )
