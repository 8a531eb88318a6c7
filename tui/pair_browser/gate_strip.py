"""The gate in a line or two above the pairs: its current figures, and their change since the first decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.content import Content

from engine.pairs.assessment.gate import Figure, failed
from tui.widgets.layout import flow
from tui.widgets.marks import CHECK_MARKS

SHORT = {
    "usable_share": "usable",
    "training_pairs": "to train",
    "longer_share": "longer",
    "shared_prompt_share": "shared",
    "relevant_share": "relevant",
    "improved_share": "improved",
    "better_by_people": "by people",
    "identical_share": "identical",
    "meta_share": "meta",
    "principle_share": "top principle",
}
WITH_THRESHOLDS = 120
"""Minimum cells to show each figure's threshold beside it."""


def gate_lines(
    figures: Sequence[Figure],
    accepted: bool,
    before: Mapping[str, float | None],
    unchecked: int,
    total: int,
    width: int,
) -> list[Content]:
    """The gate, its figures, and the progress of the detectors.

    before    the figures at the first decision, by name; changes since then are shown
    unchecked  the number of rows that the detectors have not checked yet
    """
    if not total:
        return [Content.styled("Gate: no pairs yet.", "$muted")]
    if unchecked:
        head = Content.styled(f"Gate: checking {total - unchecked:,} of {total:,}  ", "$check-warning")
    else:
        head = _gate_status(figures, accepted)
    return flow([head, *(_chip(figure, before, width >= WITH_THRESHOLDS) for figure in figures)], width)


def _gate_status(figures: Sequence[Figure], accepted: bool) -> Content:
    if not failed(list(figures)):
        return Content.styled("Gate ✓ open  ", "bold $check-ok")
    if accepted:
        return Content.styled("Gate ✓ opened by you  ", "bold $check-warning")
    return Content.styled("Gate ⊘ shut  ", "bold $check-failed")


def _chip(figure: Figure, before: Mapping[str, float | None], with_threshold: bool) -> Content:
    status = {True: "ok", None: "skipped", False: "failed" if figure.refuses else "warning"}[figure.passes]
    mark = CHECK_MARKS[status]
    sign = "≥" if figure.bound == "at least" else "≤"
    return Content.assemble(
        (f"{mark.glyph} ", f"bold {mark.style}"),
        (f"{SHORT.get(figure.name, figure.name.replace('_', ' '))} ", "$muted"),
        (
            number(figure.value, "not decided" if figure.needed else "not scored"),
            "bold" if figure.passes is not False else f"bold {mark.style}",
        ),
        (_change(figure, before), "$accent"),
        (f" {sign} {number(figure.threshold)}" if with_threshold else "", "$muted"),
        "   ",
    )


def _change(figure: Figure, before: Mapping[str, float | None]) -> str:
    old = before.get(figure.name)
    if old is None or figure.value is None or old == figure.value:
        return ""
    change = figure.value - old
    if not isinstance(figure.threshold, float):
        return f" ({change:+,.0f})"
    return f" ({100 * change:+.1f})" if abs(change) >= 0.0005 else f" ({'+' if change > 0 else '-'})"


def number(value: float | None, missing: str = "not scored") -> str:
    if value is None:
        return missing
    return f"{100 * value:.1f} %" if isinstance(value, float) else f"{value:,}"
