"""The verdict page: the word, its evidence and the answers, by keyboard alone and by mouse alone."""

from __future__ import annotations

import pytest

from engine.core.events import EvalDone
from engine.dpo.evaluation.answered_prompts import answered_prompts_from
from engine.dpo.evaluation.key_figures import KeyFigure, key_figures
from engine.dpo.evaluation.verdict import RULES
from tests.support.idle_wizard import click_on, open_stage, screen_text, until
from tests.support.made_up_run import report
from tui.runs.runner import Runner
from tui.screens.answers import AnswersShown, answers_lines
from tui.screens.verdict import WORD_STYLES, evidence_lines, verdict_lines
from tui.widgets.big_word import LETTERS, big_word
from tui.widgets.interval_bar import interval_bar, interval_lines
from tui.wizard.app import Wizard

MEASURED = EvalDone("better", ("The judge prefers [/]it.", "Length: 1.12."), report()["figures"], (), "judged better")
ANSWERS = AnswersShown(answered_prompts_from(report()["samples"]))


def test_every_verdict_has_letters_and_a_colour():
    words = {word for _, word, _ in RULES}
    assert words == set(WORD_STYLES)
    assert set("".join(words).upper()) <= set(LETTERS)
    for word in words:
        rows = big_word(word, "$accent")
        assert len(rows) == 3 and len({row.cell_length for row in rows}) == 1
        assert big_word(word, "$accent", plain=True)[0].plain == " ".join(word.upper())


@pytest.mark.parametrize("width", [60, 78, 83, 118, 164])
def test_no_line_of_the_page_is_too_wide_or_cut(width: int):
    lines = [*verdict_lines(MEASURED, width), *answers_lines(ANSWERS, width), *evidence_lines(MEASURED, "x", width)]
    assert all(line.cell_length <= width for line in lines), [line.plain for line in lines if line.cell_length > width]
    shown = "\n".join(line.plain for line in lines)
    assert "The judge prefers [/]it." in shown and "Length: 1.12." in shown
    assert "Judge prefers Stage 3" in shown and "73 %" in shown and "56 to 85 %" in shown


def test_a_bar_shows_value_interval_and_threshold():
    one = KeyFigure("x", value=0.75, low=0.5, high=1.0, mark=0.25, mark_name="even")
    assert interval_bar(one, 21).plain == "─────┃────━━━━━●━━━━━"
    apart = KeyFigure("x", value=0.3, low=0.1, high=0.5, mark=0.0, mark_name="none", is_share=False)
    assert interval_bar(apart, 21).plain.index("┃") == 10, "an unbounded scale is centred on the threshold"


def test_the_rows_of_the_figures_are_aligned():
    for width in (78, 164):
        rows = [line.plain for line in interval_lines(key_figures("judged better", MEASURED.figures), width)]
        assert len({row.index("%") for row in rows}) == 1


def test_an_unfit_answer_is_broken_or_fits_any_message():
    unfit = ANSWERS.of_kind("unfit").chosen
    assert [one.stage3_unusable for one in unfit] == [False, True, True]
    shown = "\n".join(line.plain for line in answers_lines(ANSWERS.of_kind("unfit"), 164))
    assert "✗ fits any message" in shown


def test_stepping_through_the_answers_of_one_kind():
    worse = ANSWERS.of_kind("worse")
    assert {one.preference for one in worse.chosen} == {"worse"} and worse.place == 0
    assert worse.moved(-1).place == 8 and worse.moved(-1).moved(1) == worse
    assert ANSWERS.of_kind("nonsense") is ANSWERS
    kinds = [ANSWERS.kind]
    shown = ANSWERS.of_next_kind()
    while shown.kind != "all":
        kinds.append(shown.kind)
        shown = shown.of_next_kind()
    assert kinds == ["all", "better", "equal", "worse", "broken", "unfit", "refused", "harmful"]
    assert AnswersShown().moved(1).of_next_kind() == AnswersShown(), "there is nothing to step through"


async def test_with_keys_alone(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.main.is_ready)
        await open_stage(pilot, app, "training")
        await until(pilot, lambda: "1 of 40" in screen_text(app), "the answers of the report")
        assert "█▀▄ █▀▀ ▀█▀" in screen_text(app) and "all 40" in screen_text(app)
        await pilot.press("N")
        await until(pilot, lambda: "40 of 40" in screen_text(app))
        await pilot.press("w", "w", "w", "n")
        await until(pilot, lambda: "2 of 9" in screen_text(app))
        assert "▼ worse" in screen_text(app) or app.main.view.answers.current.preference == "worse"


async def test_with_the_mouse_alone(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(120, 35)) as pilot:
        await until(pilot, lambda: app.main.is_ready)
        await click_on(pilot, app, "Training", lambda: app.main.selected == "training")
        await until(pilot, lambda: "1 of 40" in screen_text(app))
        await click_on(pilot, app, " broken 2", lambda: "1 of 2" in screen_text(app))
        assert "✗ broken" in screen_text(app)
        await click_on(pilot, app, "n next", lambda: "2 of 2" in screen_text(app), rows=range(33))
