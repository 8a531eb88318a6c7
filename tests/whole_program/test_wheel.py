"""The wheel of `make dist`, installed into an empty environment outside the checkout, runs the demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from engine import __version__
from engine.core.stage_table import STAGES
from engine.run.folder import Run

ROOT = Path(__file__).parents[2]
PACKAGES = {"engine", "tui", "themes"}


def uv() -> str:
    """The uv that the Makefile would find."""
    found = shutil.which("uv") or shutil.which(ROOT / ".tools/bin/uv")
    if found is None:
        pytest.skip("uv is neither on PATH nor in .tools")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel: its requirements are those of this process, and the checkout is on no path."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    subprocess.run([uv(), "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    python = str(folder / "bin/python")
    subprocess.run([uv(), "pip", "install", "--quiet", "--no-deps", "--offline", "--python", python, wheel], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(environment: Path, program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    command = [str(environment / "bin" / program), *arguments]
    return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=600)


def test_the_packages_come_from_the_wheel_and_not_from_the_checkout(environment: Path, tmp_path: Path):
    code = "import engine, tui, themes; print(engine.__file__, tui.__file__, themes.__file__)"
    done = run(environment, "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {Path(file).parent.name for file in done.stdout.split()} == PACKAGES
    assert all(Path(file).is_relative_to(environment) for file in done.stdout.split())
    assert run(environment, "stage3-tui", "--version", cwd=tmp_path).stdout.split()[-1] == __version__


def test_the_wheel_contains_every_file_of_the_packages(environment: Path):
    (site,) = environment.glob("lib/python*/site-packages")
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert (site / file.relative_to(ROOT)).is_file(), file


def test_the_demo_starts_from_the_wheel(environment: Path, tmp_path: Path):
    """Runs only the stages that need no torch; the full demo is a slow test."""
    until = ("--auto", "--demo", "--until", "credentials", "--output-dir", "run")
    done = run(environment, "stage3-tui", *until, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Run(tmp_path / "run").stage("toolchain")["status"] == "done"


@pytest.mark.slow
def test_a_full_install_runs_the_full_demo(wheel: Path, tmp_path: Path):
    """Installs all requirements from the registry, in the versions of constraints.txt, as `uv tool install` would."""
    folder = tmp_path / "venv"
    subprocess.run([uv(), "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    command = [uv(), "pip", "install", "--quiet", *constraints, "--python", str(folder / "bin/python"), str(wheel)]
    subprocess.run(command, check=True)
    done = run(folder, "stage3-tui", "--auto", "--demo", "--output-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").stage(STAGES[-1])["status"] == "done"
