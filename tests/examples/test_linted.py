"""Each example passes the linter of its kind (`make examples` installs them)."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml

from tests.support.example_programs import EXAMPLES, ROOT

SCRIPTS = sorted([*EXAMPLES.rglob("*.sh"), *EXAMPLES.rglob("*.sbatch")])
YAML_FILES = sorted(EXAMPLES.rglob("*.yaml"))
NOT_INSTALLED = "is not installed; `make examples` installs it"


def linter(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or pytest.skip(f"{name} {NOT_INSTALLED}")


def complaints(name: str, *arguments: str | Path, stdin: str | None = None) -> str:
    done = subprocess.run(
        [linter(name), *map(str, arguments)], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=120
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_no_complaint(script):
    assert complaints("shellcheck", script) == ""


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.suffix == ".sh"], ids=lambda path: path.name)
def test_scripts_are_executable(script):
    assert script.stat().st_mode & 0o111


def test_shellcheck_has_no_complaint_about_the_scripts_in_yaml():
    task = yaml.safe_load((EXAMPLES / "spot/skypilot.yaml").read_text(encoding="utf-8"))
    for name in ("setup", "run"):
        assert complaints("shellcheck", "--shell=bash", "-", stdin=task[name]) == "", name


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda path: path.name)
def test_yamllint_has_no_complaint(file):
    assert complaints("yamllint", "--strict", "--config-file", EXAMPLES / ".yamllint", file) == ""


def test_hadolint_has_no_complaint():
    assert complaints("hadolint", EXAMPLES / "docker/Dockerfile") == ""


@pytest.mark.parametrize("file", sorted((EXAMPLES / "kubernetes").glob("*.yaml")), ids=lambda path: path.name)
def test_kubernetes_accepts_the_manifest(file):
    assert complaints("kubernetes-validate", "--strict", file) == ""


def test_kubernetes_rejects_a_misspelt_field(tmp_path):
    text = (EXAMPLES / "kubernetes/job.yaml").read_text(encoding="utf-8")
    misspelt = tmp_path / "job.yaml"
    misspelt.write_text(text.replace("backoffLimit", "backofLimit"), encoding="utf-8")
    assert complaints("kubernetes-validate", "--strict", misspelt) != ""


def test_skypilot_accepts_the_task(monkeypatch):
    jsonschema = pytest.importorskip("jsonschema", reason=f"jsonschema {NOT_INSTALLED}")
    schemas = skypilot_schemas(monkeypatch)
    task = yaml.safe_load((EXAMPLES / "spot/skypilot.yaml").read_text(encoding="utf-8"))
    resources = task.pop("resources")
    jsonschema.validate(task, schemas.get_task_schema())
    jsonschema.validate(resources, schemas.get_resources_schema())
    with pytest.raises(jsonschema.ValidationError, match="use_spots"):
        jsonschema.validate({**resources, "use_spots": True}, schemas.get_resources_schema())


def skypilot_schemas(monkeypatch: pytest.MonkeyPatch) -> Any:
    """SkyPilot's module of schemas, without the forty packages that `import sky` needs; its server is mocked."""
    if (found := importlib.util.find_spec("sky")) is None or found.origin is None:
        pytest.skip(f"SkyPilot {NOT_INSTALLED}")
    folder = Path(found.origin).parent
    for name in ("sky", "sky.utils", "sky.skylet", "sky.server"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        package.__dict__["__version__"] = version("skypilot")
        monkeypatch.setitem(sys.modules, name, package)
    for name in ("sky.skylet.autostop_lib", "sky.server.daemons", "sky.server.plugins", "sky.data.storage", "sky.data"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    return importlib.import_module("sky.utils.schemas")
