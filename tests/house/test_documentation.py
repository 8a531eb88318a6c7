"""The samples in the documentation work, and the site builds without warnings."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from engine.core.config import load_config
from tui.cli import split_command
from tui.commands.table import COMMANDS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def samples(language: str) -> Iterator[tuple[str, str]]:
    """(document, text) of each code block in this language."""
    for document in DOCUMENTS:
        for block in re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
            yield document.name, block


def commands() -> list[tuple[str, list[str]]]:
    """(document, arguments) of each call of the program in a code block."""
    found = []
    for document, block in samples("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            indices = [index for index, word in enumerate(words) if word.rpartition("/")[2] == "stage3-tui"]
            found += [(document, words[index + 1 :]) for index in indices if words[0] not in ("uv", "tmux")]
    return found


@cache
def help_of(command: str) -> str:
    from importlib import import_module

    parser = import_module(f"tui.commands.{command}").command_parser()
    parser.shows_all = True
    shown: str = parser.format_help()
    return shown


def test_every_command_in_a_sample_exists_and_knows_its_options():
    assert len(commands()) >= 4
    for document, arguments in commands():
        name, rest = split_command(arguments)
        flags = [word.split("=")[0] for word in rest if word.startswith("--")]
        unknown = [flag for flag in flags if f"{flag}" not in help_of(COMMANDS[name].module if name else "run")]
        assert unknown == [], f"{document}: stage3-tui {' '.join(arguments)}"


def test_every_option_that_a_page_names_exists():
    everywhere = "".join(help_of(COMMANDS[name].module) for name in COMMANDS) + help_of("run")
    built_in = {"--help"}
    for document in DOCUMENTS:
        named = set(re.findall(r"`(--[a-z][a-z0-9-]+)", document.read_text(encoding="utf-8")))
        missing = [flag for flag in named - built_in if flag.replace("--no-", "--") not in everywhere]
        assert missing == [], document.name


def test_every_toml_sample_is_a_configuration(tmp_path):
    written = [block for _, block in samples("toml") if "[" not in block]
    assert written
    for number, block in enumerate(written):
        file = tmp_path / f"{number}.toml"
        file.write_text(block, encoding="utf-8")
        load_config({}, toml=file, environment={})


def test_every_script_and_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
        assert sorted(named - targets) == [], document.name
        for script in re.findall(r"(?:`|^)python ([\w/]+\.py)", text, re.MULTILINE):
            assert (ROOT / script).exists(), f"{document.name}: {script}"


def test_the_site_builds_without_a_warning_and_with_every_page(tmp_path):
    pytest.importorskip("material", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").exists()
    assert len(list((tmp_path / "site").glob("*/index.html"))) >= len(DOCUMENTS) - 1
