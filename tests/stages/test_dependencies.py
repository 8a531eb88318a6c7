"""Stage 4: versions from real metadata, a fake uv, and the device tried in a real child process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.core.config import load_config
from engine.core.errors import DiskError, NetworkError, PreconditionError, Stage3Error
from engine.core.events import Check, Event
from engine.machine import install as installing
from engine.machine import probe, requirements
from engine.machine.conflicts import find_conflicts
from engine.machine.torch_build import TorchBuild
from engine.process import kill
from engine.run.context import Context
from engine.run.folder import Run
from engine.stages import dependencies
from engine.stages.base import StageEnd

FOUND = {"torch": "2.13.0", "cuda": None, "device": "cpu", "name": "CPU", "seconds": 1.0}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages that comes first."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A child that reports a working CPU at once, and counts its runs."""
    probed: list[str] = []

    def answer(device: str, *_: Any) -> dict[str, Any]:
        probed.append(device)
        return dict(FOUND)

    monkeypatch.setattr(dependencies, "try_device", answer)
    return probed


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


def drive(context: Context) -> tuple[StageEnd | Stage3Error, dict[str, Check], list[Event]]:
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


def test_installed_versions_are_shown_beside_the_required_ones(tmp_path: Path, site: Path, no_probe: list[str]) -> None:
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
    assert isinstance(result, StageEnd)
    assert (checks["made-up-torch"].status, checks["made-up-torch"].detail) == ("ok", "2.13.0+cpu; needs <2.14,>=2.8")
    assert "tomli" not in checks and "pytest" not in checks


def test_missing_and_old_packages_are_refused_with_the_command_that_installs_them(
    tmp_path: Path, site: Path, no_probe: list[str]
) -> None:
    install(site, "stage3-tui", "0.1", "made-up-trl>=2", "made-up-peft>=1")
    install(site, "made-up-trl", "1.9")
    error, checks, _ = drive(context(tmp_path))
    assert isinstance(error, PreconditionError) and error.exit_code == 3
    assert f"uv pip install --python {sys.executable} 'made-up-trl>=2' 'made-up-peft>=1'" in error.what_to_do
    assert (checks["made-up-trl"].detail, checks["made-up-peft"].detail) == ("1.9; needs >=2", "missing; needs >=1")
    assert no_probe == []


def test_without_metadata_requirements_are_reported_as_unread(
    tmp_path: Path, no_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "DISTRIBUTION", "made-up-name-of-nothing")
    result, checks, _ = drive(context(tmp_path))
    assert isinstance(result, StageEnd) and checks["requirements"].status == "warning"
    assert "not read" in result.summary


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, set()),
        ({"load_in_4bit": True}, {"made-up-bits"}),
        ({"report_to": "tensorboard"}, {"made-up-board"}),
        ({"load_in_4bit": True, "optim": "paged_adamw_8bit"}, {"made-up-bits"}),
        ({"load_in_4bit": True, "report_to": "tensorboard"}, {"made-up-bits", "made-up-board"}),
    ],
)
def test_an_extra_is_needed_only_if_an_option_uses_it(
    tmp_path: Path, site: Path, no_probe: list[str], options: dict[str, Any], expected: set[str]
) -> None:
    install(
        site,
        "stage3-tui",
        "0.1",
        "packaging>=24",
        "made-up-bits>=1; extra == 'bitsandbytes'",
        "made-up-board>=2; extra == 'tensorboard'",
        "made-up-dev>=3; extra == 'dev'",
    )
    outcome, checks, _ = drive(context(tmp_path, **options))
    assert {name for name in checks if name.startswith("made-up")} == expected
    assert isinstance(outcome, PreconditionError if expected else StageEnd)
    if "made-up-bits" in expected:
        assert checks["made-up-bits"].detail == "missing; needs >=1, for --load-in-4bit"


def test_an_optimizer_from_bitsandbytes_requires_it(tmp_path: Path, site: Path, no_probe: list[str]) -> None:
    install(site, "stage3-tui", "0.1", "made-up-bits>=1; extra == 'bitsandbytes'")
    _, checks, _ = drive(context(tmp_path, optim="adamw_8bit"))
    assert checks["made-up-bits"].detail == "missing; needs >=1, for --optim"


def test_the_extras_of_the_options_are_extras_of_the_package() -> None:
    for extra in requirements.EXTRAS:
        plain = requirements.requirements_of("stage3-tui", "")
        assert [item for item in requirements.requirements_of("stage3-tui", extra.name) if item not in plain]


