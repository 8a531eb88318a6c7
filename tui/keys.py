"""Every key, once: this table makes the bindings, the footer, the help screen and the README's list."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from textual.binding import BindingType


class Key(NamedTuple):
    where: str
    """`app`, `list` (pairs), `choice` (a question), or `textual` (bound by the library; told here for the help)."""
    keys: str
    """As Textual names them, with commas."""
    shown: str
    """As people name them."""
    action: str
    label: str
    """In the footer; empty: not in the footer."""
    sentence: str
    group: str


RUN, MOVE, LOOK, PAIRS = "Run", "Move", "Look", "Pairs"

KEYS: tuple[Key, ...] = (
    Key("app", "r", "r", "run_stage", "run", "Run this stage, and what comes before it and is not done.", RUN),
    Key("app", "a", "a", "run_all", "run all", "Run all ten stages.", RUN),
    Key("app", "R", "R", "redo", "redo", "Do this stage and what follows again; what was made is put aside.", RUN),
    Key("app", "s", "s", "stop", "stop", "Stop and save: finish the step, write everything, end the engine.", RUN),
    Key("app", "e", "e", "edit", "options", "Edit the options of this stage, while nothing runs.", RUN),
    Key("app", "q,ctrl+c", "q", "leave", "quit", "Quit; while the engine runs, ask what becomes of it.", RUN),
    Key("app", "j,down", "j ↓", "move(1)", "", "Next stage, or next pair in a list.", MOVE),
    Key("app", "k,up", "k ↑", "move(-1)", "", "Stage before, or pair before in a list.", MOVE),
    Key("app", "right_square_bracket", "]", "move(1)", "", "Next stage, wherever the cursor is.", MOVE),
    Key("app", "left_square_bracket", "[", "move(-1)", "", "Stage before, wherever the cursor is.", MOVE),
    *(Key("app", f"{n % 10}", f"{n % 10}", f"go({n})", "", f"Stage {n}.", MOVE) for n in range(1, 11)),
    Key("app", "f", "f", "follow", "follow", "Follow the running stage again.", MOVE),
    Key("app", "pagedown,space", "PgDn", "scroll(1)", "", "Scroll down.", MOVE),
    Key("app", "pageup", "PgUp", "scroll(-1)", "", "Scroll up.", MOVE),
    Key("app", "v", "v", "next_page", "view", "Next view of this stage: its options, its pairs, its verdict.", LOOK),
    Key("app", "l", "l", "log", "log", "The log: messages of the run, and the end of run.log.", LOOK),
    Key("app", "c", "c", "copy", "copy", "Copy what this stage offers: the scp line, or the run folder.", LOOK),
    Key("app", "t", "t", "next_theme", "", "Next theme.", LOOK),
    Key("app", "question_mark", "?", "help", "help", "This list.", LOOK),
    Key(
        "app",
        "ctrl+k",
        "Ctrl+K",
        "command_palette",
        "",
        "Commands: go to a stage, theme, screenshot, copy a path.",
        LOOK,
    ),
    Key("app", "escape", "Esc", "back", "", "Back: leave a field, a list, a window.", LOOK),
    Key("textual", "tab", "Tab", "focus_next", "", "Next field or list.", MOVE),
    Key("app", "slash", "/", "filter", "", "Filter the pairs by words; !word leaves out what holds it.", PAIRS),
    Key(
        "app",
        "y",
        "y",
        "decide('accept')",
        "accept",
        "Accept this pair whatever the detectors say (in Quality).",
        PAIRS,
    ),
    Key("app", "x", "x", "decide('reject')", "reject", "Reject this pair: leave it out of the training.", PAIRS),
    Key(
        "app",
        "w",
        "w",
        "decide('flip')",
        "swap",
        "Swap draft and revision: train on the draft as the better one.",
        PAIRS,
    ),
    Key("app", "u", "u", "decide('undo')", "undo", "Take back the last decision about this pair.", PAIRS),
    Key("list", "j,down", "j ↓", "cursor('down')", "", "Next pair.", PAIRS),
    Key("list", "k,up", "k ↑", "cursor('up')", "", "Pair before.", PAIRS),
    Key("list", "pagedown,space", "PgDn", "cursor('page_down')", "", "A page down.", PAIRS),
    Key("list", "pageup", "PgUp", "cursor('page_up')", "", "A page up.", PAIRS),
    Key("list", "g,home", "g", "cursor('home')", "", "First pair.", PAIRS),
    Key("list", "G,end", "G", "cursor('end')", "", "Last pair; new ones are followed from there.", PAIRS),
    Key("list", "enter", "Enter", "open", "", "This pair on the whole screen.", PAIRS),
    Key("choice", "escape", "Esc", "dismiss_window", "", "Close a window.", LOOK),
)


def bindings(where: str) -> list[BindingType]:
    """Textual's bindings for the rows of one place."""
    from textual.binding import Binding

    return [
        Binding(key.keys, key.action, key.label, show=False, priority=key.keys == "ctrl+k")
        for key in KEYS
        if key.where == where
    ]


def footer_keys() -> tuple[Key, ...]:
    """What the footer offers, most wanted first; help is the last one and always shown."""
    return tuple(sorted((key for key in KEYS if key.label), key=lambda key: key.action == "help"))


def help_rows() -> list[tuple[str, str, str]]:
    """(group, key, sentence), with the ten digits on one row."""
    rows = []
    for group in (RUN, MOVE, LOOK, PAIRS):
        for key in KEYS:
            if key.group != group or key.where == "choice" or (key.where == "list" and key.keys[0] in "jk"):
                continue
            if key.action.startswith("go("):
                if key.shown == "1":
                    rows.append((group, "1 … 9 0", "Stage 1 to 10."))
            else:
                rows.append((group, key.shown, key.sentence))
    return rows


def keys_markdown() -> str:
    """The table for the README."""
    lines = ["| key | what it does |", "|---|---|"]
    lines += [f"| `{key}` | {sentence} |" for _, key, sentence in help_rows()]
    return "\n".join(lines) + "\n"
