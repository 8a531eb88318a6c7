"""All keys in one table, from which the bindings, the footer, the help screen and the table in docs/wizard.md are made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from textual.binding import BindingType


class Key(NamedTuple):
    place: str
    """Where the key works: see PLACES."""
    keys: str
    """Textual's names of the keys, separated by commas."""
    shown: str
    """The name shown to the user."""
    action: str
    label: str
    """The label in the footer; a key without one is not shown there."""
    sentence: str
    group: str


RUN, MOVE, VIEW, LIST, PAIRS, OPTIONS, WRITE, LOG, CHARTS = (
    "Run", "Move", "View", "Lists", "Pairs", "Options", "Writing", "The log", "Charts",
)  # fmt: skip

PLACES: dict[str, str] = {
    "app": "Everywhere",
    "stage": "On a stage's screen",
    "list": "In a list",
    "pairs": "In the list of pairs",
    "chart": "On a chart (Tab, or a click)",
    "options": "In the options",
    "log": "In the log",
    "text": "In the text editor",
    "field": "In a field",
    "window": "In a window",
    "textual": "Bound by Textual; listed here for the help",
}

KEYS: tuple[Key, ...] = (
    Key("app", "r", "r", "run_stage", "run", "Run this stage, and any unfinished stage before it.", RUN),
    Key("app", "a", "a", "run_all", "run all", "Run all ten stages.", RUN),
    Key("app", "R", "R", "redo", "redo", "Do this stage and all later ones again; old files are set aside.", RUN),
    Key("app", "p", "p", "plan", "", "Plan: what a start would reuse or do again, why, and how long it takes.", RUN),
    Key("app", "s", "s", "stop", "stop", "Stop and save: finish the step, write everything, end the run.", RUN),
    Key(
        "app",
        "q,ctrl+c",
        "q",
        "leave",
        "quit",
        "Quit; while the run is active, choose to stop it or leave it running.",
        RUN,
    ),
    Key(
        "app",
        "ctrl+z",
        "Ctrl+Z",
        "suspend",
        "",
        "Return to the shell; the run continues. fg brings the screen back.",
        RUN,
    ),
    Key("stage", "j,down", "j ↓", "move(1)", "", "Next stage, or next row in a list.", MOVE),
    Key("stage", "k,up", "k ↑", "move(-1)", "", "Previous stage, or previous row in a list.", MOVE),
    Key("stage", "right_square_bracket", "]", "move(1)", "", "Next stage, wherever the cursor is.", MOVE),
    Key("stage", "left_square_bracket", "[", "move(-1)", "", "Previous stage, wherever the cursor is.", MOVE),
    *(Key("stage", f"{n % 10}", f"{n % 10}", f"go({n})", "", f"Stage {n}.", MOVE) for n in range(1, 11)),
    Key("stage", "f", "f", "follow", "follow", "Follow the running stage again.", MOVE),
    Key("stage", "pagedown,space", "PgDn", "scroll(1)", "", "Scroll down.", MOVE),
    Key("stage", "pageup", "PgUp", "scroll(-1)", "", "Scroll up.", MOVE),
    Key("stage", "enter", "Enter", "enter", "", "Enter the list or form of this screen.", MOVE),
    Key("textual", "tab", "Tab", "focus_next", "", "Next field or list.", MOVE),
    Key("app", "escape", "Esc", "back", "", "Back: leave a field, list or window.", MOVE),
    Key("stage", "v", "v", "turn(1)", "view", "Next view of this stage.", VIEW),
    Key("stage", "V", "V", "turn(-1)", "", "Previous view.", VIEW),
    Key("stage", "o", "o", "options", "options", "Options of this stage.", VIEW),
    Key("stage", "b", "b", "browse", "pairs", "Browse the pairs, from any screen.", VIEW),
    Key("stage", "d", "d", "log_in", "log in", "Credentials: log in with a browser, on any device.", VIEW),
    Key(
        "stage",
        "P",
        "P",
        "presets",
        "presets",
        "Start from the settings of the demo, the notebook or your last run.",
        VIEW,
    ),
    Key("stage", "z", "z", "zoom", "zoom", "Charts: all steps, the newer half, the newest eighth.", VIEW),
    Key("stage", "m", "m", "smooth", "mean", "Charts: show or hide the moving average.", VIEW),
    Key("stage", "g", "g", "log_scale", "log scale", "Charts: the gradient norm on a log scale.", VIEW),
    Key("stage", "x", "x", "export", "export", "Charts: save them as logs/curves.csv and logs/curves.svg.", VIEW),
    Key("chart", "left", "←", "point(-1)", "", "Previous step; its figures appear above each chart.", CHARTS),
    Key("chart", "right", "→", "point(1)", "", "Next step.", CHARTS),
    Key("chart", "shift+left", "⇧←", "point(-10)", "", "Ten steps back.", CHARTS),
    Key("chart", "shift+right", "⇧→", "point(10)", "", "Ten steps forward.", CHARTS),
    Key("chart", "home", "Home", "point(-1000000)", "", "First visible step.", CHARTS),
    Key("chart", "end", "End", "point(1000000)", "", "Newest step.", CHARTS),
    Key("stage", "n", "n", "answer(1)", "next", "Verdict: answers to the next held-out prompt.", VIEW),
    Key("stage", "N", "N", "answer(-1)", "", "Verdict: answers to the previous held-out prompt.", VIEW),
    Key(
        "stage",
        "w",
        "w",
        "filter_answers",
        "filter",
        "Verdict: filter the answers: all, better, worse, broken, unfit, harmful, …",
        VIEW,
    ),
    Key(
        "stage", "c", "c", "copy", "copy", "Copy the scp command of stage packaging, else the run folder's path.", VIEW
    ),
    Key("app", "l", "l", "log", "log", "The log: messages of the run, or the end of run.log.", VIEW),
    Key("app", "t", "t", "themes", "", "Themes, previewed as you move.", VIEW),
    Key("app", "ctrl+k", "Ctrl+K", "command_palette", "", "Command palette: find a command by name.", VIEW),
    Key("app", "question_mark", "?", "help", "help", "Keys that work here, then all others.", VIEW),
    Key("list", "j,down", "j ↓", "cursor('down')", "", "Next row.", LIST),
    Key("list", "k,up", "k ↑", "cursor('up')", "", "Previous row.", LIST),
    Key("list", "pagedown,space", "PgDn", "cursor('page_down')", "", "Page down.", LIST),
    Key("list", "pageup", "PgUp", "cursor('page_up')", "", "Page up.", LIST),
    Key("list", "g,home", "g", "cursor('home')", "", "First row.", LIST),
    Key("list", "G,end", "G", "cursor('end')", "", "Last row; from there the cursor follows new rows.", LIST),
    Key(
        "list",
        "enter",
        "Enter",
        "open",
        "",
        "Open: show a pair full screen, edit an option, or go to the stage of a log line.",
        LIST,
    ),
    Key("pairs", "slash", "/", "filter", "filter", "Filter by words, reason:, verdict:, principle:, gain>, …", PAIRS),
    Key("pairs", "n", "n", "flagged(1)", "next ✗", "Next flagged pair without a decision.", PAIRS),
    Key("pairs", "N", "N", "flagged(-1)", "", "Previous flagged pair.", PAIRS),
    Key("pairs", "S", "S", "sample", "", "Show the sample to decide about if no judge passed its exam.", PAIRS),
    Key("pairs", "y", "y", "decide('accept')", "accept", "Accept this pair, whatever the detectors say.", PAIRS),
    Key("pairs", "x", "x", "decide('reject')", "reject", "Reject this pair: leave it out of training.", PAIRS),
    Key("pairs", "w", "w", "decide('flip')", "swap", "Swap: train on the draft as the chosen text.", PAIRS),
    Key("pairs", "e", "e", "edit", "edit", "Edit the revision here (Ctrl+T in the editor: the draft).", PAIRS),
    Key("pairs", "E", "E", "edit_externally", "", "Edit the revision in $VISUAL or $EDITOR.", PAIRS),
    Key("pairs", "m", "m", "note", "note", "Write a note about this pair.", PAIRS),
    Key("pairs", "u", "u", "undo", "undo", "Undo the last decision.", PAIRS),
    Key("pairs", "greater_than_sign", ">", "sort(1)", "sort", "Sort by the next column.", PAIRS),
    Key("pairs", "less_than_sign", "<", "reverse", "", "Reverse the order.", PAIRS),
    Key("options", "left", "←", "choose(-1)", "", "Previous choice.", OPTIONS),
    Key("options", "right", "→", "choose(1)", "", "Next choice; toggles yes and no.", OPTIONS),
    Key(
        "options",
        "full_stop",
        ".",
        "rest",
        "all",
        "Show all options, or only the common ones.",
        OPTIONS,
    ),
    Key("options", "slash", "/", "search", "find", "Search labels, names and descriptions.", OPTIONS),
    Key("options", "d,delete", "d", "default", "default", "Reset to the default.", OPTIONS),
    Key("log", "slash", "/", "find", "find", "Search the log.", LOG),
    Key("log", "n", "n", "match(1)", "next", "Next match.", LOG),
    Key("log", "N", "N", "match(-1)", "", "Previous match.", LOG),
    Key("log", "e", "e", "level", "level", "Show all lines, warnings and errors, or errors only.", LOG),
    Key("log", "f", "f", "follow", "follow", "Last line; from there the cursor follows new lines.", LOG),
    Key("log", "c", "c", "copy_line", "copy", "Copy the line.", LOG),
    Key("log", "v", "v", "other_log", "other log", "Messages of the run, or the end of run.log.", LOG),
    Key("text", "ctrl+s", "Ctrl+S", "save", "save", "Save the text.", WRITE),
    Key("text", "ctrl+t", "Ctrl+T", "switch", "draft/revision", "Switch between draft and revision.", WRITE),
    Key("text", "escape", "Esc", "discard", "discard", "Discard the changes.", WRITE),
    Key("field", "enter", "Enter", "submit", "use it", "Use the value.", WRITE),
    Key("field", "escape", "Esc", "app.back", "leave", "Leave the field.", WRITE),
    Key("window", "escape", "Esc", "dismiss_window", "", "Close the window; so does a click outside.", MOVE),
)
"""Unused on purpose: ctrl+p and ctrl+q, with which Docker detaches, and ctrl+i and ctrl+m, which a terminal sends for Tab
and Enter.
"""


