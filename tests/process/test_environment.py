"""Library output goes to the run's log, never to the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LIBRARIES = """
import gc, logging, sys, warnings
from pathlib import Path

import pytest
from engine.process.environment import log_to_file, quiet_libraries

quiet_libraries()
log_to_file(Path(sys.argv[1]))
gc.disable()
import torch, transformers, huggingface_hub

for name in ("transformers", "torch", "huggingface_hub"):
    logging.getLogger(f"{name}.part").warning("from %s", name)
transformers.logging.get_logger("transformers.generation").warning_once("`past_key_values` is deprecated")
warnings.warn("from warnings", DeprecationWarning)
gc.freeze()
"""

ONE_OF_ITS_OWN = """
import logging, sys
from pathlib import Path

import pytest
from engine.process.environment import log_to_file

log_to_file(Path(sys.argv[1]))
library = logging.getLogger("library")
library.addHandler(logging.StreamHandler())
library.addHandler(logging.FileHandler(sys.argv[2]))
library.propagate = False
library.warning("a warning")
"""


def run(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.fault("D23")
def test_warnings_of_libraries_go_to_the_log_and_not_to_the_terminal(tmp_path: Path):
    done = run(LIBRARIES, tmp_path / "run.log")
    assert (done.stdout, done.stderr) == ("", "")
    log = (tmp_path / "run.log").read_text()
    for expected in ("from transformers", "from torch", "from huggingface_hub", "`past_key_values` is deprecated"):
        assert log.count(expected) == 1, expected
    assert "from warnings" in log


def test_a_library_may_still_write_a_file_of_its_own(tmp_path: Path):
    assert run(ONE_OF_ITS_OWN, tmp_path / "run.log", tmp_path / "its.log").stderr == ""
    assert "a warning" in (tmp_path / "its.log").read_text()
    assert "a warning" in (tmp_path / "run.log").read_text()
