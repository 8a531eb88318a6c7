"""The answers of both stages to one held-out prompt at a time, side by side, with a filter by kind."""

from __future__ import annotations

from dataclasses import dataclass, replace

from textual.content import Content

from engine.dpo.evaluation.answered_prompts import FILTERS, AnsweredPrompt
from tui.formatting import figure, safe_text
from tui.widgets.layout import EMPTY, flow, paragraph
from tui.widgets.side_by_side import side_by_side
from tui.widgets.stage_sections import section
from tui.widgets.text_view import clickable

WORD_MARKS = {
    "better": ("▲", "$pair-ok"),
    "equal": ("=", "$muted"),
    "worse": ("▼", "$pair-bad"),
}
MIN_IN_COMMON = 0.4
"""With a smaller share of common words nearly all words would be marked, so none are."""
PROMPT_SHOWN = 1_000


@dataclass(frozen=True)
class AnswersShown:
    """The answers of a report, the kind that is shown, and the reader's place among them."""

    answers: tuple[AnsweredPrompt, ...] = ()
    kind: str = "all"
    place: int = 0

    @property
    def chosen(self) -> tuple[AnsweredPrompt, ...]:
        """The answers of the chosen kind."""
        return tuple(filter(FILTERS[self.kind], self.answers))

    @property
    def current(self) -> AnsweredPrompt | None:
        chosen = self.chosen
        return chosen[self.place] if self.place < len(chosen) else None

    @property
    def counts(self) -> dict[str, int]:
        """The number of answers of each kind, without the empty kinds."""
        counted = {kind: sum(map(fits, self.answers)) for kind, fits in FILTERS.items()}
        return {kind: count for kind, count in counted.items() if count}

    def moved(self, by: int) -> AnswersShown:
        """Step to another answer, wrapping around."""
        count = len(self.chosen)
        return replace(self, place=(self.place + by) % count) if count else self

    def of_kind(self, kind: str) -> AnswersShown:
        """Go to the first answer of a kind; unchanged if there is none."""
        return replace(self, kind=kind, place=0) if kind in self.counts else self

    def of_next_kind(self) -> AnswersShown:
        kinds = list(self.counts)
        return self.of_kind(kinds[(kinds.index(self.kind) + 1) % len(kinds)]) if kinds else self


def answers_lines(shown: AnswersShown, width: int) -> list[Content]:
    """The kinds, the keys to step through the answers, the prompt, and both answers."""
    one = shown.current
    if one is None:
        return []
    steps = _steps()
    prompt = safe_text(one.prompt, "bold $foreground", PROMPT_SHOWN)
    names = tuple(_name(one, stage) for stage in (2, 3))
    return [
        section("Answers", f"{shown.place + 1} of {len(shown.chosen)}", width - steps.cell_length - 1)
        + steps.pad_left(1),
        *flow(_kinds(shown), width),
        EMPTY,
        *paragraph(prompt, width),
        EMPTY,
        *side_by_side(one.stage2, one.stage3, width, (names[0], names[1]), least_common=MIN_IN_COMMON),
    ]


def _kinds(shown: AnswersShown) -> list[Content]:
    """The kinds as clickable words, each with its number of answers."""
    pieces = []
    for kind, count in shown.counts.items():
        active = kind == shown.kind
        word = Content.assemble(
            (f" {kind}", "bold $heading" if active else "$foreground"),
            (f" {count} ", "$heading" if active else "$muted"),
        )
        word = word.stylize_before("on $rail-selected") if active else word
        pieces.append(clickable(word, f"screen.filter_answers('{kind}')"))
    return pieces


def _steps() -> Content:
    """The keys, as clickable words."""
    steps = (
        ("N", "previous", "screen.answer(-1)"),
        ("n", "next", "screen.answer(1)"),
        ("w", "filter", "screen.filter_answers"),
    )
    shown = [
        clickable(Content.assemble((key, "bold $key"), (f" {word}", "$muted")), action) for key, word, action in steps
    ]
    return Content("  ").join(shown)


def _name(one: AnsweredPrompt, stage: int) -> Content:
    """The heading of an answer: its model, its score, and its faults."""
    is_stage3 = stage == 3
    score = one.stage3_score if is_stage3 else one.stage2_score
    title = f"Stage {stage}" + ("" if score is None else f"  {figure(float(score), 2)}")
    pieces: list[Content | tuple[str, str]] = [(title, "bold $heading")]
    if is_stage3 and one.preference:
        glyph, style = WORD_MARKS[one.preference]
        pieces.append((f"  {glyph} {one.preference}", f"bold {style}"))
    if one.stage3_unusable if is_stage3 else one.stage2_unusable:
        pieces.append(("  ✗ broken", "bold $pair-bad"))
    if one.stage3_off_topic if is_stage3 else one.stage2_off_topic:
        pieces.append(("  ✗ fits any message", "bold $pair-bad"))
    if one.stage3_refuses if is_stage3 else one.stage2_refuses:
        pieces.append(("  ⊘ refuses", "bold $check-warning"))
    return Content.assemble(*pieces)
