"""docs/scaling.md: its tables match the forecast (test_readme compares them) and published figures."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_of_docs", ROOT / "docs/scaling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_shapes_have_as_many_parameters_as_the_models(scaling):
    published = {
        "SmolLM2 135M": 0.1345,
        "Gemma 2B": 2.506,
        "Mistral 7B": 7.242,
        "Qwen2.5 7B": 7.616,
        "Llama 3.1 70B": 70.55,
    }
    for name, shape in scaling.MODELS.items():
        assert shape.base_parameters / 1e9 == pytest.approx(published[name], rel=0.002), name


def test_hours_and_memory_on_paper_are_close_to_published_figures(scaling):
    ratios = [check().ratio for check in scaling.CHECKS]
    assert all(0.6 < ratio < 1.2 for ratio in ratios), ratios


def test_the_page_says_which_gpu_utilisation_the_published_hours_mean(scaling):
    zephyr, schmid = scaling.zephyr(), scaling.schmid()
    percent = 100 * scaling.UTILISATION
    shares = [
        percent * zephyr.arithmetic / zephyr.most,
        percent * zephyr.arithmetic / zephyr.least,
        percent * schmid.arithmetic / schmid.most,
    ]
    least, most, other = (round(share) for share in shares)
    assert f"correspond to {least} to {most} % of the A100s' peak and {other} % of the H100's" in PAGE


def test_the_page_says_how_long_a_pair_of_that_dataset_is(scaling):
    least, most = scaling.pair_tokens_bounds()
    assert f"{round(least, -1):.0f} to {round(most, -1):,.0f} tokens" in PAGE
    assert least < scaling.PAIR_TOKENS < most


def test_more_processes_never_make_a_step_with_ddp_slower(scaling):
    seconds = [float(row.split("|")[6]) for row in scaling.process_table().splitlines()[2:]]
    assert seconds == sorted(seconds, reverse=True)


def test_the_totals_of_the_memory_table_are_those_of_the_forecast(scaling):
    from engine.dpo.planning.forecast import CUDA_CONTEXT, training_memory

    row = next(line for line in PAGE.splitlines() if line.startswith("| Gemma 2B | 2.51"))
    terms = training_memory(scaling.MODELS["Gemma 2B"], scaling.LIVE, max_length=1024, context=CUDA_CONTEXT)
    assert float(re.split(r"\s*\|\s*", row)[8]) == round(sum(terms.values()) / 1e9, 1)


def test_the_measured_figures_are_those_of_the_results():
    results = (ROOT / "bench/RESULTS.md").read_text(encoding="utf-8")
    section = PAGE.split("## Measured here")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) >= 8
    assert [row for row in rows if row not in results] == []
