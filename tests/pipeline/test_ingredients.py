"""What a run needs before it starts: what is available, what is missing, what it will cost; and the presets."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.core.config import load_config
from engine.core.errors import AccessError, NetworkError
from engine.core.options import options
from engine.demo.preset import demo_defaults
from engine.pipeline import ingredients as module
from engine.pipeline.ingredients import YES, Ingredient, StartOverview, ingredient_values, query_hub, start_overview
from engine.pipeline.presets import KEPT, presets
from engine.run.folder import Run


@pytest.fixture
def overview_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Builds the start overview of a run with these options, in an empty folder with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def overview(preset=None, access=None, **given) -> StartOverview:
        config = load_config({"output_dir": tmp_path / "run", **given}, preset=preset, environment={})
        return start_overview(config, Run(config.output_dir), access=access)

    return overview


def found(overview: StartOverview, title: str) -> Ingredient:
    return next(one for one in overview.ingredients if one.title == title)


def test_the_demo_lacks_nothing_and_fetches_nothing(overview_of):
    start = overview_of(demo_defaults())
    assert start.blockers == ()
    assert {found(start, title).details for title in ("Base model", "Adapter", "Prompts")} == {"found here"}
    assert set(start.costs.disk) == {"pairs", "checkpoints", "archive", "reserve"}
    assert start.costs.replies == "160 prompts × 3 answers, up to 64 tokens each"
    assert start.costs.free_bytes > 0 and start.costs.weights_bytes and start.costs.forecast is None


def test_with_the_defaults_the_adapter_is_missing_and_the_rest_is_fetched(overview_of):
    start = overview_of()
    (missing,) = start.blockers
    assert (missing.title, missing.details) == ("Adapter", "not found") and "folder or Hub id" in missing.remedy
    assert found(start, "Base model").status == "fetch" and "GiB to fetch" in found(start, "Base model").details
    assert found(start, "Prompts").value == "Anthropic/hh-rlhf, 2,500 prompts"


def test_a_file_without_the_split_is_missing_and_its_splits_are_listed(overview_of, tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "How do I mend it?"}\n')
    assert found(overview_of(demo_defaults(), dataset=str(file), split="train"), "Prompts").status == "ready"
    (missing,) = overview_of(demo_defaults(), dataset=str(file), split="test").blockers
    assert (missing.title, missing.details) == ("Prompts", "no split test")
    assert '--split "train[:100]"' in missing.remedy


def test_a_repository_that_the_account_may_not_read_is_gated(overview_of):
    start = overview_of(access={"google/gemma-2b-it": "No access", "Anthropic/hh-rlhf": YES})
    assert found(start, "Base model").status == "gated" and "gated" in found(start, "Base model").details
    assert found(start, "Prompts").status == "fetch"


def test_the_hub_is_asked_only_about_fetched_repositories_and_may_be_offline(tmp_path, monkeypatch, overview_of):
    requested = []

    def check(repo_id, repo_type, token):
        requested.append((repo_id, repo_type))
        if repo_id == "google/gemma-2b-it":
            raise AccessError("No access to the model google/gemma-2b-it", "gated", "ask")
        raise NetworkError("The Hub does not answer", "no route", "later")

    monkeypatch.setattr(module, "check_access", check)
    config = load_config({"output_dir": tmp_path / "run"}, environment={})
    access = query_hub(config, Run(config.output_dir), None)
    assert requested == [("google/gemma-2b-it", "model"), ("Anthropic/hh-rlhf", "dataset")]
    assert access == {"google/gemma-2b-it": "No access to the model google/gemma-2b-it"}


@pytest.mark.parametrize(
    ("given", "title", "status"),
    [
        ({"base_model_id": "/no/such/model"}, "Base model", "missing"),
        ({"dataset": "/no/such/file.jsonl"}, "Prompts", "missing"),
        ({"pairs": "/no/such/pairs.jsonl"}, "Pairs", "missing"),
        ({"judge": "none"}, "Judge", "decide"),
        ({"judge": "server"}, "Judge", "missing"),
        ({"judge": "server", "server_url": "http://localhost:1/v1"}, "Judge", "open"),
        ({"judge": "reward-model"}, "Judge", "fetch"),
        ({"method": "best-of-n", "judge": "none"}, "Method", "missing"),
        ({"push_to_hub": "me/adapter"}, "Push", "open"),
        ({"repo_url": "https://example.org/x.git"}, "Adapter", "open"),
    ],
)
def test_the_status_of_each_ingredient(overview_of, given: dict[str, object], title: str, status: str):
    assert found(overview_of(**given), title).status == status


def test_the_values_shown_at_once_are_those_of_the_full_overview(overview_of, tmp_path):
    config = load_config({"output_dir": tmp_path / "run"}, environment={})
    at_once, later = ingredient_values(config), overview_of().ingredients
    assert [(one.option, one.value) for one in at_once] == [(one.option, one.value) for one in later]
    assert {one.option for one in at_once} <= {option.name for option in options()}


# -- presets -----------------------------------------------------------------------------------------------------------


def test_presets_set_every_option_but_the_run_folder_and_the_display(tmp_path: Path):
    config = load_config(
        {"output_dir": tmp_path / "run", "theme": "daylight", "num_examples": 7, "judge": "none"}, environment={}
    )
    demo, notebook = presets(config)
    assert demo.config.judge == "demo" and demo.config.num_examples == 160
    defaults = load_config({name: getattr(config, name) for name in KEPT}, environment={})
    assert notebook.config.model_dump() == defaults.model_dump()
    assert all(one.config.output_dir == tmp_path / "run" and one.config.theme == "daylight" for one in (demo, notebook))


def test_the_last_run_is_the_newest_beside_this_one_and_never_itself(tmp_path: Path):
    for name, examples in (("old", 11), ("new", 22), ("run", 33)):
        run = Run(tmp_path / name)
        run.acquire()
        run.manifest["config"] = {"num_examples": examples, "no_longer_an_option": 1}
        run.save()
        run.release()
    config = load_config({"output_dir": tmp_path / "run"}, environment={})
    (last,) = [one for one in presets(config) if one.key == "l"]
    assert last.config.num_examples == 22 and "new" in last.sentence


def test_a_last_run_with_invalid_options_is_not_offered(tmp_path: Path):
    run = Run(tmp_path / "old")
    run.acquire()
    run.manifest["config"] = {"num_examples": -1}
    run.save()
    run.release()
    assert [one.key for one in presets(load_config({"output_dir": tmp_path / "run"}, environment={}))] == ["d", "n"]
