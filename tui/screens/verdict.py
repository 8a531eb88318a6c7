"""The verdict: its word in large letters, one sentence, the three figures that decide it, and all figures below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual.content import Content

from engine.core.events import EvalDone
from engine.dpo.evaluation.key_figures import key_figures
from tui.formatting import figure, one_line, percent, safe_text
from tui.widgets.big_word import big_word, hero
from tui.widgets.interval_bar import interval_lines
from tui.widgets.layout import EMPTY, Column, paragraph, table
from tui.widgets.stage_sections import section

READABLE = 110
STAGE2, STAGE3 = "stage2_", "stage3_"
"""Prefixes of the figures that exist for both stages."""

WORD_STYLES = {
    "better": "$stage-done",
    "no different": "$check-warning",
    "worse": "$stage-failed",
    "cannot tell": "$check-warning",
}


def verdict_lines(
    evaluation: EvalDone | None, width: int, *, compact: bool = False, plain: bool = False
) -> list[Content]:
    """The word, the sentence, and the deciding figures.

    compact   leave out blank lines
    plain     use no block characters
    """
    gap = [] if compact else [EMPTY]
    if evaluation is None:
        return [EMPTY, Content.styled("The verdict follows after training, from held-out prompts.", "$muted")]
    lines = [EMPTY, *word_lines(evaluation, width, plain=plain)]
    figures = key_figures(evaluation.rule, evaluation.figures)
    return [*lines, EMPTY, *interval_lines(figures, width), *gap] if figures else [*lines, *gap]


def word_lines(evaluation: EvalDone, width: int, *, plain: bool = False) -> list[Content]:
    """The word, large, and the reason, in one sentence."""
    word = one_line(evaluation.verdict, limit=40).plain
    prompts = evaluation.figures.get("prompts")
    about = "Stage 3 against Stage 2" + (f", on {figure(prompts)} held-out prompts" if isinstance(prompts, int) else "")
    reason = safe_text(evaluation.reasons[0] if evaluation.reasons else "", "bold $foreground", 600)
    large = big_word(word, WORD_STYLES.get(word, "$check-warning"), plain=plain)
    return hero(large, Content.styled(about, "$muted"), reason, min(width, READABLE))


def evidence_lines(evaluation: EvalDone, summary: str, width: int) -> list[Content]:
    """The measurements in sentences, then every figure."""
    evidence = [*evaluation.reasons[1:], *([summary] if summary else [])]
    lines = [EMPTY, section("Evidence", "", width)] if evidence else []
    for reason in evidence:
        wrapped = paragraph(safe_text(reason, "$foreground", 600), min(width, READABLE) - 2)
        lines += [Content.styled("· " if number == 0 else "  ", "$muted") + line for number, line in enumerate(wrapped)]
    return [*lines, *(_figures(evaluation.figures, width) if evaluation.figures else ())]


def _figures(figures: Mapping[str, Any], width: int) -> list[Content]:
    """The figures of both stages side by side, then the others."""
    paired = [name.removeprefix(STAGE2) for name in figures if name.startswith(STAGE2)]
    both = [
        (_name(name), _value(name, figures.get(STAGE2 + name)), _value(name, figures.get(STAGE3 + name)))
        for name in paired
    ]
    others = [
        (_name(name), _value(name, value)) for name, value in figures.items() if not name.startswith((STAGE2, STAGE3))
    ]
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


def _value(name: str, value: Any) -> Content:
    """A figure as text; a share is in percent."""
    is_share = "_share" in name or name.startswith("reward_accuracy")
    text = percent(value) if is_share and isinstance(value, float) else figure(value, 4)
    return Content.styled("not measured" if value is None else text, "bold")
