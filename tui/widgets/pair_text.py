"""One pair as text: the conversation, the critique, and draft against revision with the changed words marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual.content import Content

from engine.text import visible
from tui.widgets.diff import word_diff
from tui.widgets.layout import EMPTY, beside, paragraph
from tui.widgets.parts import section
from tui.widgets.words import TEXT_SHOWN, foreign, line, number, plural

SIDE_BY_SIDE = 84
"""Narrower than this, draft and revision are stacked."""


def pair_lines(record: Mapping[str, Any], title: str, decided: str, width: int) -> list[Content]:
    """All of a record of `pairs.jsonl`; every key may be missing, or of another type."""
    lines = [_first_line(record, title, decided).truncate(width, ellipsis=True)]
    facts = _facts(record)
    if facts:
        lines += paragraph(Content.styled(facts, "$muted"), width)
    lines += [EMPTY, section("Conversation", "", width), *_conversation(record, width)]
    lines += [EMPTY, *draft_and_revision(_text(record, "base_response"), _text(record, "revised_response"), width)]
    critique = _text(record, "critic_notes")
    if critique:
        lines += [EMPTY, section("Critique", "", width), *paragraph(foreign(critique), width)]
    return lines


def draft_and_revision(
    draft: str, revision: str, width: int, names: tuple[str, str] = ("Draft", "Revision")
) -> list[Content]:
    """Side by side where there is room, with the words marked that only one of them has."""
    old, new, common = word_diff(
        visible(draft[:TEXT_SHOWN]).expandtabs(4), visible(revision[:TEXT_SHOWN]).expandtabs(4)
    )
    said = (
        "identical" if draft == revision else "" if common is None else f"{100 * common:.0f} % of the words in common"
    )
    old = old or Content.styled("(nothing)", "$muted")
    new = new or Content.styled("(nothing)", "$muted")
    if width < SIDE_BY_SIDE:
        return [
            section(names[0], "", width),
            *paragraph(old, width),
            EMPTY,
            section(names[1], said, width),
            *paragraph(new, width),
        ]
    half = (width - 3) // 2
    left = [section(names[0], "", half), *paragraph(old, half)]
    right = [section(names[1], said, width - half - 3), *paragraph(new, width - half - 3)]
    return beside(left, right, half)


def _first_line(record: Mapping[str, Any], title: str, decided: str) -> Content:
    status = str(record.get("status") or "ok")
    ok = status == "ok"
    attempts = record.get("attempts")
    return Content.assemble(
        (title, "bold $heading"),
        "   ",
        ("✓ usable" if ok else "✗ ", "bold $pair-ok" if ok else "bold $pair-bad"),
        line("" if ok else status, "bold $pair-bad", 40),
        (f"   {plural(attempts, 'attempt')}" if isinstance(attempts, int) else "", "$muted"),
        ("   " if decided else "", ""),
        line(decided, "bold $accent", 60),
    )


def _facts(record: Mapping[str, Any]) -> str:
    facts = []
    principles = record.get("principle_ids")
    if isinstance(principles, (list, tuple)) and principles:
        facts.append("principles " + ", ".join(line(one, limit=40).plain for one in principles))
    if record.get("base_score") is not None and record.get("revised_score") is not None:
        facts.append(f"scored {number(record['base_score']):.2f} → {number(record['revised_score']):.2f}")
    if record.get("chosen") and record.get("chosen") != "revised":
        facts.append(f"chosen: {line(record['chosen'], limit=20).plain}")
    finish = record.get("finish")
    if isinstance(finish, Mapping):
        facts += [line(f"{step} {how}", limit=40).plain for step, how in finish.items() if how != "stopped"]
    if record.get("id"):
        facts.append(line(record["id"], limit=40).plain)
    return " · ".join(facts)


def _conversation(record: Mapping[str, Any], width: int) -> list[Content]:
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        messages = [{"role": "user", "content": record.get("prompt") or ""}]
    lines = []
    for message in messages:
        role = message.get("role", "?") if isinstance(message, Mapping) else "?"
        content = message.get("content", "") if isinstance(message, Mapping) else message
        lines += paragraph(Content.assemble(line(role, "bold $muted", 12), "  ", foreign(content)), width)
    return lines


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    return "" if value is None else str(value)
