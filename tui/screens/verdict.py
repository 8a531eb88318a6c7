"""The verdict: its word, its reasons, both answers to held-out prompts, and the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual.content import Content

from engine.core.events import EvalDone
from tui.formatting import figure, one_line, safe_text
from tui.widgets.layout import EMPTY, Column, paragraph, table
from tui.widgets.side_by_side import side_by_side
from tui.widgets.stage_sections import section

READABLE = 110
STAGE2, STAGE3 = "stage2_", "stage3_"
"""Prefixes of figures that exist for both."""

WORD_MARKS: dict[str, tuple[str, str]] = {
    "better": ("▲", "$stage-done"),
    "no different": ("=", "$check-warning"),
    "worse": ("▼", "$stage-failed"),
    "cannot tell": ("?", "$check-warning"),
}


def verdict_lines(evaluation: EvalDone | None, width: int) -> list[Content]:
    if evaluation is None:
        return [EMPTY, Content.styled("The verdict follows after training, from held-out prompts.", "$muted")]
    lines = [EMPTY, _word(evaluation.verdict)]
    for reason in evaluation.reasons:
        told = Content.assemble(("· ", "$muted"), safe_text(reason, "$foreground", 600))
        lines += paragraph(told, min(width, READABLE))
    for position, sample in enumerate(evaluation.samples, start=1):
        prompt = safe_text(sample.get("prompt", ""), "$foreground", 1_000)
        lines += [EMPTY, section(f"Held-out prompt {position}", "", width), *paragraph(prompt, width)]
        lines += side_by_side(
            str(sample.get("stage2", "")), str(sample.get("stage3", "")), width, ("Stage 2", "Stage 3")
        )
    if evaluation.figures:
        lines += _figures(evaluation.figures, width)
    return lines


def _word(verdict: str) -> Content:
    word = one_line(verdict, limit=60)
    glyph, style = next(
        (mark for known, mark in WORD_MARKS.items() if word.plain.casefold().startswith(known)), ("?", "$check-warning")
    )
    return Content.assemble(
        (f" {glyph} ", f"bold {style}"),
        ("Stage 3 against Stage 2: ", "$foreground"),
        word.stylize(f"bold {style}"),
    )


def _figures(figures: Mapping[str, Any], width: int) -> list[Content]:
    """Paired figures side by side, then the others."""
    twice = [name.removeprefix(STAGE2) for name in figures if name.startswith(STAGE2)]
    both = [(_name(name), _value(figures.get(STAGE2 + name)), _value(figures.get(STAGE3 + name))) for name in twice]
    others = [(_name(name), _value(value)) for name, value in figures.items() if not name.startswith((STAGE2, STAGE3))]
    lines: list[Content] = []
    if both:
        head = tuple(Content.styled(name, "bold $heading") for name in ("", "Stage 2", "Stage 3"))
        lines += [EMPTY, section("Answers, in figures", "", width)]
        lines += table([head, *both], (Column(34), Column(14, right=True), Column()), width)
    return [
        *lines,
        EMPTY,
        section("The comparison", "held-out prompts", width),
        *table(others, (Column(34), Column()), width),
    ]


def _name(name: str) -> Content:
    return one_line(name.replace("_", " "), "$muted", 50)


def _value(value: Any) -> Content:
    return Content.styled("none" if value is None else figure(value, 4), "bold")
