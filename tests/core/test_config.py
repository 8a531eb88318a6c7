from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.core.config import Stage3Config, load_config, with_changes
from engine.core.errors import ConfigError
from engine.core.options import options


def test_the_options_read_from_the_source_are_those_of_the_class():
    fields = Stage3Config.model_fields
    assert {option.name for option in options()} == set(fields)
    for option in options():
        field = fields[option.name]
        assert option.sentence == " ".join(field.description.split())
        assert option.default == ("" if field.default is None else str(field.default))


def test_the_defaults_of_the_notebook_are_kept():
    config = load_config(environment={})
    assert (config.num_examples, config.split, config.beta, config.learning_rate) == (
        2500,
        "test[:1000]+train[:1500]",
        0.1,
        5e-5,
    )
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 8
    assert (config.seed, config.max_new_tokens) == (42, 512)
    assert (config.temperature, config.top_p, config.num_train_epochs) == (0.7, 0.9, 1.0)


def test_command_line_beats_environment_beats_file_beats_preset(tmp_path: Path):
    toml = tmp_path / "stage3.toml"
    toml.write_text("num-examples = 3\nbeta = 0.3\nseed = 3\n")
    config = load_config(
        {"num_examples": "1"},
        environment={"STAGE3_NUM_EXAMPLES": "2", "STAGE3_BETA": "0.2"},
        toml=toml,
        preset={"num_examples": 4, "beta": 0.4, "seed": 4, "top_p": 0.44},
    )
    assert (config.num_examples, config.beta, config.seed, config.top_p) == (1, 0.2, 3, 0.44)


BOTH = ("http://a/v1", "http://b/v1")


@pytest.mark.parametrize(
    "given",
    [["http://a/v1", "http://b/v1"], "http://a/v1, http://b/v1", "http://a/v1 http://b/v1", [*BOTH, "http://a/v1"]],
)
def test_several_servers_are_a_list_or_text_and_each_counts_once(given: object, tmp_path: Path):
    assert load_config({"server_url": given}, environment={}).server_url == BOTH
    toml = tmp_path / "stage3.toml"
    toml.write_text(f"server-url = {json.dumps(given)}\n")
    assert load_config(toml=toml, environment={}).server_url == BOTH


def test_one_server_needs_no_list_and_an_empty_value_means_none():
    assert load_config(environment={"STAGE3_SERVER_URL": BOTH[0]}).server_url == BOTH[:1]
    assert load_config({"judge_url": ""}, environment={}).judge_url is None
    before = load_config({"critic_url": BOTH}, environment={})
    assert with_changes(before, {"critic_url": "http://c/v1,http://a/v1"})[0].critic_url == ("http://c/v1", BOTH[0])
    with pytest.raises(ConfigError, match="server_url: 5"):
        load_config({"server_url": 5}, environment={})


@pytest.mark.parametrize("where", ["command line", "environment", "stage3.toml"])
def test_a_misspelt_option_is_reported_with_the_nearest_one_and_its_source(where: str, tmp_path: Path):
    toml = tmp_path / "stage3.toml"
    toml.write_text("num_exampels = 3\n" if where == "stage3.toml" else "")
    with pytest.raises(ConfigError, match="num_examples") as caught:
        load_config(
            {"num_exampels": "3"} if where == "command line" else {},
            environment={"STAGE3_NUM_EXAMPELS": "3"} if where == "environment" else {},
            toml=toml,
        )
    assert where in caught.value.what


def test_a_value_out_of_bounds_is_refused_with_its_source_and_the_options_help():
    with pytest.raises(ConfigError) as caught:
        load_config(environment={"STAGE3_TOP_P": "1.5"})
    assert "Invalid value for top_p: '1.5' (from the environment (STAGE3_TOP_P))" in caught.value.what
    assert "Nucleus" in caught.value.what_to_do


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("num_examples", "a whole number, at least 1"),
        ("top_p", "a number, above 0.0 and at most 1.0"),
        ("generation_batch_size", "a whole number, at least 1, or empty"),
        ("install", "yes or no"),
        ("report_to", "one of none, tensorboard"),
        ("repo_root", "a path, or empty"),
        ("split", "text"),
        ("server_url", "addresses, or empty"),
    ],
)
def test_an_option_describes_its_allowed_values(name: str, allowed: str):
    assert next(option for option in options() if option.name == name).allowed == allowed


def test_changes_are_applied_all_or_none_and_each_invalid_one_is_reported(config):
    before = config(seed=7)
    changed, refused = with_changes(before, {"num_examples": "31", "temperature": "0"})
    assert (changed.num_examples, changed.temperature, changed.seed, refused) == (31, 0.0, 7, {})
    changed, refused = with_changes(before, {"num_examples": "none", "top_p": "7", "beta": "0.2"})
    assert changed is None and set(refused) == {"num_examples", "top_p"}
    assert "number" in refused["num_examples"] or "integer" in refused["num_examples"]
    assert with_changes(before, {"generation_batch_size": None})[0].generation_batch_size is None


def test_an_option_that_another_one_requires_is_reported_as_missing():
    with pytest.raises(ConfigError, match=r"^main_process_ip is missing\.") as raised:
        load_config({"num_machines": 2}, environment={})
    assert "--num-machines" in raised.value.why


def test_the_state_of_another_optimizer_cannot_be_sharded():
    with pytest.raises(ConfigError, match="--optim paged_adamw_8bit"):
        load_config({"optim": "paged_adamw_8bit", "sharding": "fsdp"}, environment={})


def test_four_bit_weights_cannot_be_sharded():
    with pytest.raises(ConfigError, match="--load-in-4bit"):
        load_config({"load_in_4bit": True, "sharding": "fsdp"}, environment={})