def bindings(*places: str) -> list[BindingType]:
    """Textual's bindings for the keys of the given places."""
    from textual.binding import Binding

    return [
        Binding(key.keys, key.action, key.label, show=False, priority=key.keys == "ctrl+k")
        for key in KEYS
        if key.place in places
    ]


def footer_keys(places: Iterable[str]) -> tuple[Key, ...]:
    """The keys to show in the footer for the focused places, innermost first; help is last and always shown."""
    order = {place: number for number, place in enumerate(places)}
    offered = [key for key in KEYS if key.label and key.place in order]
    return tuple(sorted(offered, key=lambda key: (key.action == "help", order[key.place])))


def help_rows(places: Iterable[str] = PLACES) -> list[tuple[str, str, str]]:
    """(group, key, sentence) for the keys of the given places; the ten digits share one row."""
    rows = []
    included = tuple(places)
    for group in (RUN, MOVE, VIEW, LIST, PAIRS, OPTIONS, CHARTS, LOG, WRITE):
        for key in KEYS:
            if key.group != group or key.place not in included:
                continue
            if key.action.startswith("go("):
                if key.shown == "1":
                    rows.append((group, "1 … 9 0", "Stage 1 to 10."))
            else:
                rows.append((group, key.shown, key.sentence))
    return rows


def keys_markdown() -> str:
    """The table for docs/wizard.md."""
    lines = ["| key | what it does |", "|---|---|"]
    lines += [f"| `{key}` | {sentence} |" for _, key, sentence in help_rows()]
    return "\n".join(lines) + "\n"
