"""Runs side by side: differences, figures with intervals, curves, answers to the same prompts, and caveats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from engine.core.errors import ConfigError
from engine.pipeline.compare import Figure, PromptAnswers, compare
from engine.storage.files import write_json
from tests.run.test_listing import made_run
from tui.commands.compare import main
from tui.formatting import bars

ANSWERS = {"Why?": ("Because.", "So it is."), "How?": ("Somehow.", "With care.")}


def compared_run(
    folder: Path, *, beta: float, held_out: str = "e", answers: dict[str, tuple[str, str]] = ANSWERS, **figures: Any
) -> Path:
    run = made_run(folder, quality={"train_sha256": "t", "eval_sha256": held_out})
    run.manifest["config"] = {"beta": beta, "seed": 42, "output_dir": str(folder), "theme": folder.name}
    run.save()
    metrics = {"train": {"steps": 3, "losses": [0.69, 0.5, beta], "margins": [0.0, "nan", 1.5]}, "evaluation": figures}
    write_json(run / layout.METRICS_JSON, metrics)
    samples = [{"prompt": prompt, "stage2": before, "stage3": after} for prompt, (before, after) in answers.items()]
    write_json(run / layout.EVALUATION_REPORT, {"verdict": "better", "judge": "demo", "samples": samples})
    return run.folder


def test_only_options_that_differ_and_matter_are_reported(tmp_path: Path):
    found = compare([compared_run(tmp_path / "a", beta=0.1), compared_run(tmp_path / "b", beta=0.3)])
    assert found.options == {"beta": (0.1, 0.3)}
    assert found.notes == ()


def test_a_figure_has_its_interval_and_unmeasured_ones_are_left_out(tmp_path: Path):
    a = compared_run(tmp_path / "a", beta=0.1, reward_accuracy=0.75, reward_accuracy_low=0.5, reward_accuracy_high=0.9)
    b = compared_run(tmp_path / "b", beta=0.3, margin=0.5)
    found = compare([a, b])
    assert found.figures["held-out accuracy"] == (Figure(0.75, 0.5, 0.9), Figure(None))
    assert found.figures["held-out margin"] == (Figure(None), Figure(0.5))
    assert "judge: better" not in found.figures


def test_curves_leave_out_what_is_not_a_number(tmp_path: Path):
    found = compare([compared_run(tmp_path / "a", beta=0.1), compared_run(tmp_path / "b", beta=0.3)])
    assert found.losses == ((0.69, 0.5, 0.1), (0.69, 0.5, 0.3))
    assert found.margins[0] == (0.0, 1.5)


def test_answers_to_shared_prompts_are_side_by_side(tmp_path: Path):
    a = compared_run(tmp_path / "a", beta=0.1)
    b = compared_run(tmp_path / "b", beta=0.3, answers={"Why?": ("Because.", "It is so."), "Who?": ("He.", "She.")})
    c = compared_run(tmp_path / "c", beta=0.5, answers={"Why?": ("No reason.", "Be patient.")})
    assert compare([a, b, c]).answers == (
        PromptAnswers("Why?", "Because.", ("So it is.", "It is so.", "Be patient."), ("No reason.",)),
    )


def test_other_held_out_pairs_are_reported(tmp_path: Path):
    a, b = compared_run(tmp_path / "a", beta=0.1), compared_run(tmp_path / "b", beta=0.1, held_out="other")
    (note,) = compare([a, b]).notes
    assert "same held-out pairs" in note


def test_an_untrained_run_is_compared_by_what_it_has(tmp_path: Path):
    a = compared_run(tmp_path / "a", beta=0.1)
    found = compare([a, made_run(tmp_path / "b", "pairs").folder])
    assert found.verdicts == ("better", "") and found.losses[1] == () and found.answers == ()


def test_a_curve_fits_its_width_and_each_bar_is_the_mean_of_its_steps():
    assert bars([0.0, 1.0], 10, 0.0, 1.0) == "▁█"
    assert bars([0.0, 0.0, 1.0, 1.0, 0.5, 0.5], 3, 0.0, 1.0) == "▁█▅"
    assert bars([2.0, 2.0], 5, 2.0, 2.0) == "▁▁"


def test_the_command_prints_text_and_json(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    folders = [
        str(compared_run(tmp_path / name, beta=beta, margin=beta, margin_low=0.01, margin_high=0.9))
        for name, beta in (("a", 0.1), ("b", 0.3))
    ]
    for columns in ("80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main([*folders, "--answers", "1"]) == 0
        shown = capsys.readouterr().out
        assert all(len(line) <= int(columns) for line in shown.splitlines() if not line.startswith(("A  /", "B  /")))
        assert "0.3 (0.01 to 0.9)" in shown and "So it is." in shown and "--answers 2 shows all" in shown
    assert main([*folders, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["folders"] == folders and len(data["answers"]) == 2


def test_one_run_and_a_folder_without_a_run_are_wrong_calls(tmp_path: Path):
    folder = str(compared_run(tmp_path / "a", beta=0.1))
    with pytest.raises(ConfigError):
        main([folder, folder])
    with pytest.raises(ConfigError):
        main([folder, str(tmp_path)])
