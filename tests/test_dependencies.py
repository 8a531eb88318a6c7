"""Stage 4: versions read from real metadata, a uv of the test's own, and the device tried in a real child."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.children import ChildResult
from engine.config import load_config
from engine.context import Context
from engine.errors import NetworkError, PreconditionError, Stage3Error
from engine.events import Check, Event
from engine.run import Run
from engine.stages import dependencies
from engine.stages.base import StageResult

FOUND = {"torch": "2.13.0", "cuda": None, "device": "cpu", "name": "CPU", "seconds": 1.0}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages before all others."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A child that says at once that the CPU computes; counts how often it was asked."""
    asked: list[str] = []

    def answer(argv: list[str], **_: Any) -> ChildResult:
        asked.append(argv[-1])
        return ChildResult(0, (dependencies.PROBE_MARK + json.dumps(FOUND),), (), 1.0)

    monkeypatch.setattr(dependencies, "run_child", answer)
    return asked


def install(site: Path, name: str, version: str, *requires: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {line}" for line in requires),
    ]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")


def context(tmp_path: Path, **options: Any) -> Context:
    return Context(config=load_config({"device": "cpu", **options}, environment={}), run=Run(tmp_path / "run"))


def drive(context: Context) -> tuple[StageResult | Stage3Error, dict[str, Check], list[Event]]:
    events: list[Event] = []
    stage = dependencies.run(context)
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            context.run.record_stage("dependencies", status="done", result=dict(end.value.facts))
            outcome = end.value
            break
        except Stage3Error as error:
            outcome = error
            break
    return outcome, {event.name: event for event in events if isinstance(event, Check)}, events


# -- versions ----------------------------------------------------------------------------------------------------------


def test_what_is_installed_stands_beside_what_is_needed(tmp_path: Path, site: Path, no_probe: list[str]) -> None:
    install(
        site,
        "stage3-tui",
        "0.1",
        "made-up-torch>=2.8,<2.14",
        "tomli>=99; python_version < '3'",
        "pytest>=99; extra == 'dev'",
    )
    install(site, "made-up-torch", "2.13.0+cpu")
    result, checks, _ = drive(context(tmp_path))
    assert isinstance(result, StageResult)
    assert (checks["made-up-torch"].status, checks["made-up-torch"].detail) == ("ok", "2.13.0+cpu; needs <2.14,>=2.8")
    assert "tomli" not in checks and "pytest" not in checks


def test_missing_and_too_old_packages_are_refused_with_the_line_that_installs_them(
    tmp_path: Path, site: Path, no_probe: list[str]
) -> None:
    install(site, "stage3-tui", "0.1", "made-up-trl>=2", "made-up-peft>=1")
    install(site, "made-up-trl", "1.9")
    error, checks, _ = drive(context(tmp_path))
    assert isinstance(error, PreconditionError) and error.exit_code == 3
    assert f"uv pip install --python {sys.executable} 'made-up-trl>=2' 'made-up-peft>=1'" in error.what_to_do
    assert (checks["made-up-trl"].detail, checks["made-up-peft"].detail) == ("1.9; needs >=2", "missing; needs >=1")
    assert no_probe == []


def test_without_metadata_nothing_is_read_and_that_is_said(
    tmp_path: Path, no_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependencies, "DISTRIBUTION", "made-up-name-of-nothing")
    result, checks, _ = drive(context(tmp_path))
    assert isinstance(result, StageResult) and checks["requirements"].status == "warning"
    assert "not read" in result.summary


def test_conflicts_between_installed_packages_are_named(tmp_path: Path, site: Path, no_probe: list[str]) -> None:
    install(site, "made-up-a", "1.0", "made-up.B>=2", "made-up-c")
    install(site, "made_up_b", "1.5")
    _, checks, _ = drive(context(tmp_path))
    assert checks["conflicts"].status == "warning"
    assert "made-up-a 1.0 needs made-up.B>=2, there is 1.5" in dependencies.conflicts()
    assert "made-up-a 1.0 needs made-up-c, there is none" in dependencies.conflicts()


