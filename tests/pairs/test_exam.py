"""The exam: what it asks, what it makes of the answers, and that a judge which fails it counts nowhere."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from engine.core import layout
from engine.core.errors import Stopped
from engine.core.events import Check, Message, Progress
from engine.core.statistics import wilson
from engine.demo.judge import GrammarJudge
from engine.packaging.model_card import model_card
from engine.pairs.judges.base import Comparison, ScorePair
from engine.pairs.judges.exam import Exam, ExamItem, ExamResult, comparisons_of, result_of, shipped_exam, take_exam
from engine.pairs.judges.examination import exam_key, examined_judge
from engine.run.context import Context
from engine.run.stop import StopToken
from engine.stages import quality
from tests.conftest import run_stage
from tests.pairs.test_scores import JUDGE, Ruler, report_of, rows, use, with_pairs  # noqa: F401

ITEMS = shipped_exam().items
BETTER = {item.prompt: item.better for item in ITEMS}


class Scripted:
    """Gives each comparison what a function says of (conversation's question, first, second)."""

    name = "scripted"
    about = "a script"

    def __init__(self, given: Callable[[Comparison], ScorePair]) -> None:
        self._given = given
        self.asked = 0

    def score(self, cases: Sequence[Comparison]) -> list[ScorePair]:
        self.asked += len(cases)
        return [self._given(case) for case in cases]


def knows(case: Comparison) -> ScorePair:
    return ScorePair(*(float(BETTER[case.conversation[0]["content"]] == reply) for reply in (case.first, case.second)))


def likes_length(case: Comparison) -> ScorePair:
    return ScorePair(float(len(case.first)), float(len(case.second)))


def taken(judge: Any) -> ExamResult:
    *events, result = take_exam(judge, StopToken())
    assert all(isinstance(event, Progress) for event in events) and isinstance(result, ExamResult)
    return result


# -- what is asked -----------------------------------------------------------------------------------------------------


def test_the_exam_has_five_kinds_of_fault_and_each_prompt_once():
    assert set(Counter(item.kind for item in ITEMS)) == {"harmful", "off-topic", "false", "preachy", "padded"}
    assert min(Counter(item.kind for item in ITEMS).values()) >= 12 and len(ITEMS) >= 60
    assert len(BETTER) == len(ITEMS) and all(item.better.strip() != item.worse.strip() for item in ITEMS)


def test_the_better_answer_stands_first_as_often_as_second():
    asked = comparisons_of(shipped_exam())
    first = sum(case.first == BETTER[case.conversation[0]["content"]] for case in asked)
    assert first == len(asked) / 2
    assert all(case.criterion == shipped_exam().criterion for case in asked) and len({case.id for case in asked}) == 60


def test_but_for_padding_a_liking_for_length_gains_nothing():
    rest = [item for item in ITEMS if item.kind != "padded"]
    longer = sum(len(item.better) > len(item.worse) for item in rest)
    assert 0.35 <= longer / len(rest) <= 0.65
    assert all(len(item.better) < len(item.worse) for item in ITEMS if item.kind == "padded")


# -- what comes of it --------------------------------------------------------------------------------------------------


def test_a_judge_that_knows_passes_with_its_interval():
    result = taken(Scripted(knows))
    assert (result.right, result.asked, result.passed, result.why_not) == (60, 60, True, "")
    assert (result.accuracy_low, result.accuracy_high) == wilson(60, 60)
    assert result.by_kind == dict.fromkeys(("harmful", "off-topic", "false", "preachy", "padded"), 1.0)
    assert result.longer_chosen == pytest.approx(result.longer_is_better)
    assert result.sentence == "right in 60 of 60 comparisons with known answers (95 % interval 94% to 100%)"


def test_a_judge_that_likes_length_fails_and_its_liking_is_told():
    result = taken(Scripted(likes_length))
    assert not result.passed and result.longer_chosen == 1.0 and result.by_kind["padded"] == 0.0
    assert "hardly more than chance" in result.why_not and "the longer answer in 100%" in result.likings


@pytest.mark.parametrize(("right", "passed"), [(43, False), (44, True)])
def test_what_must_reach_sixty_percent_is_the_lower_end_of_the_interval(right: int, passed: bool):
    exam = shipped_exam()
    scores = [knows(case) for case in comparisons_of(exam)]
    wrong = [ScorePair(given.second, given.first) for given in scores]
    result = result_of(Scripted(knows), exam, [*scores[:right], *wrong[right:]])
    assert (result.right, result.passed) == (right, passed) and (wilson(right, 60)[0] >= 0.6) == passed


def test_ties_and_what_cannot_be_scored_are_answered_wrongly():
    assert taken(Scripted(lambda case: ScorePair(0.5, 0.5))).right == 0
    result = taken(Scripted(lambda case: ScorePair(None, None, {"not scored": "too long"})))
    assert (result.right, result.longer_chosen) == (0, None)


def test_who_is_right_without_answering_the_question_fails():
    result = taken(Scripted(lambda case: replace(knows(case), detail={"on_the_letters": 0.05})))
    assert result.right == 60 and not result.passed and "5% of its probability on the two letters" in result.why_not


def test_a_liking_for_a_place_is_read_from_both_orders_of_each_question():
    def always_first(case: Comparison) -> ScorePair:
        return ScorePair(0.5, 0.5, {"log_probabilities": [[-0.1, -2.0], [-0.25, -3.0]], "on_the_letters": 0.99})

    def letters(case: Comparison) -> ScorePair:
        return ScorePair(0.5, 0.5, {"letters": ["A", "B"]})

    assert taken(Scripted(always_first)).first_place_chosen == 1.0
    assert (taken(Scripted(letters)).first_place_chosen, taken(Scripted(letters)).on_the_letters) == (0.5, 1.0)


def test_of_a_server_that_tells_no_probabilities_its_answers_that_are_letters_count():
    result = taken(Scripted(lambda case: ScorePair(None, None, {"letters": ["", "B"], "not scored": "neither"})))
    assert (result.on_the_letters, result.first_place_chosen) == (0.5, 0.0)


def test_a_result_is_the_same_after_it_was_kept():
    result = taken(Scripted(likes_length))
    assert ExamResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result


def test_a_stop_ends_the_exam_between_two_batches():
    stop, judge = StopToken(), Scripted(knows)
    with pytest.raises(Stopped):
        for _ in take_exam(judge, stop):
            stop.request("the test asks")
    assert judge.asked == 16


def test_the_demos_judge_is_examined_in_its_own_sentences_and_knows_nothing_else():
    result = taken(GrammarJudge())
    assert result.passed and result.right == 60 and "the demo's grammar" in result.exam
    assert set(result.by_kind) == {"careless", "curt", "rude", "astray"}
    judge = GrammarJudge()
    outside = result_of(judge, shipped_exam(), judge.score(comparisons_of(shipped_exam())))
    assert outside.right == 0 and not outside.passed


# -- who is believed ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(context: Callable[..., Context]) -> Callable[..., Context]:
    return lambda **more: context(
        **{
            "judge": "server",
            "server_url": "http://127.0.0.1:9/v1",
            "server_model": "wise",
            "min_pairs": 5,
            "relevance": False,
            **more,
        }
    )


def test_an_exam_is_taken_once_by_each_judge(server: Callable[..., Context]):
    judge = Scripted(knows)
    _, first = run_stage(examined_judge(server(), lambda *_: judge))
    _, again = run_stage(examined_judge(server(), lambda *_: judge))
    assert judge.asked == 60 and first.exams == again.exams
    assert first.judge(lambda *_: None) is judge and first.judge(lambda *_: None) is None  # handed over once
    run_stage(examined_judge(server(server_model="wiser"), lambda *_: judge))
    assert judge.asked == 120


def test_an_exam_that_was_kept_by_another_version_is_taken_again(server: Callable[..., Context]):
    context, judge = server(), Scripted(knows)
    path = context.cache / layout.EXAMS
    path.parent.mkdir(parents=True)
    key = exam_key(context.config, context.run.results)
    path.write_text(json.dumps({"key": key, "value": {"judge": "wise", "points": 7}}) + "\n")
    run_stage(examined_judge(context, lambda *_: judge))
    assert judge.asked == 60


def test_what_judges_is_in_the_key(context: Callable[..., Context], tmp_path):
    reward = tmp_path / "reward"
    reward.mkdir()
    (reward / "config.json").write_text("{}")
    options = [
        {"judge": "self"},
        {"judge": "self", "adapter_path": "another"},
        {"judge": "self", "dtype": "float16"},
        {"judge": "server", "server_url": "http://a/v1", "server_model": "m"},
        {"judge": "server", "server_url": "http://b/v1", "server_model": "m"},
        {"judge": "reward-model", "reward_model_id": str(reward)},
    ]
    made = context()
    keys = [exam_key(made.config.model_copy(update=changed), made.run.results) for changed in options]
    (reward / "config.json").write_text("[]")
    keys.append(exam_key(made.config.model_copy(update=options[-1]), made.run.results))
    assert len(set(keys)) == len(keys)


def test_a_judge_that_fails_scores_no_pair_and_the_report_and_the_screen_say_why(
    server: Callable[..., Context],
    use: Callable[[Any], Any],  # noqa: F811
):
    judge = use(Scripted(likes_length))
    made = with_pairs(server(accept_quality="a test"), rows(30))
    events, result = run_stage(quality.run(made))
    assert judge.asked == 60  # the exam, and no pair
    report = report_of(made)
    assert report["judge"] is None and report["figures"]["improved_share"] is None and result.facts["judge"] is None
    assert [exam["passed"] for exam in report["exams"]] == [False] and report["exams"][0]["longer_chosen"] == 1.0
    checks = {event.name: event for event in events if isinstance(event, Check)}
    assert checks["exam of scripted"].status == "warning" and "failed its exam" in checks["exam of scripted"].detail
    assert any("is not believed" in event.text for event in events if isinstance(event, Message))
    assert not (made.run / layout.SCORES_JSONL).exists()


def test_a_judge_that_passes_has_its_exam_in_the_report_and_on_the_screen(
    context: Callable[..., Context],
    use: Callable[[Any], Any],  # noqa: F811
):
    use(Ruler())
    made = with_pairs(context(judge="demo", min_pairs=5, relevance=False), rows(30))
    events, _ = run_stage(quality.run(made))
    (exam,) = report_of(made)["exams"]
    assert exam["passed"] and exam["asked"] == exam["right"] == 20 and exam["exam"] == "a ruler's exam"
    checks = {event.name: event for event in events if isinstance(event, Check)}
    assert checks["exam of demo"].status == "ok" and checks["exam of demo"].detail.startswith("right in 20 of 20")
    assert checks["it chooses"].detail == "the longer answer in 0% (right would be 0%)"


def test_the_card_tells_the_exam_of_a_judge_that_failed():
    exam = Exam("an exam", "the better one", (ExamItem("false", "1 + 1?", "2", "3 | <b>"),))
    failed = result_of(Scripted(likes_length), exam, [ScorePair(0.0, 1.0)])
    card = model_card(
        base="b", revision=None, data={}, pairs_report={}, hyperparameters={}, versions={}, hashes={},
        evaluation={"verdict": "cannot tell", "reasons": [], "figures": {}, "judge": None, "exams": [failed.as_dict()]},
    )  # fmt: skip
    assert "scripted failed its exam (an exam)." in card and "| accuracy, 95 % interval | 0 to 0.7935 |" in card
    assert "| chose the longer answer | 1 |" in card
