"""An adapter on the Hub: its commit is resolved once, downloads use it, and every stage reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, NetworkError, PreconditionError, UnsafeError
from engine.machine.error_mapping import as_stage3_error
from engine.models.adapters.source import adapter_folder, adapter_source
from engine.run.context import Context
from engine.run.folder import Run
from engine.stages import adapter as stage
from tests.conftest import run_stage
from tests.support.damaged_adapters import CONFIG, WEIGHTS, settings
from tests.support.fake_hub_files import FilesHub, files_hub
from tests.support.tiny_models import build_context

REPO = "someone/stage2"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FilesHub]:
    with files_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


@pytest.fixture
def make(stage2: tuple[Path, Path], tmp_path: Path) -> Callable[..., Context]:
    def context(**options: object) -> Context:
        made = build_context(tmp_path / "run", *stage2, **{"adapter_path": REPO, **options})
        made.run.forget_stage("adapter")
        return made

    return context


@pytest.fixture
def adapter(stage2: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the good adapter, with what a trainer and a person leave beside it."""
    folder = Path(shutil.copytree(stage2[1], tmp_path / "adapter"))
    shutil.copy(stage2[0] / "tokenizer.json", folder)
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "runs").mkdir()
    (folder / "runs/events.out").write_bytes(b"x" * 1000)
    return folder


def parts(context: Context) -> tuple[Stage3Config, Run, str | None]:
    return context.config, context.run, context.token_text


def record(context: Context) -> Any:
    """Run the stage and record its facts, as the pipeline does."""
    events, result = run_stage(stage.run(context))
    context.run.record_stage("adapter", status="done", result=dict(result.facts))
    return {event.name: (event.status, event.detail) for event in events}, result.facts


def test_the_commit_is_resolved_once_recorded_and_what_is_needed_is_downloaded(
    hub: FilesHub, make: Callable[..., Context], adapter: Path
):
    commit, context = hub.push(REPO, adapter), make()
    found, facts = record(context)
    assert (facts["adapter_id"], facts["adapter_revision"], facts["adapter_commit"]) == (REPO, "main", commit)
    assert found["folder"] == ("ok", f"{REPO} on the Hub, main at commit {commit}")
    assert sorted(hub.downloads()) == [CONFIG, WEIGHTS, "tokenizer.json"]
    assert found["training_args.bin"] == ("warning", "a pickle in the repository; not downloaded")
    assert len([path for path in hub.requests if "/revision/" in path]) == 1
    assert all(f"/resolve/{commit}/" in path for path in hub.requests if "/resolve/" in path)


@pytest.mark.fault("F6")
def test_later_stages_read_the_recorded_commit_though_the_branch_moves(
    hub: FilesHub, make: Callable[..., Context], adapter: Path
):
    first, context = hub.push(REPO, adapter), make()
    record(context)
    settings(lora_alpha=99)(adapter)
    assert hub.push(REPO, adapter) != first
    depends = stage.evidence(context)
    hub.requests.clear()
    folder = adapter_folder(*parts(context))
    assert folder.name == first
    assert '"lora_alpha": 7' in (folder / CONFIG).read_text()
    assert hub.requests == []  # the commit is in the cache, so nothing is requested
    assert stage.evidence(context) == depends  # and so the stage is not done again


def test_another_revision_is_another_adapter(hub: FilesHub, make: Callable[..., Context], adapter: Path):
    first = hub.push(REPO, adapter)
    settings(lora_alpha=99)(adapter)
    second, context = hub.push(REPO, adapter, branch="better"), make()
    record(context)
    other = Context(context.config.model_copy(update={"adapter_revision": "better"}), context.run)
    assert stage.evidence(other) != stage.evidence(context)
    assert adapter_folder(*parts(other)).name == second
    by_commit = Context(context.config.model_copy(update={"adapter_revision": first}), context.run)
    assert adapter_folder(*parts(by_commit)).name == first


def test_a_revision_that_does_not_exist_is_reported(hub: FilesHub, make: Callable[..., Context], adapter: Path):
    hub.push(REPO, adapter)
    with pytest.raises(ConfigError, match=rf"{REPO} has no revision gone \(--adapter-revision\)"):
        adapter_source(*parts(make(adapter_revision="gone")))


def test_weights_that_exist_only_as_a_pickle_are_not_downloaded(
    hub: FilesHub, make: Callable[..., Context], adapter: Path
):
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    hub.push(REPO, adapter)
    with pytest.raises(UnsafeError, match=r"its weights only in adapter_model\.bin"):
        adapter_source(*parts(make()))
    assert hub.downloads() == []


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_repository_without_an_adapter_is_refused_by_its_listing(
    name: str, hub: FilesHub, make: Callable[..., Context], adapter: Path
):
    (adapter / name).rename(adapter / "runs" / name)
    hub.push(REPO, adapter)
    with pytest.raises(PreconditionError, match=f"{REPO} .* has no {name}"):
        adapter_source(*parts(make()))
    assert hub.downloads() == []


def test_cached_weights_that_differ_from_the_hubs_are_refused(
    hub: FilesHub, make: Callable[..., Context], adapter: Path
):
    hub.lies_about_hashes = True
    hub.push(REPO, adapter)
    with pytest.raises(PreconditionError, match="differs from the file on the Hub") as refused:
        run_stage(stage.run(make()))
    assert "/blobs/" in refused.value.what_to_do


@pytest.mark.fault("F5")
def test_offline_the_cache_is_enough_once_the_commit_is_recorded(
    hub: FilesHub, make: Callable[..., Context], adapter: Path, monkeypatch: pytest.MonkeyPatch
):
    commit, context = hub.push(REPO, adapter), make()
    record(context)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert adapter_folder(*parts(context)).name == commit
    context.run.forget_stage("adapter")
    by_commit = Context(context.config.model_copy(update={"adapter_revision": commit}), context.run)
    assert adapter_folder(*parts(by_commit)).name == commit
    with pytest.raises(ConnectionError) as refused:
        adapter_folder(*parts(context))
    assert isinstance(as_stage3_error(refused.value), NetworkError)


def test_a_local_folder_of_that_name_comes_first(
    hub: FilesHub, make: Callable[..., Context], adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapter, tmp_path / REPO)
    assert adapter_folder(*parts(make())) == tmp_path / REPO
    assert hub.requests == []