def test_conflicts_of_what_the_run_needs_are_named_and_those_of_others_counted(
    tmp_path: Path, site: Path, no_probe: list[str]
) -> None:
    install(site, "stage3-tui", "0.1", "made-up-a>=1")
    install(site, "made-up-a", "1.0", "made-up.B>=2", "made-up-c; extra == 'more'")
    install(site, "made_up_b", "2.5", "made-up-d<1")
    install(site, "made_up_d", "1.5", "not a requirement (")
    install(site, "made-up-other", "1.0", "made-up-b<2")
    _, checks, _ = drive(context(tmp_path))
    assert checks["conflicts"].status == "warning"
    named = (
        "made-up-d has an unreadable requirement: not a requirement (; made-up-b 2.5 needs made-up-d<1, installed: 1.5"
    )
    named = named.replace("made-up-d has", "made_up_d has").replace("made-up-b 2.5", "made_up_b 2.5")
    assert set(find_conflicts().run_packages) == set(named.split("; "))
    assert "made-up-other 1.0 needs made-up-b<2, installed: 2.5" in find_conflicts().other_packages
    assert (
        "between other packages here" in checks["conflicts"].detail
        and "made-up-other" not in checks["conflicts"].detail
    )


def test_of_two_packages_of_one_name_the_imported_one_counts(tmp_path: Path, site: Path) -> None:
    install(site, "stage3-tui", "0.1", "textual>=8")  # before the one in the environment
    install(site, "textual", "7.0")
    assert find_conflicts().run_packages == ("stage3-tui 0.1 needs textual>=8, installed: 7.0",)


# -- installing --------------------------------------------------------------------------------------------------------


def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "uv").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def installs(site: Path, version: str = "2.1") -> str:
    """Shell that installs made-up-trl as a package manager would."""
    made = site / f"made_up_trl-{version}.dist-info"
    return f"/bin/mkdir {made}; printf 'Name: made-up-trl\\nVersion: {version}\\n' > {made}/METADATA"


@pytest.fixture
def lacks_trl(site: Path) -> Path:
    install(site, "stage3-tui", "0.1", "made-up-trl[more]>=2")
    return site


