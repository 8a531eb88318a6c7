"""The commands, their arguments and descriptions, for `--help` and the documentation."""

from __future__ import annotations

from typing import NamedTuple

PROGRAM = "stage3-tui"


class Command(NamedTuple):
    module: str
    """In `tui.commands`; its `main(arguments)` runs the command."""
    usage: str
    sentence: str
    is_report: bool = False
    """What it prints is all that it does: what cannot be printed is a failure."""


COMMANDS: dict[str, Command] = {
    "attach": Command("attach", "attach [RUN_DIR]", "watch a run from another terminal, or ask it to stop"),
    "serve": Command(
        "serve", "serve [RUN_DIR]", "watch a run in a browser: loopback, a token, nothing to change unless asked"
    ),
    "stop": Command("stop", "stop [RUN_DIR]", "ask a run to save and stop"),
    "status": Command("status", "status [RUN_DIR]", "one screen of text (--json for machines)", True),
    "plan": Command(
        "plan", "plan [OPTIONS]", "what --auto with these options would do: done, reused, again and why", True
    ),
    "sweep": Command(
        "sweep", "sweep --beta 0.1,0.3 …", "several trainings on the same pairs, compared; --pick best packs one"
    ),
    "runs": Command(
        "runs", "runs [FOLDER]", "the runs in a folder: when, model, pairs, verdict, state, size (--json)", True
    ),
    "compare": Command(
        "compare", "compare RUN RUN…", "options that differ, figures, curves, answers side by side (--json)", True
    ),
    "clean": Command("clean", "clean [RUN_DIR]", "what could be removed from a run, and its size; --yes removes it"),
    "validate": Command(
        "validate", "validate PAIRS", "the quality report and the gate, on any pairs file (--json)", True
    ),
    "browse": Command("browse", "browse FILE", "browse the pairs of any file and decide about them; no run, no model"),
    "push": Command(
        "push", "push [RUN_DIR] [REPO]", "push the adapter of a finished run to the Hub, in one commit, privately"
    ),
    "doctor": Command("doctor", "doctor", "what this machine can run: driver, VRAM, disk, versions, token", True),
    "completion": Command(
        "completion", "completion SHELL", "a script that completes commands and options: bash, zsh, fish", True
    ),
    "man": Command("man", "man", "the manual page: stage3-tui man | man -l -", True),
}

WITHOUT_COMMAND: tuple[tuple[str, str], ...] = (
    ("", "the wizard; starts or continues the run in --output-dir"),
    ("--auto", "all ten stages without a terminal, for scripts and schedulers"),
    ("--demo", "with or without --auto: the embedded model; offline, no GPU, no token"),
)


def summary() -> str:
    """One line per way to call the program."""
    ways = [*WITHOUT_COMMAND, *((command.usage, command.sentence) for command in COMMANDS.values())]
    width = max(len(usage) for usage, _ in ways) + 2
    return "\n".join(f"  {PROGRAM} {usage:{width}}{sentence}" for usage, sentence in ways)
