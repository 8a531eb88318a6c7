"""The building blocks of every stage's screen. Pure functions from the state to lines of a known width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from textual.content import Content

from engine.core.events import Check, Progress, StageFinished
from engine.core.stage_table import STAGE, STAGES
from engine.core.wording import plural
from engine.run.state import StageState
from tui.formatting import approx_duration, duration, one_line, rate, safe_text
from tui.keys import KEYS
from tui.widgets.gauge import bar
from tui.widgets.layout import EMPTY, Column, fit, leading_clauses, paragraph, spread, table
from tui.widgets.marks import CHECK_MARKS, STAGE_MARKS, UNKNOWN
from tui.widgets.text_view import clickable


def heading(
    stage: StageState,
    pages: Sequence[str],
    page: str,
    now: float,
    expected: float | None,
    width: int,
    *,
    compact: bool = False,
) -> list[Content]:
    """The stage's name, status and time, its description, and its views; on few lines if `compact`."""
    name = STAGE[stage.name]
    mark = STAGE_MARKS.get(stage.status, UNKNOWN)
    left = Content.assemble((f"{STAGES.index(stage.name) + 1}  ", "$muted"), (name.title, "bold $heading"))
    status = f"{mark.glyph} {mark.word}" + (" earlier" if stage.reused else "")
    right = Content.assemble(
        (status, f"bold {mark.style}"), (f"  {times(stage.elapsed(now), expected)}".rstrip(), "$muted")
    )
    if compact:
        sentence = leading_clauses(name.sentence, width - left.cell_length - right.cell_length - 5)
        lines = [spread(Content.assemble(left, "   ", (sentence, "$muted")), right, width)]
    else:
        lines = [spread(left, right, width), *paragraph(Content.styled(name.sentence, "$muted"), width)]
    if len(pages) > 1:
        lines += [*([] if compact else [EMPTY]), tabs(pages, page)]
    return lines


def tabs(pages: Sequence[str], page: str) -> Content:
    """The views of a stage; a click shows one."""
    shown = [
        clickable(
            Content.styled(f" {title} ", "bold $heading on $rail-selected" if title == page else "$muted"),
            f"screen.turn_to('{title}')",
        )
        for title in pages
    ]
    next_view = Content.assemble(("  v", "bold $key"), (" next view", "$muted"))
    return EMPTY.join(shown) + clickable(next_view, "screen.turn(1)")


def times(elapsed: float | None, expected: float | None) -> str:
    """Elapsed and expected time: `12m 03s of ~48m`."""
    so_far, total = duration(elapsed), approx_duration(expected)
    if not total:
        return so_far
    return f"{so_far} of ~{total}" if so_far else f"~{total}"


ACTIONS: dict[str, tuple[str, ...]] = {
    "waiting": ("run_stage", "run_all", "options"),
    "done": ("redo", "run_all"),
    "skipped": ("redo", "run_all"),
    "failed": ("run_stage", "options", "log"),
    "refused": ("run_stage", "options", "browse"),
    "stopped": ("run_stage", "run_all"),
}
"""The actions of `tui.keys` to offer for a stage that is not running, by its status."""


def actions_for(status: str) -> tuple[str, ...]:
    return ACTIONS.get(status, ())


def action_hints(actions: Sequence[str], width: int) -> list[Content]:
    """The actions as clickable words, each with its key."""
    by_action = {key.action: key for key in KEYS}
    pieces = [
        clickable(
            Content.assemble((f" {key.shown} ", "bold $key on $rail-selected"), (f" {key.label}   ", "$foreground")),
            f"{'app' if key.place == 'app' else 'screen'}.{key.action}",
        )
        for key in (by_action[action] for action in actions)
    ]
    return [EMPTY.join(pieces).truncate(width, ellipsis=True)] if pieces else []


def failure_box(failure: StageFinished, log_path: str, width: int) -> list[Content]:
    """What failed, why, what to do next, and where the log is."""
    rows = [
        ("What", failure.what or failure.summary, "bold $stage-failed" if failure.outcome != "stopped" else "bold"),
        ("Why", failure.why, "$foreground"),
        ("Next", failure.what_to_do, "bold $foreground"),
        ("Log", log_path, "$muted"),
    ]
    return table(
        [(Content.styled(label, "$muted"), safe_text(text, style, 2_000)) for label, text, style in rows if text],
        (Column(6), Column()),
        width,
    )


