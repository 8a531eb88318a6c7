"""examples/docker: what the image starts, as which user, and whether the files that it copies suffice to build."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.example_programs import EXAMPLES, ROOT, configuration_of

FOLDER = EXAMPLES / "docker"
TEXT = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n\s*", "", "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))).splitlines()


def last(instruction: str) -> str:
    return [line.split(maxsplit=1)[1] for line in LINES if line.startswith(f"{instruction} ")][-1]


def copied() -> list[str]:
    sources = [line.split()[1:-1] for line in LINES if line.startswith("COPY ") and "--from" not in line]
    return [name for names in sources for name in names]


def test_the_image_starts_the_program_with_options_that_exist():
    program, *options = [*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD"))]
    assert program == "stage3-tui"
    assert str(configuration_of(options).output_dir).startswith("/runs/")


def test_the_command_in_its_comment_has_options_that_exist():
    shown = re.search(r"stage3-tui (--auto .*) <", TEXT)
    assert shown is not None
    configuration_of(shown.group(1).split())


def test_the_image_runs_as_an_ordinary_user_with_runs_and_cache_as_volumes():
    assert last("USER") == "10001:10001"
    assert json.loads(last("VOLUME")) == ["/runs", "/cache"]
    assert "HF_HOME=/cache" in last("ENV")


def test_no_secret_can_get_into_a_layer():
    assert not re.search(r"(ARG|ENV)\s.*(TOKEN|KEY|SECRET|PASSWORD)", TEXT, re.IGNORECASE)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*"
    assert sorted(name.removeprefix("!") for name in ignored if name.startswith("!")) == sorted(copied())


def test_the_copied_files_are_enough_to_build_the_package(tmp_path):
    for name in copied():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "dist")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in Path(tmp_path / "dist").iterdir()] != []
