"""The parts that every stage's screen is made of. Pure functions from the state to lines of a known width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from textual.content import Content

from engine.events import Check, Progress, StageFinished
from engine.names import STAGE, STAGES
from engine.options import Option
from engine.state import StageState
from tui.widgets.gauge import bar
from tui.widgets.layout import EMPTY, Column, fit, paragraph, spread, table
from tui.widgets.marks import CHECK_MARKS, STAGE_MARKS, UNKNOWN
from tui.widgets.words import duration, foreign, line, plural, rate


def heading(
    stage: StageState, pages: Sequence[str], page: int, now: float, width: int, *, compact: bool = False
) -> list[Content]:
    """The stage's name, how it stands, what it does, and the views that it has; on few lines when `compact`."""
    name = STAGE[stage.name]
    mark = STAGE_MARKS.get(stage.status, UNKNOWN)
    left = Content.assemble((f"{STAGES.index(stage.name) + 1}  ", "$muted"), (name.title, "bold $heading"))
    told = f"{mark.glyph} {mark.word}" + (" earlier" if stage.reused else "")
    right = Content.assemble((told, f"bold {mark.style}"), (f"  {duration(stage.elapsed(now))}".rstrip(), "$muted"))
    sentence = line(name.sentence, "$muted")
    if compact:
        lines = [spread(left + Content("   ") + sentence, right, width)]
    else:
        lines = [spread(left, right, width), *paragraph(sentence, width)]
    if len(pages) > 1:
        tabs = [
            Content.styled(f" {title} ", "bold $heading on $rail-selected" if index == page else "$muted")
            for index, title in enumerate(pages)
        ]
        next_view = Content.assemble(("  v", "bold $key"), (" next view", "$muted"))
        lines += [*([] if compact else [EMPTY]), EMPTY.join(tabs) + next_view]
    return lines


def failure_box(failure: StageFinished, log_path: str, width: int) -> list[Content]:
    """What failed, why, what to do next, and where the log is."""
    rows = [
        ("What", failure.what or failure.summary, "bold $stage-failed" if failure.outcome != "stopped" else "bold"),
        ("Why", failure.why, "$foreground"),
        ("Next", failure.what_to_do, "bold $foreground"),
        ("Log", log_path, "$muted"),
    ]
    return table(
        [(Content.styled(label, "$muted"), foreign(text, style, 2_000)) for label, text, style in rows if text],
        (Column(6), Column()),
        width,
    )


def progress_line(progress: Progress, width: int) -> list[Content]:
    """The bar, the count, how fast and how long yet."""
    share = progress.done / progress.total if progress.total else 0.0
    unit = line(progress.unit, limit=20).plain
    count = f"{progress.done:,} / {progress.total:,} {unit}" if progress.total else f"{progress.done:,} {unit}"
    left = duration(progress.seconds_left)
    notes = [rate(progress.rate, unit), f"{left} left" if left and progress.done < progress.total else ""]
    told = Content.assemble(
        (f" {100 * share:3.0f} %", "bold"),
        (f"  {count}", "$foreground"),
        *((f"  {note}", "$muted") for note in notes if note),
    )
    lines = (
        [bar(share, max(width - told.cell_length, 10)) + told]
        if width - told.cell_length >= 20
        else [
            bar(share, width),
            fit(told[1:], width),
        ]
    )
    if progress.note:
        lines.append(line(progress.note, "$muted").truncate(width, ellipsis=True))
    return lines


def checks_table(checks: Iterable[Check], width: int) -> list[Content]:
    """A line a check: how it went, its name, what was found."""
    rows = []
    for check in checks:
        mark = CHECK_MARKS.get(check.status, UNKNOWN)
        loud = check.status in ("failed", "warning")
        rows.append(
            (
                Content.styled(mark.glyph, f"bold {mark.style}"),
                line(check.name, f"bold {mark.style}" if loud else "$foreground", 60),
                foreign(check.detail, "$foreground" if loud else "$muted", 1_200),
            )
        )
    return table(rows, (Column(1), Column(34 if width >= 90 else 24), Column()), width)


def checks_count(checks: Sequence[Check]) -> str:
    """How many went how: `12 ok · 1 warning`."""
    counts = {status: sum(check.status == status for check in checks) for status in CHECK_MARKS}
    return " · ".join(f"{count} {CHECK_MARKS[status].word}" for status, count in counts.items() if count)


def options_table(options: Sequence[Option], values: Mapping[str, Any], width: int) -> list[Content]:
    """Name, value, default and sentence; what differs from its default is marked."""
    wide = width >= 100
    rows = []
    for option in options:
        value = value_text(values.get(option.name))
        changed = value != option.default and not _same_number(value, option.default)
        cells = [
            Content.styled("●" if changed else " ", "$accent"),
            Content.styled(option.name, "$foreground"),
            line(value or "none", "bold $heading" if changed else "$foreground" if value else "$muted"),
            line(f"default {option.default or 'none'}" if changed else "", "$muted", 60 if wide else 20),
        ]
        rows.append((*cells, Content.styled(option.sentence, "$muted")) if wide else tuple(cells))
    columns = (Column(1), Column(28), Column(34 if wide else 30), *((Column(24),) if wide else ()), Column())
    return table(rows, columns, width)


def value_text(value: object) -> str:
    return "" if value is None else str(value)


def section(title: str, note: str, width: int) -> Content:
    """A quiet line above a part."""
    head = Content.assemble((title, "bold $heading"), (f"  {note}" if note else "", "$muted"), " ")
    return head + Content.styled("─" * max(width - head.cell_length, 0), "$rule")


def histogram(counts: Mapping[str, int], width: int, most: int) -> list[Content]:
    """How often each reason occurred, the commonest first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown, others = ordered[:most], ordered[most:]
    top = max((count for _, count in shown), default=1)
    label_width = min(max((len(name) for name, _ in shown), default=0), 22)
    room = max(width - label_width - 9, 4)
    lines = [
        Content.assemble(
            fit(line(name, "$foreground", 22), label_width),
            (f"{count:>7,}  ", "$foreground"),
            bar(count / top, room, style="$pair-bad"),
        )
        for name, count in shown
    ]
    if others:
        lines.append(
            Content.styled(f"and {plural(len(others), 'other reason')}: {sum(n for _, n in others):,}", "$muted")
        )
    return lines


def _same_number(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False
