"""One pair as text: the conversation, the critique, and draft against revision with the changed words marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual.content import Content

from engine.core.wording import plural
from engine.pairs.data.edits import Decision
from engine.pairs.data.record import text_labels
from tui.formatting import one_line, safe_text
from tui.pair_browser.rows import PairRow, text_of
from tui.widgets.layout import EMPTY, paragraph
from tui.widgets.marks import PAIR_MARKS
from tui.widgets.side_by_side import side_by_side
from tui.widgets.stage_sections import section


def pair_lines(record: Mapping[str, Any], row: PairRow, width: int) -> list[Content]:
    """All of a record of `pairs.jsonl`, after edits; any key may be missing or of another type."""
    decision = row.decision or Decision()
    lines = [_first_line(record, row).truncate(width, ellipsis=True)]
    facts = _facts(record, row)
    if facts:
        lines += paragraph(Content.styled(facts, "$muted"), width)
    if decision.note:
        lines += paragraph(Content.assemble(("Note  ", "bold $accent"), safe_text(decision.note)), width)
    lines += [EMPTY, section("Conversation", "", width), *_conversation(record, width)]
    draft = text_of(record, "base_response") if decision.base_response is None else decision.base_response
    revision = text_of(record, "revised_response") if decision.revised_response is None else decision.revised_response
    lines += [EMPTY, *side_by_side(draft, revision, width, _names(record, decision))]
    critique = text_of(record, "critic_notes")
    if critique:
        lines += [EMPTY, section("Critique", "", width), *paragraph(safe_text(critique), width)]
    return lines


def _names(record: Mapping[str, Any], decision: Decision) -> tuple[str, str]:
    """The names of draft and revision, each with what a person decided about it."""
    draft_is_better = (record.get("chosen") == "base") != decision.flipped
    names = []
    draft, revision = text_labels(record.get("method"))
    for name, edited, better in (
        (draft, decision.base_response is not None, draft_is_better),
        (revision, decision.revised_response is not None, False),
    ):
        notes = [word for word, applies in (("edited", edited), ("chosen", better)) if applies]
        names.append(f"{name} ({', '.join(notes)})" if notes else name)
    return names[0], names[1]


def _first_line(record: Mapping[str, Any], row: PairRow) -> Content:
    attempts = record.get("attempts")
    reasons = ", ".join(one_line(reason, limit=40).plain for reason in row.reasons)
    mark = PAIR_MARKS[row.state]
    return Content.assemble(
        (f"Pair {row.line.number + 1:,}   ", "bold $heading"),
        (f"{mark.glyph} {mark.word}", mark.style if "bold" in mark.style else f"bold {mark.style}"),
        (f"   {reasons}" if reasons else "", "$pair-bad"),
        (f"   {plural(attempts, 'attempt')}" if isinstance(attempts, int) else "", "$muted"),
    )


def _facts(record: Mapping[str, Any], row: PairRow) -> str:
    facts = []
    if isinstance(method := record.get("method"), str) and method:
        facts.append(one_line(method, limit=40).plain)
    if row.principles:
        facts.append("principles " + ", ".join(row.principles))
    if row.score is not None and row.gain is not None:
        facts.append(f"scored {row.score - row.gain:.2f} → {row.score:.2f}")
    finish = record.get("finish")
    if isinstance(finish, Mapping):
        facts += [one_line(f"{step} {how}", limit=40).plain for step, how in finish.items() if how != "stopped"]
    if row.id:
        facts.append(one_line(row.id, limit=40).plain)
    return " · ".join(facts)


def _conversation(record: Mapping[str, Any], width: int) -> list[Content]:
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        messages = [{"role": "user", "content": record.get("prompt") or ""}]
    lines = []
    for message in messages:
        role = message.get("role", "?") if isinstance(message, Mapping) else "?"
        content = message.get("content", "") if isinstance(message, Mapping) else message
        lines += paragraph(Content.assemble(one_line(role, "bold $muted", 12), "  ", safe_text(content)), width)
    return lines
