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
    """Printing is all that the command does, so output that cannot be written is a failure."""


COMMANDS: dict[str, Command] = {
    "attach": Command("attach", "attach [RUN_DIR]", "watch a run from another terminal, or ask it to stop"),
    "serve": Command("serve", "serve [RUN_DIR]", "watch a run in a browser, on loopback and with a token"),
    "stop": Command("stop", "stop [RUN_DIR]", "ask a run to save and stop"),
    "status": Command("status", "status [RUN_DIR]", "print the state of a run on one screen (--json)", True),
    "plan": Command("plan", "plan [OPTIONS]", "show what --auto with these options would do, and why", True),
    "sweep": Command(
        "sweep", "sweep --beta 0.1,0.3 …", "train several times on the same pairs and compare; --pick best packs one"
    ),
    "runs": Command("runs", "runs [FOLDER]", "list runs: time, model, pairs, verdict, state, size (--json)", True),
    "compare": Command(
        "compare", "compare RUN RUN…", "compare options, figures, curves and answers side by side (--json)", True
    ),
    "clean": Command("clean", "clean [RUN_DIR]", "list what can be removed from a run, with sizes; --yes removes it"),
    "validate": Command(
        "validate", "validate PAIRS", "print the quality report and the gate for any file of pairs (--json)", True
    ),
    "browse": Command("browse", "browse FILE", "browse the pairs of any file and decide about them; no run, no model"),
    "push": Command(
        "push", "push [RUN_DIR] [REPO]", "push the adapter of a finished run to the Hub, private by default"
    ),
    "doctor": Command("doctor", "doctor", "check what this machine can run: driver, VRAM, disk, versions, token", True),
    "completion": Command("completion", "completion SHELL", "print a completion script for bash, zsh or fish", True),
    "man": Command("man", "man", "print the manual page: stage3-tui man | man -l -", True),
}

WITHOUT_COMMAND: tuple[tuple[str, str], ...] = (
    ("", "open the wizard, which starts or continues the run in --output-dir"),
    ("--auto", "run all ten stages without a terminal, for scripts and schedulers"),
    ("--demo", "use the embedded model: offline, no GPU, no token; works with --auto, too"),
)


def summary() -> str:
    """One line per way to call the program."""
    ways = [*WITHOUT_COMMAND, *((command.usage, command.sentence) for command in COMMANDS.values())]
    width = max(len(usage) for usage, _ in ways) + 2
    return "\n".join(f"  {PROGRAM} {usage:{width}}{sentence}" for usage, sentence in ways)
