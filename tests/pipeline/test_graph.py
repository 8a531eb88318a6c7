"""Which change repeats which stages: a table over every option, compared with the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.core.options import options
from engine.core.stage_table import STAGE, STAGE_TABLE
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.settings import GenerationSettings
from engine.pipeline.graph import changes, evidence_of, options_of, outputs_to_set_aside
from engine.run.context import Context
from engine.run.folder import Run

NOTHING = ""
PREFLIGHT = "preflight"
PAIRS = "preflight pairs"
GATE = "quality"
VERDICT = "training (evaluation)"
TRAINING = "training"

DONE_AGAIN: dict[str, tuple[Any, str]] = {
    # option                      another value      what is done again
    "output_dir":                 ("elsewhere",      NOTHING),
    "seed":                       (7,                "pairs quality training"),
    "device":                     ("cpu",            PREFLIGHT),
    "dtype":                      ("float32",        PREFLIGHT),
    "repo_root":                  ("elsewhere",      NOTHING),
    "repo_url":                   ("https://x.y/z",  NOTHING),
    "repo_ref":                   ("dev",            NOTHING),
    "allow_ssh":                  (True,             NOTHING),
    "fetch_lfs":                  (True,             NOTHING),
    "fresh":                      (True,             NOTHING),
    "install":                    (True,             NOTHING),
    "device_login":               (True,             "credentials"),
    "store_token":                (True,             "credentials"),
    "base_model_id":              ("other/base",     "credentials adapter preflight"),
    "base_model_revision":        ("dev",            "credentials adapter preflight"),
    "adapter_path":               ("other",          "credentials adapter"),
    "adapter_revision":           ("dev",            "credentials"),
    "chat_template":              ("gemma",          "preflight pairs quality training"),
    "dataset":                    ("other/data",     "credentials preflight pairs"),
    "dataset_revision":           ("dev",            "credentials preflight pairs"),
    "split":                      ("train",          "preflight pairs"),
    "pairs":                      ("few.yaml",       "credentials preflight pairs"),
    "form":                       ("hh",             "credentials preflight pairs"),
    "columns":                    ("prompt=asked",   "credentials preflight pairs"),
    "max_bad_rows":               (0.1,              "credentials preflight pairs"),
    "num_examples":               (12,               "preflight pairs"),
    "method":                     ("contrast",       "preflight pairs"),
    "num_drafts":                 (7,                NOTHING),
    "target_pairs":               (40,               "preflight pairs"),
    "constitution":               ("principles.yaml", "pairs"),
    "max_new_tokens":             (64,               "preflight pairs training (evaluation)"),
    "max_prompt_tokens":          (99,               "preflight pairs"),
    "temperature":                (0.1,              "pairs"),
    "top_p":                      (0.5,              "pairs"),
    "generation_batch_size":      (4,                PREFLIGHT),
    "max_attempts":               (5,                "pairs"),
    "rounds":                     (2,                "preflight pairs"),
    "few_shot":                   ("few.yaml",       "preflight pairs"),
    "pilot_prompts":              (3,                PREFLIGHT),
    "server_url":                 (("http://h/v1",), "preflight pairs"),
    "server_model":               ("m",              PREFLIGHT),
    "critic_url":                 (("http://h/v1",), "preflight pairs"),
    "critic_model":               ("m",              PREFLIGHT),
    "critic_api_key_env":         ("OTHER_TOKEN",    NOTHING),
    "judge_url":                  (("http://h/v1",), NOTHING),
    "judge_model":                ("m",              NOTHING),
    "judge_api_key_env":          ("OTHER_TOKEN",    NOTHING),
    "server_concurrency":         (3,                NOTHING),
    "server_timeout":             (9.0,              NOTHING),
    "max_failed_share":           (0.2,              NOTHING),
    "judge":                      ("demo",           "credentials quality training (evaluation)"),
    "reward_model_id":            ("other/judge",    "credentials"),
    "relevance":                  (False,            GATE),
    "min_pairs":                  (3,                GATE),
    "min_usable_share":           (0.1,              GATE),
    "min_relevant_share":         (0.1,              GATE),
    "max_longer_share":           (0.8,              GATE),
    "max_shared_prompt_share":    (0.1,              GATE),
    "min_improved_share":         (0.5,              GATE),
    "min_gain":                   (0.1,              GATE),
    "min_sample_share":           (0.6,              GATE),
    "warn_identical_share":       (0.1,              GATE),
    "warn_meta_share":            (0.1,              GATE),
    "warn_principle_share":       (0.4,              GATE),
    "accept_quality":             ("looked at them", GATE),
    "eval_fraction":              (0.2,              GATE),
    "min_eval_pairs":             (5,                GATE),
    "num_train_epochs":           (2.0,              "preflight training"),
    "beta":                       (0.3,              TRAINING),
    "learning_rate":              (1e-6,             TRAINING),
    "per_device_train_batch_size": (2,               "preflight training"),
    "gradient_accumulation_steps": (4,               "preflight training"),
    "optim":                      ("adamw_8bit",     "preflight training"),
    "gradient_checkpointing":     (True,             PREFLIGHT),
    "max_length":                 (320,              "preflight training"),
    "max_too_long_share":         (0.5,              TRAINING),
    "save_steps":                 (3,                NOTHING),
    "save_total_limit":           (4,                PREFLIGHT),
    "cpu_ref_model":              (True,             PREFLIGHT),
    "head":                       ("whole",          PREFLIGHT),
    "load_in_4bit":               (True,             "preflight training"),
    "num_processes":              (2,                PREFLIGHT),
    "sharding":                   ("fsdp",           PREFLIGHT),
    "num_machines":               (2,                PREFLIGHT),
    "machine_rank":               (1,                NOTHING),
    "main_process_ip":            ("10.0.0.1",       NOTHING),
    "main_process_port":          (29501,            NOTHING),
    "report_to":                  ("tensorboard",    NOTHING),
    "eval_prompts":               (9,                VERDICT),
    "eval_harmless_prompts":      (3,                VERDICT),
    "eval_part":                  ("first",          VERDICT),
    "min_eval_prompts":           (4,                VERDICT),
    "eval_significance":          (0.1,              VERDICT),
    "max_unusable_rise":          (0.1,              VERDICT),
    "max_refusal_rise":           (0.1,              VERDICT),
    "max_length_ratio":           (2.0,              VERDICT),
    "push_to_hub":                ("me/adapter",     "credentials packaging"),
    "push_public":                (True,             "credentials"),
    "accept_lookalikes":          ("looked at them", "packaging"),
    "theme":                      ("ember",          NOTHING),
    "mouse":                      (False,            NOTHING),
    "ascii":                      (True,             NOTHING),
    "charts":                     ("blocks",         NOTHING),
}  # fmt: skip


MAKES_OTHER_RECORDS = {
    "seed", "dtype", "base_model_id", "constitution", "max_new_tokens", "temperature", "top_p", "max_attempts", "rounds",
    "few_shot", "server_url", "method", "chat_template", "critic_url",
}  # fmt: skip
"""Whatever else changes, existing records stay. A base model and a number format count as stages adapter and preflight
recorded them."""


@pytest.fixture
def at_rest(context, tmp_path: Path) -> Context:
    """A run with local models, data and adapter, so that no stage queries the Hub."""
    (tmp_path / "adapter").mkdir()
    for name in ("principles.yaml", "few.yaml"):
        (tmp_path / name).write_text("x: 1")
    here = {name: str(tmp_path / "adapter") for name in ("base_model_id", "adapter_path", "dataset")}
    return context(**here, judge="none")


def done_again(context: Context, changed: dict[str, Any], tmp_path: Path) -> str:
    """The stages whose evidence changes with these options, as the pipeline computes it."""
    names = []
    others = {key: tmp_path / value if str(value).endswith(".yaml") else value for key, value in changed.items()}
    after = Context(config=context.config.model_copy(update=others), run=context.run)
    for stage in STAGE_TABLE:
        found = changes(stage.name, evidence_of(context, stage.name) or {}, evidence_of(after, stage.name) or {})
        declared = [change for change in found if change.key in options_of(stage.name)]
        if not declared and not found:
            continue
        part = set(outputs_to_set_aside(stage.name, found)) != set(stage.outputs) and not stage.keeps_records
        names.append(f"{stage.name} (evaluation)" if part else stage.name)
    return " ".join(names)


@pytest.mark.fault("A13")
@pytest.mark.parametrize("option", sorted(DONE_AGAIN))
def test_a_change_repeats_what_depends_on_it_and_nothing_else(option: str, at_rest: Context, tmp_path: Path):
    value, expected = DONE_AGAIN[option]
    assert done_again(at_rest, {option: value}, tmp_path) == expected


@pytest.mark.parametrize("option", sorted(DONE_AGAIN))
def test_a_record_is_kept_through_every_change_that_its_texts_do_not_depend_on(option, at_rest, tmp_path):
    write_principles_and_examples(tmp_path)

    def key(**changed: Any) -> str:
        run = Run(tmp_path / "run")
        config = at_rest.config.model_copy(update=changed)
        made_by = {"base_model_id": config.base_model_id, "tensors_sha256": "a"}
        run.manifest["stages"] = {"adapter": {"result": made_by}, "preflight": {"result": {"dtype": config.dtype}}}
        identity = RecordIdentity.of(config, GenerationSettings.of(config), run.results)
        return identity.key(Prompt("id", [{"role": "user", "content": "Why?"}]))

    value = DONE_AGAIN[option][0]
    value = tmp_path / value if str(value).endswith(".yaml") else value
    assert (key(**{option: value}) != key()) == (option in MAKES_OTHER_RECORDS)


def write_principles_and_examples(folder: Path) -> None:
    keys = ("prompt", "response", "critique_request", "critique", "revision_request", "revision")
    (folder / "principles.yaml").write_text(yaml.safe_dump({"principles": [{"id": "kind", "text": "Be kind."}]}))
    (folder / "few.yaml").write_text(yaml.safe_dump({"examples": [dict.fromkeys(keys, "text")]}))


def test_every_option_is_in_the_table():
    assert set(DONE_AGAIN) == {option.name for option in options()}


def test_every_option_names_existing_stages_and_parts():
    parts = {part for stage in STAGE_TABLE for part in stage.parts}
    for option in options():
        assert set(option.changes) <= parts, option.name


def test_every_input_of_a_stage_is_an_earlier_result():
    for number, stage in enumerate(STAGE_TABLE):
        earlier = {spec.name for spec in STAGE_TABLE[:number]}
        assert {key.partition(".")[0] for key in stage.inputs} <= earlier, stage.name


def test_splitting_a_batch_differently_repeats_nothing_but_its_size_does(at_rest: Context, tmp_path: Path):
    same = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    assert done_again(at_rest, same, tmp_path) == ""


@pytest.mark.fault("A14")
def test_a_files_content_counts_but_not_its_name(at_rest: Context, tmp_path: Path):
    before = evidence_of(
        at_rest.__class__(at_rest.config.model_copy(update={"few_shot": tmp_path / "few.yaml"}), at_rest.run), "pairs"
    )
    (tmp_path / "few.yaml").rename(tmp_path / "moved.yaml")
    moved = at_rest.config.model_copy(update={"few_shot": tmp_path / "moved.yaml"})
    assert evidence_of(Context(moved, at_rest.run), "pairs") == before


@pytest.mark.parametrize("stage", ["preflight", "pairs"])
def test_a_moved_or_additional_server_repeats_nothing_but_another_model_does(at_rest: Context, stage: str):
    def of(**options: Any) -> Any:
        return evidence_of(Context(at_rest.config.model_copy(update=options), at_rest.run), stage)

    here = of(server_url=("http://here/v1",), server_model="m")
    assert of(server_url=("http://there/v1", "http://here/v1"), server_model="m") == here
    assert of(server_url=("http://here/v1",), server_model="n") != here


def test_a_later_result_is_not_an_input_of_an_earlier_stage():
    assert "training" not in {key.partition(".")[0] for key in STAGE["pairs"].inputs}