def progress_line(progress: Progress, width: int) -> list[Content]:
    """The bar, the count, the rate and the time left."""
    share = progress.done / progress.total if progress.total else 0.0
    unit = one_line(progress.unit, limit=20).plain
    count = f"{progress.done:,} / {progress.total:,} {unit}" if progress.total else f"{progress.done:,} {unit}"
    left = duration(progress.seconds_left)
    notes = [rate(progress.rate, unit), f"{left} left" if left and progress.done < progress.total else ""]
    figures = Content.assemble(
        (f" {100 * share:3.0f} %", "bold"),
        (f"  {count}", "$foreground"),
        *((f"  {note}", "$muted") for note in notes if note),
    )
    lines = (
        [bar(share, max(width - figures.cell_length, 10)) + figures]
        if width - figures.cell_length >= 20
        else [
            bar(share, width),
            fit(figures[1:], width),
        ]
    )
    if progress.note:
        lines.append(one_line(progress.note, "$muted").truncate(width, ellipsis=True))
    return lines


def checks_table(checks: Iterable[Check], width: int) -> list[Content]:
    """A line per check: its status, name and detail."""
    rows = []
    for check in checks:
        mark = CHECK_MARKS.get(check.status, UNKNOWN)
        loud = check.status in ("failed", "warning")
        rows.append(
            (
                Content.styled(mark.glyph, f"bold {mark.style}"),
                one_line(check.name, f"bold {mark.style}" if loud else "$foreground", 60),
                safe_text(check.detail, "$foreground" if loud else "$muted", 1_200),
            )
        )
    return table(rows, (Column(1), Column(34 if width >= 90 else 24), Column()), width)


def checks_count(checks: Sequence[Check]) -> str:
    """The number of checks by status: `12 ok · 2 warnings`."""
    counts = {status: sum(check.status == status for check in checks) for status in CHECK_MARKS}
    words = {status: f"{count} {CHECK_MARKS[status].word}" for status, count in counts.items() if count}
    if counts["warning"] > 1:
        words["warning"] += "s"
    return " · ".join(words.values())


def section(title: str | Content, note: str, width: int) -> Content:
    """A heading with a muted note, and a rule to the right edge."""
    styled = Content.styled(title, "bold $heading") if isinstance(title, str) else title
    head = Content.assemble(styled, (f"  {note}" if note else "", "$muted"), " ")
    head = head.truncate(width, ellipsis=True)
    return head + Content.styled("─" * max(width - head.cell_length, 0), "$rule")


def histogram(counts: Mapping[str, int], width: int, most: int) -> list[Content]:
    """How often each reason occurred, most common first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown, others = ordered[:most], ordered[most:]
    top = max((count for _, count in shown), default=1)
    label_width = min(max((len(name) for name, _ in shown), default=0), 22)
    room = max(width - label_width - 9, 4)
    lines = [
        Content.assemble(
            fit(one_line(name, "$foreground", 22), label_width),
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


def card(title: str, rows: Sequence[tuple[str, Content]], width: int) -> list[Content]:
    """Labels and values in a frame that fits them, at most `width` wide."""
    labels = max((len(label) for label, _ in rows), default=0)
    inside = min(max([labels + 2 + value.cell_length for _, value in rows] + [len(title) + 2]), width - 4)
    room = max(inside - labels - 2, 8)
    lines = [
        Content.assemble(("╭─ ", "$rule"), (title, "bold $heading"), (f" {'─' * (inside - len(title) - 1)}╮", "$rule"))
    ]
    for label, value in rows:
        for number, piece in enumerate(paragraph(value, room)):
            left = f"{label if number == 0 else '':<{labels}}  "
            lines.append(
                Content.assemble(("│ ", "$rule"), (left, "$muted"), fit(piece, room), (" │", "$rule")).truncate(width)
            )
    return [*lines, Content.styled(f"╰{'─' * (inside + 2)}╯", "$rule")]