def test_install_runs_uv_for_this_python_and_checks_again(
    tmp_path: Path, lacks_trl: Path, no_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake_uv(tmp_path, monkeypatch, f'echo "got $* in $PWD"; {installs(lacks_trl)}')
    result, checks, events = drive(context(tmp_path, install=True))
    assert isinstance(result, StageEnd) and checks["made-up-trl"].detail == "2.1; needs >=2"
    # From the root folder: a uv.toml of the current one could name another index.
    assert f"uv: got pip install --python {sys.executable} made-up-trl[more]>=2 in /'" in str(events)


def test_nothing_is_installed_without_install(
    tmp_path: Path, lacks_trl: Path, no_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_uv(tmp_path, monkeypatch, f"touch {tmp_path}/ran")
    error, _, _ = drive(context(tmp_path))
    assert isinstance(error, PreconditionError) and "Without --install" in error.why
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("knows", [True, False])
def test_uv_installs_the_torch_build_that_fits_the_driver(
    tmp_path: Path, site: Path, no_probe: list[str], monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    install(site, "stage3-tui", "0.1", "torch>=99")
    helps = "echo '      --torch-backend <BACKEND>'" if knows else "echo '      --index <URL>'"
    fake_uv(tmp_path, monkeypatch, f'[ "$3" = --help ] && {{ {helps}; exit; }}; echo "got $*"')
    _, _, events = drive(context(tmp_path, install=True))
    assert ("--torch-backend=auto torch>=99" in str(events)) is knows
    assert ("This uv does not support --torch-backend=auto" in str(events)) is not knows


def test_a_build_script_gets_no_token(
    tmp_path: Path, lacks_trl: Path, no_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GH_TOKEN",
                 "UV_PUBLISH_TOKEN", "UV_INDEX_PRIVATE_PASSWORD", "STAGE3_SERVER_TOKEN", "OPENAI_API_KEY"):  # fmt: skip
        monkeypatch.setenv(name, "hf_canary")
    monkeypatch.setenv("UV_INDEX_URL", "https://mirror.example.org/simple")
    fake_uv(tmp_path, monkeypatch, f"/usr/bin/env > {tmp_path}/seen; {installs(lacks_trl)}")
    drive(context(tmp_path, install=True))
    seen = (tmp_path / "seen").read_text()
    assert "hf_canary" not in seen
    assert "UV_INDEX_URL=https://mirror.example.org/simple" in seen and "HF_HUB_DISABLE_IMPLICIT_TOKEN=1" in seen


@pytest.mark.fault("F11")
@pytest.mark.parametrize(
    ("script", "kind", "todo"),
    [
        ("echo 'No solution found when resolving dependencies'; exit 1", PreconditionError, "Relax"),
        ("echo 'no wheels with a matching Python version tag'; exit 1", PreconditionError, "uv venv --python"),
        ("echo 'Permission denied (os error 13)' >&2; exit 2", PreconditionError, "own environment"),
        ("echo 'error sending request for url: dns error' >&2; exit 2", NetworkError, "proxy"),
        (
            "echo 'Failed to fetch: `https://x`'; echo 'No space left on device (os error 28)'; exit 2",
            DiskError,
            "cache",
        ),
        ("exit 0", PreconditionError, "made-up-trl"),
        ("kill -9 $$", PreconditionError, "memory ran out"),
    ],
)
def test_the_error_for_a_failed_installation_says_why(
    tmp_path: Path,
    lacks_trl: Path,
    no_probe: list[str],
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    kind: type[Stage3Error],
    todo: str,
) -> None:
    fake_uv(tmp_path, monkeypatch, script)
    error, _, _ = drive(context(tmp_path, install=True))
    assert type(error) is kind and todo in error.what_to_do


@pytest.mark.fault("F11")
def test_without_uv_the_way_to_get_it_is_reported(
    tmp_path: Path, lacks_trl: Path, no_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installing, "find_uv", lambda: None)
    error, _, _ = drive(context(tmp_path, install=True))
    assert isinstance(error, PreconditionError) and "astral.sh/uv" in error.why


@pytest.mark.fault("F11")
def test_an_installation_that_hangs_is_ended_and_one_that_failed_may_be_tried_again(
    tmp_path: Path, lacks_trl: Path, no_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installing, "INSTALL_SECONDS", 0.5)
    monkeypatch.setattr(kill, "GRACE_SECONDS", 0.2)
    fake_uv(tmp_path, monkeypatch, f"[ -e {tmp_path}/second ] || exec sleep 977; {installs(lacks_trl)}")
    error, _, _ = drive(context(tmp_path, install=True))
    assert isinstance(error, NetworkError) and "timed out after" in error.why
    (tmp_path / "second").touch()
    assert isinstance(drive(context(tmp_path, install=True))[0], StageEnd)


@pytest.mark.fault("F11")
def test_uvs_output_is_limited_and_cannot_control_the_terminal(
    tmp_path: Path, lacks_trl: Path, no_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    megabyte = f"{sys.executable} -S -c \"print('x' * (1 << 20))\""
    fake_uv(tmp_path, monkeypatch, f"{megabyte}; printf '\\033]52;c;eA==\\007 \\377 down\\n'; exit 1")
    error, _, events = drive(context(tmp_path, install=True))
    assert isinstance(error, PreconditionError)
    assert "␛]52;c;eA==␇ \ufffd down" in error.why and "\x1b" not in error.why and len(error.why) < 1000
    assert max(len(getattr(event, "text", "")) for event in events) < 5000


# -- the device --------------------------------------------------------------------------------------------------------


def test_the_device_computes_in_a_child_process_without_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text("raise SystemExit('the torch of the current folder')")
    result, checks, _ = drive(context(tmp_path))
    assert isinstance(result, StageEnd), result
    assert checks["imports"].status == checks["device computes"].status == "ok"
    assert result.facts["probe"]["device"] == "cpu" and result.facts["probe"]["seconds"] > 0


def test_the_same_environment_is_not_probed_twice_but_another_is(tmp_path: Path, no_probe: list[str]) -> None:
    given = context(tmp_path)
    drive(given)
    _, checks, _ = drive(given)
    assert no_probe == ["cpu"] and "as before; nothing has changed" in checks["device computes"].detail
    drive(context(tmp_path, device="auto"))
    assert no_probe == ["cpu", "auto"]


def test_a_device_that_does_not_exist_is_refused_with_what_to_do() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    failure = probe.probe("cuda:1")["failure"]
    assert "finds no CUDA device" in failure["what"] and "--device cpu" in failure["what_to_do"]


def test_a_wrong_product_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: equal(a + 1e-3, b))
    assert "computes a wrong matrix product" in probe.probe("cpu")["failure"]["what"]


def test_a_failing_import_is_reported_with_its_message() -> None:
    failure = probe.probe("cpu", (("json", "loads"), ("json", "no_such_thing")))["failure"]
    assert failure["where"] == "imports" and "json.no_such_thing" in failure["what"]


def test_extras_of_an_option_are_imported_too(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "IMPORTS", (("json", "loads"),))  # nothing heavy: this one is about the other
    install(site, "stage3-tui", "0.1", "bitsandbytes>=1; extra == 'bitsandbytes'")
    install(site, "bitsandbytes", "1.0")
    (site / "bitsandbytes").mkdir()
    (site / "bitsandbytes/__init__.py").write_text("raise RuntimeError('libcudart.so.12 is missing')")
    monkeypatch.setenv("PYTHONPATH", str(site))
    error, checks, _ = drive(context(tmp_path, load_in_4bit=True))
    assert isinstance(error, PreconditionError) and "libcudart.so.12 is missing" in error.what
    assert checks["imports"].status == "failed" and "--reinstall bitsandbytes" in error.what_to_do


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Fatal Python error: Segmentation fault' >&2; kill -11 $$", "Segmentation fault"),
        ("exec sleep 976", "timed out after"),
        ("echo 'stage3-probe {broken'; exit 1", "exit code 1"),
    ],
)
def test_a_probe_that_crashes_or_hangs_fails_with_its_last_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.5)
    error, checks, _ = drive(context(tmp_path))
    assert isinstance(error, PreconditionError) and message in error.what
    assert checks["device computes"].status == "failed"


def test_a_build_that_does_not_fit_the_driver_warns_and_does_not_refuse() -> None:
    check = dependencies._driver_check("auto", TorchBuild("2.13.0", "13.0"), "570.86.10")
    assert check.status == "warning" and "580" in check.detail
    assert dependencies._driver_check("auto", TorchBuild("2.13.0"), None).status == "ok"
