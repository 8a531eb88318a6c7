"""The glyph, word and colour of every status, so that none is shown by colour alone."""

from __future__ import annotations

from typing import NamedTuple


class Mark(NamedTuple):
    glyph: str
    word: str
    style: str


STAGE_MARKS: dict[str, Mark] = {
    "waiting": Mark("·", "waiting", "$stage-waiting"),
    "running": Mark("▶", "running", "$stage-running"),
    "done": Mark("✓", "done", "$stage-done"),
    "skipped": Mark("↷", "skipped", "$stage-skipped"),
    "failed": Mark("✗", "failed", "$stage-failed"),
    "refused": Mark("⊘", "refused", "$stage-refused"),
    "stopped": Mark("■", "stopped", "$stage-stopped"),
}

CHECK_MARKS: dict[str, Mark] = {
    "ok": Mark("✓", "ok", "$check-ok"),
    "warning": Mark("!", "warning", "$check-warning"),
    "failed": Mark("✗", "failed", "$check-failed"),
    "skipped": Mark("↷", "skipped", "$check-skipped"),
}

LEVEL_MARKS: dict[str, Mark] = {
    "debug": Mark(" ", "debug", "$muted"),
    "info": Mark("·", "info", "$foreground"),
    "warning": Mark("!", "warning", "$check-warning"),
    "error": Mark("✗", "error", "$check-failed"),
}

PAIR_MARKS: dict[str, Mark] = {
    "usable": Mark("✓", "usable", "$pair-ok"),
    "out": Mark("✗", "out", "$pair-bad"),
    "accepted": Mark("✓", "accepted", "bold $pair-ok"),
    "rejected": Mark("✗", "rejected", "bold $pair-bad"),
    "swapped": Mark("⇄", "swapped", "bold $accent"),
    "edited": Mark("✎", "edited", "bold $accent"),
}

UNKNOWN = Mark("?", "unknown", "$muted")
