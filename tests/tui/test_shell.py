"""Completions run by the shells, the man page read by its checkers, help texts, and the file of options."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from engine.core.config import load_config
from engine.core.options import options
from tests.support.pseudo_terminal import PseudoTerminal
from tests.tui.test_cli import stage3
from tui.commands import completion, init_config, man
from tui.commands.arguments import MANY_OPTIONS
from tui.commands.flags import command_lines
from tui.commands.run import EXIT_CODES, command_parser
from tui.commands.table import COMMANDS, Command


def needs(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


# -- help --------------------------------------------------------------------------------------------------------------


def test_help_has_twenty_options_of_the_run_and_help_all_has_every_one():
    parser = command_parser()
    short = parser.format_help()
    parser.shows_all = True  # type: ignore[attr-defined]
    full = parser.format_help()
    assert [option.flag for option in options() if f"  {option.flag} " in short] == [
        option.flag for option in options() if option.common
    ]
    assert len([option for option in options() if option.common]) == 20
    assert all(f"  {option.flag} " in full for option in options())
    assert "--help-all" in short and len(options()) > MANY_OPTIONS


def test_an_option_that_is_yes_or_no_is_shown_once():
    output = stage3("--help-all").stdout
    assert "--mouse / --no-mouse" in output
    assert [line for line in output.splitlines() if line.startswith("  --no-mouse")] == []


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_help_shows_no_internal_option(command: Command):
    shown = import_module(f"tui.commands.{command.module}").command_parser().format_help()
    assert "SUPPRESS" not in shown and "--token-fd" not in shown and "--restarted" not in shown


# -- --init-config -----------------------------------------------------------------------------------------------------


def test_the_file_of_options_loads_back_to_the_defaults_as_it_is_and_with_every_key_set(tmp_path: Path):
    defaults = load_config(environment={}).model_dump()
    written = tmp_path / "stage3.toml"
    assert init_config.write_config(str(written)) == 0
    assert load_config(toml=written, environment={}).model_dump() == defaults
    keys = {f"# {option.name} = " for option in options() if option.default}
    lines = written.read_text().splitlines()
    uncommented = [line.removeprefix("# ") if line.startswith(tuple(keys)) else line for line in lines]
    everything = tmp_path / "all.toml"
    everything.write_text("\n".join(uncommented))
    assert set(tomllib.loads(everything.read_text())) == {option.name for option in options() if option.default}
    assert load_config(toml=everything, environment={}).model_dump() == defaults


def test_every_option_is_in_the_file_with_its_sentence():
    text = init_config.config_text()
    assert all(f"# {option.sentence}\n# {option.name} = " in text for option in options())


def test_an_existing_file_is_not_overwritten(tmp_path: Path):
    (tmp_path / "stage3.toml").write_text("seed = 7\n")
    done = stage3("--init-config", cwd=tmp_path)
    assert done.returncode == 2 and "stage3.toml already exists" in done.stderr
    assert (tmp_path / "stage3.toml").read_text() == "seed = 7\n"


# -- the man page ------------------------------------------------------------------------------------------------------


def test_the_man_page_has_every_option_command_and_exit_code():
    page = man.page().replace("\\-", "-")
    assert all(f".B {option.flag}" in page for option in options())
    assert all(f"stage3-tui {name}" in page for name in COMMANDS)
    assert all(f".B {code}\n{meaning}" in page for code, meaning in EXIT_CODES)


def test_groff_and_mandoc_find_nothing_wrong_with_the_man_page(tmp_path: Path):
    file = tmp_path / "stage3-tui.1"
    file.write_text(man.page())
    groff = subprocess.run([needs("groff"), "-man", "-ww", "-z", file], capture_output=True, text=True, check=False)
    assert (groff.returncode, groff.stderr) == (0, "")
    mandoc = [needs("mandoc"), "-T", "lint", "-W", "warning", file]
    lint = subprocess.run(mandoc, capture_output=True, text=True, check=False)
    assert (lint.returncode, lint.stdout) == (0, "")


# -- completion --------------------------------------------------------------------------------------------------------


def test_an_option_means_the_same_with_every_command_that_has_it():
    """The completions rely on it: values are completed by the option's name alone."""
    seen: dict[str, tuple[object, ...]] = {}
    for line in command_lines():
        for flag in line.flags:
            assert seen.setdefault(flag.names[-1], (flag.kind, flag.choices)) == (flag.kind, flag.choices), flag


COMPLETED = [
    (["stat"], {"status"}),
    (["--jud"], {"--judge", "--judge-url", "--judge-model", "--judge-api-key-env"}),
    (["--auto", "--judge", "re"], {"reward-model"}),
    (["--until", "pa"], {"pairs", "packaging"}),
    (["status", "--js"], {"--json"}),
    (["clean", "--on"], {"--only"}),
    (["completion", "z"], {"zsh"}),
]
"""The words before the cursor, and the completions of the last one."""


@pytest.mark.parametrize(("words", "expected"), COMPLETED, ids=[" ".join(words) for words, _ in COMPLETED])
def test_bash_completes(words: list[str], expected: set[str]):
    typed = " ".join(f"'{word}'" for word in ["stage3-tui", *words])
    completed = f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _stage3_tui; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    script = f"{completion.bash()}\n{completed}"
    done = subprocess.run([needs("bash"), "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected and done.stderr == ""


def test_bash_completes_a_value_behind_an_equals_sign():
    script = f'{completion.bash()}\nCOMP_WORDS=(stage3-tui --judge = de); COMP_CWORD=3; _stage3_tui; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run([needs("bash"), "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["demo"]


@pytest.mark.parametrize(("words", "expected"), COMPLETED, ids=[" ".join(words) for words, _ in COMPLETED])
def test_fish_completes(words: list[str], expected: set[str], tmp_path: Path):
    (tmp_path / "completion.fish").write_text(completion.fish())
    script = f"source {tmp_path}/completion.fish; complete -C 'stage3-tui {' '.join(words)}'"
    done = subprocess.run(
        [needs("fish"), "--no-config", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} == expected


ZSH_BY_TAB = [("stage3-tui stat", "status"), ("stage3-tui --auto --judge rew", "reward-model")]


@pytest.mark.parametrize(("typed", "completed"), ZSH_BY_TAB, ids=[typed for typed, _ in ZSH_BY_TAB])
def test_zsh_completes_on_a_terminal_with_the_tab_key(typed: str, completed: str, tmp_path: Path):
    (tmp_path / "_stage3-tui").write_text(completion.zsh())
    terminal = PseudoTerminal([needs("zsh"), "-f", "-i"], cwd=tmp_path, HOME=str(tmp_path), ZDOTDIR=str(tmp_path))
    try:
        terminal.press(f"fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u; clear; echo read''y\r")
        terminal.wait_for("ready")
        terminal.press(f"{typed}\t")
        terminal.wait_for(completed)
    finally:
        terminal.hang_up()
