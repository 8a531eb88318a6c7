"""Decisions about pairs, compared with a plain list: written, undone, cut off by a crash, and read again."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.pairs.data.edits import Decision, read_edits, write_edit
from tests.properties.values import PRINTABLE_TEXT

PAIRS = st.sampled_from(["a", "b", "c"])
TEXT = PRINTABLE_TEXT.map(lambda text: text if text.strip() else f"{text}x")

Edit = tuple[str, str, str | None, str | None]
"""Pair, action, text, field."""


def expected_decisions(edits: list[Edit]) -> dict[str, Decision]:
    """The decisions that a person who remembers every edit expects."""
    kept: list[Edit] = []
    for edit in edits:
        if edit[1] != "undo":
            kept.append(edit)
            continue
        last = next((index for index in reversed(range(len(kept))) if kept[index][0] == edit[0]), None)
        if last is not None:
            kept.pop(last)
    decisions: dict[str, Decision] = {}
    for pair, action, text, field in kept:
        decision = decisions.get(pair, Decision())
        changes = {
            "accept": {"accepted": True},
            "reject": {"accepted": False},
            "flip": {"flipped": not decision.flipped},
            "edit": {field or "revised_response": text},
            "note": {"note": text},
        }[action]
        decisions[pair] = replace(decision, **changes)  # type: ignore[arg-type]
    return decisions


class EditHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "edits.jsonl"
        self.edits: list[Edit] = []

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def _write(self, *edit: str | None) -> None:
        pair, action, text, field = edit
        write_edit(self.path, str(pair), str(action), text, field=field)
        self.edits.append((str(pair), str(action), text, field))

    @rule(pair=PAIRS, action=st.sampled_from(["accept", "reject", "flip", "undo"]))
    def decide(self, pair: str, action: str) -> None:
        self._write(pair, action, None, None)

    @rule(pair=PAIRS, text=TEXT, field=st.sampled_from([None, "revised_response", "base_response"]))
    def edit(self, pair: str, text: str, field: str | None) -> None:
        self._write(pair, "edit", text, field)

    @rule(pair=PAIRS, text=TEXT)
    def note(self, pair: str, text: str) -> None:
        self._write(pair, "note", text, None)

    @precondition(lambda self: self.edits and self.path.read_bytes().endswith(b"\n"))
    @rule(share=st.floats(0, 0.99))
    def crash_during_the_last_edit(self, share: float) -> None:
        """The last edit was never acknowledged; all edits before it stay."""
        content = self.path.read_bytes()
        start = content.rstrip(b"\n").rfind(b"\n") + 1
        self.path.write_bytes(content[: start + int(share * (len(content) - 1 - start))])
        self.edits.pop()

    @invariant()
    def decisions_match_the_list(self) -> None:
        edits = read_edits(self.path)
        assert edits.decisions == expected_decisions(self.edits) and edits.damaged == ()


EditHistory.TestCase.settings = settings(max_examples=15, stateful_step_count=12)
TestEditHistory = pytest.mark.fault("C1")(EditHistory.TestCase)
