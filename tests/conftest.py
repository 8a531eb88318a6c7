"""Setup and fixtures for all tests. They run with one thread: waiting threads cost more than they gain on a busy machine."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # set in some images, where each child would compile all modules again

from collections.abc import Callable, Generator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from engine.core.config import Stage3Config, load_config
from engine.process.environment import quiet_libraries
from engine.run.context import Context
from engine.run.folder import Run
from tests.support.clear_choices import clear_choices  # noqa: F401
from tests.support.finished_demo import demo_run  # noqa: F401
from tests.support.git_repositories import here, upstream  # noqa: F401
from tests.support.idle_wizard import finished, runner, sessions  # noqa: F401
from tests.support.short_run import short_run  # noqa: F401

gc.disable()  # during the import of the tests
sys.dont_write_bytecode = False
quiet_libraries()
os.environ["HF_HUB_OFFLINE"] = "0"

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

LONGEST_FIRST = (
    *("disturbed_runs", "terminal", "walk", "demo_run", "wizard", "training"),
    *("canary", "memory", "outputs", "snapshots", "advice", "moods"),
    *("pair_browser", "screens", "push", "downloads_by_libraries", "soak", "server"),
    *("evaluation_in_processes", "options_editor", "placement", "resuming", "distributed", "judges"),
    *("formats", "pairs_on_servers", "plan", "reexec", "response_limits", "trained_variants"),
    *("pairs_in_processes", "clone", "several_servers", "validation", "head", "evaluation"),
    *("dependencies", "chat_templates", "critic", "published_templates", "gpus", "cli"),
    *("model_card", "token_sources", "imports", "damaged_adapters", "preflight", "untrusted_files"),
    *("pool", "packaging", "vllm", "training_batches", "start_page"),
    *("spot", "log_screen", "workspace"),
)
"""Test files that take five seconds or more, longest first: a long one at the end would leave a CPU idle."""

Result = TypeVar("Result")


def pytest_collection(session: pytest.Session) -> None:
    """Before collection, workers import the tests, each starting at another file, so that they share the compiled bytecode. The
    conftest of a folder comes first, as in a collection: that of the property tests configures how values are drawn.
    """
    worker = getattr(session.config, "workerinput", None)
    if worker is None or session.config.args != session.config.getini("testpaths"):
        return
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    first = int(worker["workerid"].removeprefix("gw")) * len(files) // worker["workercount"]
    for path in (*sorted(Path(__file__).parent.rglob("conftest.py")), *files[first:], *files[:first]):
        with contextlib.suppress(Exception, pytest.skip.Exception):  # the collection reports what is wrong with it
            import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": position for position, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))  # no time limit


def pytest_collection_finish() -> None:
    """Exclude the 400,000 objects of the imported libraries from garbage collection: the engine collects before it needs memory,
    and scanning them takes a quarter of a second each time. From now on, collect after each file, and rarely in between: it
    took a third of the time of the screens' tests.
    """
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 20, 20)
    atexit.register(gc.freeze)


@pytest.fixture(scope="module", autouse=True)
def freeze_after_each_file() -> Iterator[None]:
    """Also exclude what the tests of a file have imported and cached."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Turn fsync off in this process, because thousands of calls would take a minute. What is synced, and when, is checked by
    tests/faults/test_order_of_writes.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


def needs_shared_data(name: str) -> Path:
    """The path of a file of real data; skips the test if the file is missing."""
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"the real data {name} is not on this machine")
    return path


def run_stage(stage: Generator[Any, None, Result]) -> tuple[list[Any], Result]:
    """All events of a stage, and its result."""
    events = []
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            return events, end.value


@pytest.fixture(autouse=True)
def separate_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Separates the state between starts from the user's and from that of other tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / f"state-{uuid4().hex}"))


@pytest.fixture
def config() -> Callable[..., Stage3Config]:
    """A configuration independent of this machine's environment."""
    return lambda **values: load_config(values, environment={})


@pytest.fixture
def context(tmp_path: Path, config: Callable[..., Stage3Config]) -> Callable[..., Context]:
    return lambda **values: Context(config=config(output_dir=tmp_path / "run", **values), run=Run(tmp_path / "run"))


@pytest.fixture(scope="module")
def stage2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a tiny base model and of an adapter for it."""
    from tests.support.tiny_models import build_adapter, build_base

    folder = tmp_path_factory.mktemp("stage2")
    base = build_base(folder / "base")
    return base, build_adapter(folder / "adapter", base)


@pytest.fixture(scope="module")
def trained(stage2: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A run as it is after stage training."""
    from tests.support.finished_run import finished_run

    return finished_run(tmp_path_factory.mktemp("trained") / "run", stage2[0])
