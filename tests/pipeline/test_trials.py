"""The trials of a sweep: every combination once, uniquely named, and only of options that may vary."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.core.errors import ConfigError
from engine.pipeline.trials import checked, options_to_try, trials_from_grid, trials_from_toml


def test_every_combination_is_tried_once_in_the_order_of_the_lists():
    trials = trials_from_grid({"beta": ["0.1", "0.3"], "learning_rate": ["5e-6", "5e-5", "0.000005"]})
    assert [trial.name for trial in trials] == [
        "beta-0.1_learning-rate-5e-06",
        "beta-0.1_learning-rate-5e-05",
        "beta-0.3_learning-rate-5e-06",
        "beta-0.3_learning-rate-5e-05",
    ]


def test_trials_vary_only_options_of_the_training():
    varied = set(options_to_try())
    assert {"beta", "learning_rate", "seed", "num_train_epochs", "max_length"} <= varied
    assert not varied & {"temperature", "judge", "num_examples", "device", "output_dir", "eval_prompts"}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"temperature": ["0.1", "0.7"]}, "cannot vary 'temperature'"),
        ({"beta": ["0.1", "-1"]}, "Invalid value for beta: '-1'"),
        ({"beta": ["0.1", "much"]}, "Invalid value for beta: 'much'"),
    ],
)
def test_invalid_trials_are_refused_before_anything_runs(grid, message, config):
    with pytest.raises(ConfigError, match=message):
        checked(config(), trials_from_grid(grid))


def test_values_are_parsed_like_the_configurations(config):
    (trial,) = checked(config(), trials_from_grid({"beta": ["0.30"], "num_train_epochs": ["2"]}))
    assert trial.options == {"beta": 0.3, "num_train_epochs": 2.0}


def test_a_file_has_lists_or_trials_one_by_one(tmp_path: Path):
    path = tmp_path / "sweep.toml"
    path.write_text("[grid]\nbeta = [0.1, 0.2]\n[[trial]]\nlearning-rate = 1e-6\nseed = 7\n")
    assert [trial.name for trial in trials_from_toml(path)] == ["beta-0.1", "beta-0.2", "learning-rate-1e-06_seed-7"]
    path.write_text("[[trial]]\nbeta = 0.5\n")
    assert [trial.options for trial in trials_from_toml(path)] == [{"beta": 0.5}]


@pytest.mark.parametrize("text", ["", "beta = [0.1]", "grid = 3", "[grid", "trial = 1"])
def test_a_file_without_trials_is_refused(text: str, tmp_path: Path):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"sweep\.toml"):
        trials_from_toml(path)


def test_long_names_are_cut_and_stay_different():
    lists = {name: ["0.123456789", "0.987654321"] for name in options_to_try()[:6]}
    names = [trial.name for trial in trials_from_grid(lists)]
    assert len(set(names)) == 64 and max(map(len, names)) <= 80
