"""Every key, once: this table makes the bindings, the footer, the help screen and the table in docs/wizard.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from textual.binding import BindingType


class Key(NamedTuple):
    where: str
    """Where the key works: see PLACES."""
    keys: str
    """Textual's names, separated by commas."""
    shown: str
    """The name to show."""
    action: str
    label: str
    """Label in the footer; empty: not shown there."""
    sentence: str
    group: str


RUN, MOVE, LOOK, LIST, PAIRS, OPTIONS, WRITE, LOG, CHARTS = (
    "Run", "Move", "Look", "Lists", "Pairs", "Options", "Writing", "The log", "Charts",
)  # fmt: skip

PLACES: dict[str, str] = {
    "app": "Everywhere",
    "stage": "On a stage's screen",
    "list": "In a list",
    "pairs": "Among the pairs",
    "chart": "On a chart (Tab, or a click)",
    "options": "Among the options",
    "log": "In the log",
    "text": "Writing a text",
    "field": "In a field",
    "window": "In a window",
    "textual": "Bound by Textual; listed here for the help",
}

KEYS: tuple[Key, ...] = (
    Key("app", "r", "r", "run_stage", "run", "Run this stage, and any unfinished stage before it.", RUN),
    Key("app", "a", "a", "run_all", "run all", "Run all ten stages.", RUN),
    Key("app", "R", "R", "redo", "redo", "Do this stage and all later ones again; old files are set aside.", RUN),
    Key("app", "p", "p", "plan", "", "Plan: what a start would do (done, reused, again and why), and how long.", RUN),
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
        "aside",
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
    Key("stage", "enter", "Enter", "enter", "", "Into the list or form of this screen.", MOVE),
    Key("textual", "tab", "Tab", "focus_next", "", "Next field or list.", MOVE),
    Key("app", "escape", "Esc", "back", "", "Back: leave a field, list or window.", MOVE),
    Key("stage", "v", "v", "turn(1)", "view", "Next view of this stage.", LOOK),
    Key("stage", "V", "V", "turn(-1)", "", "Previous view.", LOOK),
    Key("stage", "o", "o", "options", "options", "Options of this stage.", LOOK),
    Key("stage", "b", "b", "browse", "pairs", "Browse the pairs, from any screen.", LOOK),
    Key("stage", "d", "d", "log_in", "log in", "Credentials: log in with a browser, on any device.", LOOK),
    Key(
        "stage",
        "P",
        "P",
        "presets",
        "presets",
        "Begin with the settings of the demo, the notebook or your last run.",
        LOOK,
    ),
    Key("stage", "z", "z", "zoom", "zoom", "Charts: all steps, the newer half, the newest eighth.", LOOK),
    Key("stage", "m", "m", "smooth", "mean", "Charts: the mean over the curves, or the steps alone.", LOOK),
    Key("stage", "g", "g", "log_scale", "log scale", "Charts: the gradient norm on a log scale.", LOOK),
    Key("stage", "x", "x", "export", "export", "Charts: save them as logs/curves.csv and logs/curves.svg.", LOOK),
    Key("chart", "left", "←", "point(-1)", "", "The step before: its figures stand above each chart.", CHARTS),
    Key("chart", "right", "→", "point(1)", "", "The next step.", CHARTS),
    Key("chart", "shift+left", "⇧←", "point(-10)", "", "Ten steps back.", CHARTS),
    Key("chart", "shift+right", "⇧→", "point(10)", "", "Ten steps on.", CHARTS),
    Key("chart", "home", "Home", "point(-1000000)", "", "The first step that is shown.", CHARTS),
    Key("chart", "end", "End", "point(1000000)", "", "The newest step.", CHARTS),
    Key("stage", "n", "n", "answer(1)", "next", "Verdict: the answers to the next held-out prompt.", LOOK),
    Key("stage", "N", "N", "answer(-1)", "", "Verdict: the answers to the previous one.", LOOK),
    Key(
        "stage",
        "w",
        "w",
        "which",
        "which",
        "Verdict: which answers: all, better, worse, broken, unfit, harmful, …",
        LOOK,
    ),
    Key(
        "stage", "c", "c", "copy", "copy", "Copy the scp command of stage packaging, else the run folder's path.", LOOK
    ),
    Key("app", "l", "l", "log", "log", "The log: messages of the run, or the end of run.log.", LOOK),
    Key("app", "t", "t", "themes", "", "Themes, previewed as you move.", LOOK),
    Key("app", "ctrl+k", "Ctrl+K", "command_palette", "", "Commands, by name.", LOOK),
    Key("app", "question_mark", "?", "help", "help", "Keys that work here, then all others.", LOOK),
    Key("list", "j,down", "j ↓", "cursor('down')", "", "Next row.", LIST),
    Key("list", "k,up", "k ↑", "cursor('up')", "", "Previous row.", LIST),
    Key("list", "pagedown,space", "PgDn", "cursor('page_down')", "", "Page down.", LIST),
    Key("list", "pageup", "PgUp", "cursor('page_up')", "", "Page up.", LIST),
    Key("list", "g,home", "g", "cursor('home')", "", "First row.", LIST),
    Key("list", "G,end", "G", "cursor('end')", "", "Last row; then the cursor follows new rows.", LIST),
    Key(
        "list",
        "enter",
        "Enter",
        "open",
        "",
        "Open: a pair full screen, an option to edit, the stage of a line of the log.",
        LIST,
    ),
    Key("pairs", "slash", "/", "filter", "filter", "Filter by words, reason:, verdict:, principle:, gain>, …", PAIRS),
    Key("pairs", "n", "n", "flagged(1)", "next ✗", "Next flagged pair without a decision.", PAIRS),
    Key("pairs", "N", "N", "flagged(-1)", "", "Previous flagged pair.", PAIRS),
    Key("pairs", "S", "S", "sample", "", "The sample to decide about if no judge passed its exam.", PAIRS),
    Key("pairs", "y", "y", "decide('accept')", "accept", "Accept this pair, whatever the detectors say.", PAIRS),
    Key("pairs", "x", "x", "decide('reject')", "reject", "Reject this pair: leave it out of training.", PAIRS),
    Key("pairs", "w", "w", "decide('flip')", "swap", "Swap: train on the draft as the chosen text.", PAIRS),
    Key("pairs", "e", "e", "edit", "edit", "Edit the revision here (Ctrl+T in the editor: the draft).", PAIRS),
    Key("pairs", "E", "E", "edit_outside", "", "Edit the revision in $VISUAL or $EDITOR.", PAIRS),
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
        "Show the less common options, too, or the common ones alone.",
        OPTIONS,
    ),
    Key("options", "slash", "/", "search", "find", "Find an option by words of its label, name or sentence.", OPTIONS),
    Key("options", "d,delete", "d", "default", "default", "Reset to the default.", OPTIONS),
    Key("log", "slash", "/", "find", "find", "Find a text in the log.", LOG),
    Key("log", "n", "n", "match(1)", "next", "Next line that has it.", LOG),
    Key("log", "N", "N", "match(-1)", "", "Previous line that has it.", LOG),
    Key("log", "e", "e", "level", "level", "Every line, warnings and errors, or errors alone.", LOG),
    Key("log", "f", "f", "follow", "follow", "The last line; then the cursor follows new ones.", LOG),
    Key("log", "c", "c", "copy_line", "copy", "Copy the line.", LOG),
    Key("log", "v", "v", "other_log", "other log", "Messages of the run, or the end of run.log.", LOG),
    Key("text", "ctrl+s", "Ctrl+S", "keep", "keep", "Save the text.", WRITE),
    Key("text", "ctrl+t", "Ctrl+T", "other", "draft/revision", "Switch between draft and revision.", WRITE),
    Key("text", "escape", "Esc", "leave", "discard", "Discard the changes.", WRITE),
    Key("field", "enter", "Enter", "submit", "use it", "Use the value.", WRITE),
    Key("field", "escape", "Esc", "app.back", "leave", "Leave the field.", WRITE),
    Key("window", "escape", "Esc", "dismiss_window", "", "Close the window; so does a click outside.", MOVE),
)
"""Unused on purpose: ctrl+p and ctrl+q, with which Docker detaches, and ctrl+i and ctrl+m, which are Tab and Enter to a
terminal.
"""


def bindings(*places: str) -> list[BindingType]:
    """Textual's bindings for the rows of some places."""
    from textual.binding import Binding

    return [
        Binding(key.keys, key.action, key.label, show=False, priority=key.keys == "ctrl+k")
        for key in KEYS
        if key.where in places
    ]


def footer_keys(places: Iterable[str]) -> tuple[Key, ...]:
    """The keys of the footer for these focused places, innermost first; help is last and always shown."""
    order = {place: number for number, place in enumerate(places)}
    offered = [key for key in KEYS if key.label and key.where in order]
    return tuple(sorted(offered, key=lambda key: (key.action == "help", order[key.where])))


def help_rows(places: Iterable[str] = PLACES) -> list[tuple[str, str, str]]:
    """(group, key, sentence) of the rows of some places, with the ten digits on one row."""
    rows = []
    wanted = tuple(places)
    for group in (RUN, MOVE, LOOK, LIST, PAIRS, OPTIONS, CHARTS, LOG, WRITE):
        for key in KEYS:
            if key.group != group or key.where not in wanted:
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
