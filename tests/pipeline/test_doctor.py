"""`stage3-tui doctor` reports what the stages find, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from engine import hub
from engine.core.config import load_config
from engine.core.errors import DamagedState, PreconditionError, Stage3Error
from engine.core.events import Check
from engine.dpo.planning.disk_space import require_disk_space
from engine.pipeline import doctor
from engine.run.context import Context
from engine.run.folder import Run
from engine.stages import dependencies, toolchain
from tests.conftest import run_stage
from tests.support.fake_nvml import fake_nvml


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignores this machine's login, and does not load torch in a child, which is tested elsewhere."""
    for name in hub.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no tokens"))
    found = {"torch": "2.13.0", "cuda": None, "device": "cpu", "name": "CPU", "seconds": 1.0}
    monkeypatch.setattr(dependencies, "try_device", lambda *_: dict(found))


def config_of(tmp_path: Path, **options: Any) -> Any:
    return load_config({"output_dir": tmp_path / "run", "base_model_id": str(tmp_path), "dataset": str(tmp_path), **options},
                       environment={})  # fmt: skip


def test_doctor_reports_the_stages_checks_and_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(tmp_path, monkeypatch)
    config = config_of(tmp_path)
    context = Context(config, Run(tmp_path / "run"))
    findings = list(doctor.examine(config))
    (disk,), _ = run_stage(require_disk_space(config, context.run))
    stages = [
        e for stage in (toolchain, dependencies) for e in run_stage(stage.run(context))[0] if isinstance(e, Check)
    ]
    assert [check for check in findings if check.name not in ("Hugging Face token", disk.name)] == stages
    assert findings[0].name == disk.name and findings[0].detail.partition("; ")[2] == disk.detail.partition("; ")[2]
    assert {"python", "git", "uv", "tmux", "NVIDIA driver", "GPU 0", "CUDA of torch", "torch"} <= {
        c.name for c in stages
    }
    assert not (tmp_path / "run").exists()


def test_a_failing_part_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{")
    monkeypatch.setattr(dependencies, "try_device", lambda *_: {"failure": {"where": "device", "what": "it is broken"}})
    findings = list(doctor.examine(config_of(tmp_path)))
    errors = [finding for finding in findings if isinstance(finding, Stage3Error)]
    assert [type(error) for error in errors] == [DamagedState, PreconditionError]
    assert "it is broken" in errors[1].what
    assert {"Hugging Face token", "python", "conflicts", "device computes"} <= {
        c.name for c in findings if isinstance(c, Check)
    }


@pytest.mark.parametrize(
    ("token", "status"), [("hf_CanaryCanaryCanaryCanary", "ok"), ("hf_Canary Canary", "failed"), (None, "skipped")]
)
def test_a_token_is_reported_by_its_source_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, token: str | None, status: str
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    check = doctor.token_check()
    assert check.status == status and "Canary" not in check.detail
