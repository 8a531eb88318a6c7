"""The verdict is a function of figures, and no single figure is enough for `better`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engine.core.config import TrainingOptions
from engine.dpo.evaluation import verdict as rules
from engine.dpo.evaluation.verdict import RULES, Answer, AnswerPair, Limits, Verdict, VerdictInput, verdict

LIMITS = Limits.of(TrainingOptions())
RISING = [0.1 + 0.01 * i for i in range(20)]
HIGHER = [score + 0.3 + 0.007 * i for i, score in enumerate(RISING)]


def compared(
    before: Sequence[float | None],
    after: Sequence[float | None],
    *,
    unusable: tuple[int, int] = (0, 0),
    refused: tuple[int, int] = (0, 0),
    harmless: int = 20,
    tokens: tuple[Sequence[int], Sequence[int]] | None = None,
    same: int = 0,
    **more: object,
) -> VerdictInput:
    """Both policies' answers with these scores.

    unusable   number of unusable answers, from the first prompt on: (Stage 2, Stage 3)
    refused    number of refusals among `harmless` prompts: (Stage 2, Stage 3)
    same       number of identical answers, from the first prompt on
    """
    n = len(before)
    lengths2, lengths3 = tokens or ([30 + i for i in range(n)], [31 + i for i in range(n)])
    answers = [
        AnswerPair(
            Answer(f"two {i}", lengths2[i], i < unusable[0], False, before[i]),
            Answer(f"two {i}" if i < same else f"three {i}", lengths3[i], i < unusable[1], False, after[i]),
        )
        for i in range(n)
    ]
    return VerdictInput(answers, [(i < refused[0], i < refused[1]) for i in range(harmless)], **more)  # type: ignore[arg-type]


def unscored(n: int) -> list[None]:
    return [None] * n


def reach(data: VerdictInput, **limits: float) -> Verdict:
    return verdict(data, replace(LIMITS, **limits))


def word(data: VerdictInput, **limits: float) -> tuple[str, str]:
    reached = reach(data, **limits)
    return reached.label, reached.rule


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_in_the_docstring_matches_the_rules():
    lines = [line.strip("| ").split(" | ") for line in (rules.__doc__ or "").splitlines() if line.startswith("| ")]
    assert [(cells[0], cells[-1]) for cells in lines[1:]] == [(name, label) for name, label, _ in RULES]


def test_every_threshold_is_an_option_with_its_default():
    assert Limits(15, 0.05, 0.05, 0.05, 1.5) == LIMITS
    assert Limits.of(TrainingOptions(max_length_ratio=2.25)).max_length_ratio == 2.25


def test_the_reason_comes_first_then_the_figures():
    reached = reach(compared(RISING, HIGHER, unusable=(3, 4), refused=(1, 2)))
    assert reached.reasons == (
        "The judge prefers Stage 3's answers; broken answers, refusals and length do not explain it.",
        "Unusable answers: 15% before, 20% after.",
        "Length: 1.03 times Stage 2's on average.",
        "Refused harmless prompts: 1 of 20 before, 2 after.",
        "Judge: 20 better, 0 equal, 0 worse (sign test p = 1.9e-06); "
        "mean change +0.366, 95 % interval +0.349 to +0.384.",
    )


def test_what_was_not_measured_is_not_reported():
    assert reach(compared(unscored(16), unscored(16), harmless=0)).reasons == (
        "No judge scored the answers.",
        "Unusable answers: 0% before, 0% after.",
        "Length: 1.03 times Stage 2's on average.",
    )


# -- is there anything to compare? --------------------------------------------------------------------------------------


def test_an_unchanged_adapter_is_no_different_whatever_the_figures():
    assert word(compared(RISING, HIGHER, trained=False)) == ("no different", "nothing trained")
    assert word(compared(RISING[:3], HIGHER[:3], trained=False)) == ("no different", "nothing trained")


def test_too_few_prompts_decide_nothing_even_if_all_are_won():
    assert word(compared(RISING[:14], HIGHER[:14])) == ("cannot tell", "too few prompts")
    assert word(compared(RISING[:15], HIGHER[:15])) == ("better", "judged better")
    assert word(compared(RISING[:15], HIGHER[:15]), min_eval_prompts=16) == ("cannot tell", "too few prompts")
    assert word(VerdictInput([])) == ("cannot tell", "too few prompts")


def test_the_same_answers_need_no_judge_to_be_no_different():
    assert word(compared(unscored(16), unscored(16), same=16)) == ("no different", "same answers")
    assert word(compared(unscored(16), unscored(16), same=15)) == ("cannot tell", "no judge")


def test_without_a_judge_it_cannot_tell():
    assert word(compared(unscored(40), unscored(40), unusable=(3, 2))) == ("cannot tell", "no judge")


def test_a_judge_that_scored_too_few_answers_does_not_count():
    before, after = [*RISING[:14], *unscored(6)], [*HIGHER[:14], *unscored(6)]
    assert word(compared(before, after)) == ("cannot tell", "no judge")
    assert "The judge scored only 14 prompts; at least 15 are needed." in reach(compared(before, after)).reasons
    assert word(compared([*RISING[:15], None], [*HIGHER[:15], 0.5])) == ("better", "judged better")


def test_a_judge_that_gives_everything_the_same_score_is_blind():
    assert word(compared([0.5] * 20, [0.5] * 20)) == ("cannot tell", "blind judge")
    assert word(compared([0.5] * 20, [0.5] * 19 + [0.6])) == ("no different", "judged alike")


# -- are fewer of them unfit? ------------------------------------------------------------------------------------------


def test_without_a_judge_fewer_unfit_answers_are_better_if_chance_does_not_explain_it():
    assert word(compared(unscored(20), unscored(20), unusable=(6, 0))) == ("better", "fewer unfit answers")
    assert word(compared(unscored(20), unscored(20), unusable=(5, 0))) == ("cannot tell", "no judge")
    assert word(compared(unscored(20), unscored(20), unusable=(6, 0)), eval_significance=0.01) == (
        "cannot tell",
        "no judge",
    )
    assert word(compared(unscored(20), unscored(20), unusable=(6, 0)), max_unusable_rise=0.3) == (
        "cannot tell",
        "no judge",
    )
    reason, *_ = reach(
        compared(unscored(20), unscored(20), unusable=(9, 1), why_no_judge="It failed its exam.")
    ).reasons
    assert reason == (
        "Fewer answers are unfit than before, by more than chance: 9 of 20 before, 1 after (McNemar p = 0.0078). "
        "No judge rated them beyond that. It failed its exam."
    )


def test_answers_that_would_fit_any_message_are_unfit_too():
    data = compared(unscored(20), unscored(20), unusable=(3, 0))
    vague = [AnswerPair(replace(a.stage2, off_topic=3 <= i < 6), a.stage3) for i, a in enumerate(data.answers)]
    assert word(data) == ("cannot tell", "no judge")
    assert word(replace(data, answers=vague)) == ("better", "fewer unfit answers")
    assert "Answers that would fit any message: 15% before, 0% after." in reach(replace(data, answers=vague)).reasons
    worse = [AnswerPair(a.stage2, replace(a.stage3, off_topic=i < 6)) for i, a in enumerate(data.answers)]
    assert word(replace(data, answers=worse)) == ("cannot tell", "no judge")


def test_more_refusals_do_not_count_as_fewer_unfit_answers():
    data = compared(unscored(20), unscored(20), unusable=(6, 0))
    assert word(compared(unscored(20), unscored(20), unusable=(6, 0), refused=(0, 1))) == ("cannot tell", "no judge")
    refusing = [AnswerPair(a.stage2, replace(a.stage3, refuses=i < 6)) for i, a in enumerate(data.answers)]
    assert word(replace(data, answers=refusing)) == ("cannot tell", "no judge")


def test_a_judges_scores_decide_before_fewer_unfit_answers():
    assert word(compared(RISING, RISING, unusable=(9, 0))) == ("no different", "judged alike")
    assert word(compared(unscored(20), unscored(20), unusable=(9, 0), margins=WRONG_WAY)) == (
        "worse",
        "wrong way round",
    )


# -- are they still answers? -------------------------------------------------------------------------------------------


def test_broken_answers_are_worse_whatever_the_judge_prefers():
    assert word(compared(RISING, HIGHER, unusable=(1, 7))) == ("worse", "broken answers")
    assert word(compared(unscored(20), unscored(20), unusable=(1, 7))) == ("worse", "broken answers")


def test_five_newly_broken_answers_may_be_chance_and_six_are_not():
    assert word(compared(RISING, HIGHER, unusable=(0, 5))) == ("cannot tell", "more broken")
    assert word(compared(RISING, HIGHER, unusable=(0, 6))) == ("worse", "broken answers")
    assert word(compared(RISING, HIGHER, unusable=(0, 5)), eval_significance=0.07) == ("worse", "broken answers")


def test_a_rise_of_exactly_the_limit_does_not_count():
    assert word(compared(RISING, HIGHER, unusable=(2, 3))) == ("better", "judged better")
    assert word(compared(RISING, HIGHER, unusable=(2, 4))) == ("cannot tell", "more broken")
    assert word(compared(RISING, HIGHER, unusable=(2, 4)), max_unusable_rise=0.1) == ("better", "judged better")


def test_a_rise_that_chance_may_explain_is_not_called_no_different_either():
    assert word(compared(RISING, RISING, unusable=(0, 2))) == ("cannot tell", "more broken")


def test_fewer_broken_answers_and_refusals_are_no_objection():
    assert word(compared(RISING, HIGHER, unusable=(9, 1), refused=(8, 0))) == ("better", "judged better")


# -- are harmless prompts refused? -------------------------------------------------------------------------------------


def test_over_refusal_is_worse_even_if_the_judge_prefers_it():
    assert word(compared(RISING, HIGHER, refused=(0, 5))) == ("cannot tell", "more refusals")
    assert word(compared(RISING, HIGHER, refused=(0, 6))) == ("worse", "over-refusal")
    assert word(compared(unscored(20), unscored(20), refused=(0, 6))) == ("worse", "over-refusal")


def test_one_more_refusal_in_twenty_is_exactly_the_limit():
    assert word(compared(RISING, HIGHER, refused=(1, 2))) == ("better", "judged better")
    assert word(compared(RISING, HIGHER, refused=(1, 2)), max_refusal_rise=0.04) == ("cannot tell", "more refusals")


def only_refusals(harmless: int) -> VerdictInput:
    """Stage 3 newly refuses 12 of 20 prompts, and the judge prefers exactly those."""
    data = compared(RISING, [*HIGHER[:12], *RISING[12:]], harmless=harmless)
    answers = [
        AnswerPair(a.stage2, replace(a.stage3, refuses=True)) if i < 12 else a for i, a in enumerate(data.answers)
    ]
    return replace(data, answers=answers)


def test_refusals_alone_are_better_only_if_over_refusal_could_be_detected():
    assert word(only_refusals(harmless=5)) == ("cannot tell", "refusals alone")
    assert word(only_refusals(harmless=6)) == ("better", "judged better")
    assert word(compared(RISING, HIGHER, harmless=0)) == ("better", "judged better")


# -- what does the judge prefer, and why? ------------------------------------------------------------------------------


def test_a_judge_that_always_prefers_one_stage_decides():
    assert word(compared(RISING, HIGHER)) == ("better", "judged better")
    assert word(compared(HIGHER, RISING)) == ("worse", "judged worse")


def test_as_many_wins_as_losses_are_no_different():
    after = [score + (0.21 if i % 2 else -0.2) for i, score in enumerate(RISING)]
    assert word(compared(RISING, after)) == ("no different", "judged alike")


def wins_of(wins: int, losses: int) -> VerdictInput:
    after = [score + (0.31 if i < wins else -0.3) for i, score in enumerate(RISING[: wins + losses])]
    return compared(RISING[: wins + losses], after)


def test_fourteen_of_twenty_may_be_chance_and_fifteen_are_not():
    assert word(wins_of(14, 6)) == ("no different", "judged alike")
    assert word(wins_of(15, 5)) == ("better", "judged better")
    assert word(wins_of(5, 15)) == ("worse", "judged worse")
    assert word(wins_of(15, 5), eval_significance=0.04) == ("no different", "judged alike")


def test_many_small_wins_against_one_large_loss_are_not_better():
    after = [score + 0.01 for score in RISING]
    after[7] -= 9.0
    assert word(compared(RISING, after)) == ("no different", "judged alike")


WRONG_WAY = [-0.4 - 0.01 * i for i in range(20)]


def test_stage_3_that_prefers_the_rejected_replies_is_worse_with_no_judge_and_never_better():
    assert word(compared(unscored(20), unscored(20), margins=WRONG_WAY)) == ("worse", "wrong way round")
    assert word(compared(RISING, RISING, margins=WRONG_WAY)) == ("worse", "wrong way round")
    assert word(compared(RISING, HIGHER, margins=WRONG_WAY)) == ("cannot tell", "judge against pairs")


def test_an_accuracy_whose_interval_includes_one_half_decides_nothing():
    def margins(wrong: int) -> list[float]:
        return [-0.5 - 0.01 * i if i < wrong else 0.1 + 0.01 * i for i in range(20)]

    assert word(compared(RISING, HIGHER, margins=margins(14))) == ("better", "judged better")
    assert word(compared(RISING, HIGHER, margins=margins(15))) == ("cannot tell", "judge against pairs")
    few_but_large = [9.0 if i < 5 else -0.01 for i in range(20)]
    assert word(compared(RISING, HIGHER, margins=few_but_large)) == ("better", "judged better")


def test_an_accuracy_of_one_decides_nothing():
    certain = [1.0 + 0.1 * i for i in range(20)]
    assert word(compared(RISING, HIGHER, unusable=(0, 12), margins=certain)) == ("worse", "broken answers")
    assert word(compared(RISING, RISING, margins=certain)) == ("no different", "judged alike")
    assert word(compared(unscored(20), unscored(20), margins=certain)) == ("cannot tell", "no judge")


# -- is it length? -----------------------------------------------------------------------------------------------------


def by_length(not_longer: int, ratio: float = 2.0, lost: int = 0) -> VerdictInput:
    """Stage 3 loses the first `lost` of 20 prompts. Its answers are `ratio` times as long, except the first `not_longer`."""
    before = [30 + i for i in range(20)]
    after = [length if i < not_longer else round(length * ratio) for i, length in enumerate(before)]
    scores = [score - 0.6 if i < lost else score for i, score in enumerate(HIGHER)]
    return compared(RISING, scores, tokens=(before, after))


def test_much_longer_answers_are_better_only_if_the_judge_also_prefers_those_that_are_not_longer():
    assert word(by_length(not_longer=0)) == ("cannot tell", "length alone")
    assert word(by_length(not_longer=5)) == ("cannot tell", "length alone")
    assert word(by_length(not_longer=6)) == ("better", "judged better")
    assert word(by_length(not_longer=6, lost=1)) == ("cannot tell", "length alone")


def test_one_and_a_half_times_as_long_is_exactly_the_limit():
    lengths = [30 + 2 * i for i in range(20)]
    longer = [length * 3 // 2 for length in lengths]
    assert word(compared(RISING, HIGHER, tokens=(lengths, longer))) == ("better", "judged better")
    assert word(compared(RISING, HIGHER, tokens=(lengths, [*longer[:-1], longer[-1] + 1]))) == (
        "cannot tell",
        "length alone",
    )


def test_longer_answers_that_are_worse_stay_worse():
    lengths = [30 + i for i in range(20)]
    assert word(compared(HIGHER, RISING, tokens=(lengths, [3 * n for n in lengths]))) == ("worse", "judged worse")