# -- installing --------------------------------------------------------------------------------------------------------


def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "uv").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_install_lets_uv_install_into_this_python_and_looks_again(
    tmp_path: Path, site: Path, no_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "stage3-tui", "0.1", "made-up-trl>=2")
    made = site / "made_up_trl-2.1.dist-info"
    fake_uv(
        tmp_path,
        monkeypatch,
        f"echo \"got $*\"; mkdir {made}; printf 'Name: made-up-trl\\nVersion: 2.1\\n' > {made}/METADATA",
    )
    result, checks, events = drive(context(tmp_path, install=True))
    assert isinstance(result, StageResult) and checks["made-up-trl"].detail == "2.1; needs >=2"
    assert f"uv: got pip install --python {sys.executable} made-up-trl>=2" in str(events)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("echo 'No solution found'; exit 1", PreconditionError),
        ("echo 'error sending request for url: dns error' >&2; exit 2", NetworkError),
        ("exit 0", PreconditionError),
    ],
)
def test_an_installation_that_fails_says_why(
    tmp_path: Path,
    site: Path,
    no_probe: list[str],
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    kind: type[Stage3Error],
) -> None:
    install(site, "stage3-tui", "0.1", "made-up-trl>=2")
    fake_uv(tmp_path, monkeypatch, script)
    error, _, _ = drive(context(tmp_path, install=True))
    assert type(error) is kind


# -- the device --------------------------------------------------------------------------------------------------------


def test_the_device_really_computes_in_a_child_that_has_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text("raise SystemExit('the torch of the current folder')")
    result, checks, _ = drive(context(tmp_path))
    assert isinstance(result, StageResult), result
    assert checks["imports"].status == checks["device computes"].status == "ok"
    assert result.facts["probe"]["device"] == "cpu" and result.facts["probe"]["seconds"] > 0


def test_the_same_environment_is_not_tried_twice_but_another_is(tmp_path: Path, no_probe: list[str]) -> None:
    given = context(tmp_path)
    drive(given)
    _, checks, _ = drive(given)
    assert no_probe == ["cpu"] and "as tried before" in checks["device computes"].detail
    drive(context(tmp_path, device="auto"))
    assert no_probe == ["cpu", "auto"]


def test_a_device_that_is_not_there_is_refused_with_what_to_do() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    failure = dependencies.probe("cuda:1")["failure"]
    assert "sees no CUDA device" in failure["what"] and "--device cpu" in failure["what_to_do"]


def test_a_wrong_product_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: equal(a + 1e-3, b))
    assert "wrongly" in dependencies.probe("cpu")["failure"]["what"]


def test_an_import_that_breaks_is_named_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "IMPORTS", (("json", "loads"), ("json", "no_such_thing")))
    failure = dependencies.probe("cpu")["failure"]
    assert failure["where"] == "imports" and "json.no_such_thing" in failure["what"]


def test_a_trial_that_crashes_or_hangs_is_a_failure_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = ChildResult(-11, (), ("Fatal Python error: Segmentation fault",), 3.0)
    monkeypatch.setattr(dependencies, "run_child", lambda *_, **__: ended)
    error, checks, _ = drive(context(tmp_path))
    assert isinstance(error, PreconditionError) and "Segmentation fault" in error.what
    assert checks["device computes"].status == "failed"


@pytest.mark.parametrize(
    ("device", "cuda", "driver", "status"),
    [
        ("auto", None, None, "ok"),
        ("auto", "13.0", None, "ok"),
        ("auto", "12.8", "570.86.10", "ok"),
        ("auto", "13.0", "570.86.10", "warning"),
        ("auto", None, "570.86.10", "warning"),
        ("cpu", None, "570.86.10", "ok"),
    ],
)
def test_torchs_build_is_compared_with_the_driver(
    device: str, cuda: str | None, driver: str | None, status: str
) -> None:
    assert dependencies._driver_check(device, {"torch": "2.13", "cuda": cuda}, driver).status == status
