"""Every key, once: this table makes the bindings, the footer, the help screen and the table in docs/wizard.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from textual.binding import BindingType


class Key(NamedTuple):
    where: str
    """Whose key it is: see PLACES."""
    keys: str
    """As Textual names them, with commas."""
    shown: str
    """As people name them."""
    action: str
    label: str
    """In the footer; empty: not in the footer."""
    sentence: str
    group: str


RUN, MOVE, LOOK, LIST, PAIRS, OPTIONS, WRITE = "Run", "Move", "Look", "Lists", "Pairs", "Options", "Writing"

PLACES: dict[str, str] = {
    "app": "Everywhere",
    "stage": "On a stage's screen",
    "list": "In a list",
    "pairs": "Among the pairs",
    "options": "Among the options",
    "text": "Writing a text",
    "field": "In a field",
    "window": "In a window",
    "textual": "Bound by the library; told here for the help",
}

KEYS: tuple[Key, ...] = (
    Key("app", "r", "r", "run_stage", "run", "Run this stage, and what comes before it and is not done.", RUN),
    Key("app", "a", "a", "run_all", "run all", "Run all ten stages.", RUN),
    Key("app", "R", "R", "redo", "redo", "Do this stage and what follows again; what was made is put aside.", RUN),
    Key("app", "p", "p", "plan", "", "What a start would do: done, reused, made again and why, and how long.", RUN),
    Key("app", "s", "s", "stop", "stop", "Stop and save: finish the step, write everything, end the engine.", RUN),
    Key("app", "q,ctrl+c", "q", "leave", "quit", "Quit; while the engine runs, ask what becomes of it.", RUN),
    Key(
        "app", "ctrl+z", "Ctrl+Z", "aside", "", "Back to the shell; what runs goes on. fg brings the screen back.", RUN
    ),
    Key("stage", "j,down", "j ↓", "move(1)", "", "Next stage, or next row in a list.", MOVE),
    Key("stage", "k,up", "k ↑", "move(-1)", "", "Stage before, or row before in a list.", MOVE),
    Key("stage", "right_square_bracket", "]", "move(1)", "", "Next stage, wherever the cursor is.", MOVE),
    Key("stage", "left_square_bracket", "[", "move(-1)", "", "Stage before, wherever the cursor is.", MOVE),
    *(Key("stage", f"{n % 10}", f"{n % 10}", f"go({n})", "", f"Stage {n}.", MOVE) for n in range(1, 11)),
    Key("stage", "f", "f", "follow", "follow", "Follow the running stage again.", MOVE),
    Key("stage", "pagedown,space", "PgDn", "scroll(1)", "", "Scroll down.", MOVE),
    Key("stage", "pageup", "PgUp", "scroll(-1)", "", "Scroll up.", MOVE),
    Key("textual", "tab", "Tab", "focus_next", "", "Next field or list.", MOVE),
    Key("app", "escape", "Esc", "back", "", "Back: leave a field, a list, a window.", MOVE),
    Key("stage", "v", "v", "turn(1)", "view", "Next view of this stage.", LOOK),
    Key("stage", "V", "V", "turn(-1)", "", "View before.", LOOK),
    Key("stage", "o", "o", "options", "options", "The options of this stage.", LOOK),
    Key("stage", "b", "b", "browse", "pairs", "Browse the pairs, wherever you are.", LOOK),
    Key("stage", "d", "d", "log_in", "log in", "Credentials: log in with a browser, on any device.", LOOK),
    Key("stage", "z", "z", "zoom", "zoom", "Charts: all steps, the newer half, the newest eighth.", LOOK),
    Key("stage", "c", "c", "copy", "copy", "Copy what this stage offers: the scp line, or the run folder.", LOOK),
    Key("app", "l", "l", "log", "log", "The log: messages of the run, and the end of run.log.", LOOK),
    Key("app", "t", "t", "themes", "", "Themes, each worn while the cursor is on it.", LOOK),
    Key("app", "ctrl+k", "Ctrl+K", "command_palette", "", "Commands, by name.", LOOK),
    Key("app", "question_mark", "?", "help", "help", "The keys of what has the focus, then all others.", LOOK),
    Key("list", "j,down", "j ↓", "cursor('down')", "", "Next row.", LIST),
    Key("list", "k,up", "k ↑", "cursor('up')", "", "Row before.", LIST),
    Key("list", "pagedown,space", "PgDn", "cursor('page_down')", "", "A page down.", LIST),
    Key("list", "pageup", "PgUp", "cursor('page_up')", "", "A page up.", LIST),
    Key("list", "g,home", "g", "cursor('home')", "", "First row.", LIST),
    Key("list", "G,end", "G", "cursor('end')", "", "Last row; new ones are followed from there.", LIST),
    Key("list", "enter", "Enter", "open", "", "Open: a pair on the whole screen, an option to edit.", LIST),
    Key("pairs", "slash", "/", "filter", "filter", "Filter by words, reason:, verdict:, principle:, gain>, …", PAIRS),
    Key("pairs", "n", "n", "flagged(1)", "next ✗", "Next pair that is flagged and not decided on.", PAIRS),
    Key("pairs", "N", "N", "flagged(-1)", "", "The flagged pair before.", PAIRS),
    Key("pairs", "S", "S", "sample", "", "The sample to decide about where no judge can judge.", PAIRS),
    Key("pairs", "y", "y", "decide('accept')", "accept", "Accept this pair whatever the detectors say.", PAIRS),
    Key("pairs", "x", "x", "decide('reject')", "reject", "Reject this pair: leave it out of the training.", PAIRS),
    Key("pairs", "w", "w", "decide('flip')", "swap", "Swap: train on the draft as the better one.", PAIRS),
    Key("pairs", "e", "e", "edit", "edit", "Edit the revision here (Ctrl+T in the editor: the draft).", PAIRS),
    Key("pairs", "E", "E", "edit_outside", "", "Edit the revision in $VISUAL or $EDITOR.", PAIRS),
    Key("pairs", "m", "m", "note", "note", "Write a note about this pair.", PAIRS),
    Key("pairs", "u", "u", "undo", "undo", "Take the last decision back.", PAIRS),
    Key("pairs", "greater_than_sign", ">", "sort(1)", "sort", "Sort by the next column.", PAIRS),
    Key("pairs", "less_than_sign", "<", "reverse", "", "The other way round.", PAIRS),
    Key("options", "left", "←", "choose(-1)", "", "The choice before.", OPTIONS),
    Key("options", "right", "→", "choose(1)", "", "The next choice; yes or no.", OPTIONS),
    Key("options", "d,delete", "d", "default", "default", "Back to the default.", OPTIONS),
    Key("text", "ctrl+s", "Ctrl+S", "keep", "keep", "Keep what was written.", WRITE),
    Key("text", "ctrl+t", "Ctrl+T", "other", "draft/revision", "The other text: draft or revision.", WRITE),
    Key("text", "escape", "Esc", "leave", "leave", "Leave it as it was.", WRITE),
    Key("field", "enter", "Enter", "submit", "use it", "Use what was typed.", WRITE),
    Key("field", "escape", "Esc", "app.back", "leave", "Leave the field.", WRITE),
    Key("window", "escape", "Esc", "dismiss_window", "", "Close a window; a click beside it does, too.", MOVE),
)
"""Textual's own ctrl+p and ctrl+q are the two keys with which Docker detaches: they are nobody's here. Nor are ctrl+i and
ctrl+m, which are Tab and Enter to a terminal.
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
    """What the footer offers while these places have the focus, the innermost first; help comes last and is always shown."""
    order = {place: number for number, place in enumerate(places)}
    offered = [key for key in KEYS if key.label and key.where in order]
    return tuple(sorted(offered, key=lambda key: (key.action == "help", order[key.where])))


def help_rows(places: Iterable[str] = PLACES) -> list[tuple[str, str, str]]:
    """(group, key, sentence) of the rows of some places, with the ten digits on one row."""
    rows = []
    wanted = tuple(places)
    for group in (RUN, MOVE, LOOK, LIST, PAIRS, OPTIONS, WRITE):
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
