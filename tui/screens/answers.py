"""Both answers to one held-out prompt at a time, side by side, and which of them to go through."""

from __future__ import annotations

from dataclasses import dataclass, replace

from textual.content import Content

from engine.dpo.evaluation.answered_prompts import FILTERS, AnsweredPrompt
from tui.formatting import figure, safe_text
from tui.widgets.layout import EMPTY, flowing, paragraph
from tui.widgets.side_by_side import side_by_side
from tui.widgets.stage_sections import section
from tui.widgets.text_view import clickable

WORD_MARKS = {
    "better": ("▲", "$pair-ok"),
    "equal": ("=", "$muted"),
    "worse": ("▼", "$pair-bad"),
}
MIN_IN_COMMON = 0.4
"""If fewer words are the same, nearly all would be marked, so none are."""
PROMPT_SHOWN = 1_000


@dataclass(frozen=True)
class AnswersShown:
    """The answers of a report, and the position of the reader in them."""

    answers: tuple[AnsweredPrompt, ...] = ()
    kind: str = "all"
    place: int = 0

    @property
    def chosen(self) -> tuple[AnsweredPrompt, ...]:
        """Those of the kind."""
        return tuple(filter(FILTERS[self.kind], self.answers))

    @property
    def current(self) -> AnsweredPrompt | None:
        chosen = self.chosen
        return chosen[self.place] if self.place < len(chosen) else None

    @property
    def counts(self) -> dict[str, int]:
        """The number of answers of each kind, without empty kinds."""
        counted = {kind: sum(map(fits, self.answers)) for kind, fits in FILTERS.items()}
        return {kind: count for kind, count in counted.items() if count}

    def moved(self, by: int) -> AnswersShown:
        """Step to another answer, wrapping around."""
        chosen = len(self.chosen)
        return replace(self, place=(self.place + by) % chosen) if chosen else self

    def of_kind(self, kind: str) -> AnswersShown:
        """Go to the first answer of a kind; unchanged if there is none."""
        return replace(self, kind=kind, place=0) if kind in self.counts else self

    def of_next_kind(self) -> AnswersShown:
        kinds = list(self.counts)
        return self.of_kind(kinds[(kinds.index(self.kind) + 1) % len(kinds)]) if kinds else self


def answers_lines(shown: AnswersShown, width: int) -> list[Content]:
    """The kind of answers, how to step through them, the prompt, and both answers."""
    one = shown.current
    if one is None:
        return []
    steps = _steps()
    prompt = safe_text(one.prompt, "bold $foreground", PROMPT_SHOWN)
    names = tuple(_name(one, stage) for stage in (2, 3))
    return [
        section("Answers", f"{shown.place + 1} of {len(shown.chosen)}", width - steps.cell_length - 1)
        + steps.pad_left(1),
        *flowing(_kinds(shown), width),
        EMPTY,
        *paragraph(prompt, width),
        EMPTY,
        *side_by_side(one.stage2, one.stage3, width, (names[0], names[1]), least_common=MIN_IN_COMMON),
    ]


def _kinds(shown: AnswersShown) -> list[Content]:
    """The kinds as words that can be clicked, each with its number of answers."""
    pieces = []
    for kind, count in shown.counts.items():
        on = kind == shown.kind
        word = Content.assemble(
            (f" {kind}", "bold $heading" if on else "$foreground"), (f" {count} ", "$heading" if on else "$muted")
        )
        pieces.append(clickable(word.stylize_before("on $rail-selected") if on else word, f"screen.which('{kind}')"))
    return pieces


def _steps() -> Content:
    """The keys, as words that can be clicked."""
    steps = (("N", "previous", "screen.answer(-1)"), ("n", "next", "screen.answer(1)"), ("w", "which", "screen.which"))
    shown = [
        clickable(Content.assemble((key, "bold $key"), (f" {word}", "$muted")), action) for key, word, action in steps
    ]
    return Content("  ").join(shown)


def _name(one: AnsweredPrompt, stage: int) -> Content:
    """The heading of an answer: its model, its score, and its faults."""
    second = stage == 3
    score = one.stage3_score if second else one.stage2_score
    told = f"Stage {stage}" + ("" if score is None else f"  {figure(float(score), 2)}")
    pieces: list[Content | tuple[str, str]] = [(told, "bold $heading")]
    if second and one.preference:
        glyph, style = WORD_MARKS[one.preference]
        pieces.append((f"  {glyph} {one.preference}", f"bold {style}"))
    if one.stage3_unusable if second else one.stage2_unusable:
        pieces.append(("  ✗ broken", "bold $pair-bad"))
    if one.stage3_off_topic if second else one.stage2_off_topic:
        pieces.append(("  ✗ fits any message", "bold $pair-bad"))
    if one.stage3_refuses if second else one.stage2_refuses:
        pieces.append(("  ⊘ refuses", "bold $check-warning"))
    return Content.assemble(*pieces)
