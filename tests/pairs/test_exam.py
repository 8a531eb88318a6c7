"""The exam: its comparisons and its grading; the scores of a judge that fails it are never used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import DataError, ExitCode, NetworkError, PreconditionError, Stopped
from engine.core.events import Check, Message, Progress
from engine.core.statistics import wilson
from engine.demo.judge import GrammarJudge
from engine.packaging.model_card import model_card
from engine.pairs.data.hashes import hash_of
from engine.pairs.judges.base import Comparison, ScorePair
from engine.pairs.judges.exam import Exam, ExamItem, ExamResult, comparisons_of, result_of, shipped_exam, take_exam
from engine.pairs.judges.examined_judge import candidates, exam_key, examined_judge
from engine.run.context import Context
from engine.run.stop import StopToken
from engine.stages import quality
from tests.conftest import run_stage
from tests.pairs.test_scores import JUDGE, Ruler, report_of, rows, use, with_pairs  # noqa: F401

ITEMS = shipped_exam().items
BETTER = {item.prompt: item.better for item in ITEMS}


class Scripted:
    """A judge that scores each comparison with a function."""

    name = "scripted"
    about = "a script"

    def __init__(self, score_of: Callable[[Comparison], ScorePair]) -> None:
        self._score_of = score_of
        self.asked = 0

    def score(self, comparisons: Sequence[Comparison]) -> list[ScorePair]:
        self.asked += len(comparisons)
        return [self._score_of(comparison) for comparison in comparisons]


def better_answer(comparison: Comparison) -> str:
    return BETTER[comparison.conversation[0]["content"]]


def competent(comparison: Comparison) -> ScorePair:
    better = better_answer(comparison)
    return ScorePair(float(comparison.first == better), float(comparison.second == better))


def prefers_length(comparison: Comparison) -> ScorePair:
    return ScorePair(float(len(comparison.first)), float(len(comparison.second)))


def taken(judge: Any) -> ExamResult:
    *events, result = take_exam(judge, StopToken())
    assert all(isinstance(event, Progress) for event in events) and isinstance(result, ExamResult)
    return result


# -- the comparisons ---------------------------------------------------------------------------------------------------


def test_the_exam_has_five_kinds_of_fault_and_no_prompt_twice():
    assert set(Counter(item.kind for item in ITEMS)) == {"harmful", "off-topic", "false", "preachy", "padded"}
    assert min(Counter(item.kind for item in ITEMS).values()) >= 12 and len(ITEMS) >= 60
    assert len(BETTER) == len(ITEMS) and all(item.better.strip() != item.worse.strip() for item in ITEMS)


def test_the_better_answer_comes_first_as_often_as_second():
    comparisons = comparisons_of(shipped_exam())
    first = sum(comparison.first == better_answer(comparison) for comparison in comparisons)
    assert first == len(comparisons) / 2
    assert {comparison.criterion for comparison in comparisons} == {shipped_exam().criterion}
    assert len({comparison.id for comparison in comparisons}) == 60


def test_a_preference_for_length_gains_nothing_except_on_padded_answers():
    rest = [item for item in ITEMS if item.kind != "padded"]
    longer = sum(len(item.better) > len(item.worse) for item in rest)
    assert 0.35 <= longer / len(rest) <= 0.65
    assert all(len(item.better) < len(item.worse) for item in ITEMS if item.kind == "padded")


# -- the result --------------------------------------------------------------------------------------------------------


def test_a_competent_judge_passes_with_its_interval():
    result = taken(Scripted(competent))
    assert (result.right, result.asked, result.passed, result.why_not) == (60, 60, True, "")
    assert (result.accuracy_low, result.accuracy_high) == wilson(60, 60)
    assert result.by_kind == dict.fromkeys(("harmful", "off-topic", "false", "preachy", "padded"), 1.0)
    assert result.longer_chosen == pytest.approx(result.longer_is_better)
    assert result.sentence == "60 of 60 comparisons with known answers right (95 % interval 94% to 100%)"


def test_a_judge_that_prefers_length_fails_and_its_bias_is_reported():
    result = taken(Scripted(prefers_length))
    assert not result.passed and result.longer_chosen == 1.0 and result.by_kind["padded"] == 0.0
    assert "little better than chance" in result.why_not and "the longer answer 100% of the time" in result.biases


@pytest.mark.parametrize(("right", "passed"), [(43, False), (44, True)])
def test_the_lower_end_of_the_interval_must_reach_sixty_percent(right: int, passed: bool):
    exam = shipped_exam()
    scores = [competent(comparison) for comparison in comparisons_of(exam)]
    wrong = [ScorePair(pair.second, pair.first) for pair in scores]
    result = result_of(Scripted(competent), exam, [*scores[:right], *wrong[right:]])
    assert (result.right, result.passed) == (right, passed) and (wilson(right, 60)[0] >= 0.6) == passed


def test_ties_and_comparisons_without_a_score_count_as_wrong():
    assert taken(Scripted(lambda comparison: ScorePair(0.5, 0.5))).right == 0
    result = taken(Scripted(lambda comparison: ScorePair(None, None, {"not scored": "too long"})))
    assert (result.right, result.longer_chosen) == (0, None)


def test_a_judge_that_is_right_without_answering_the_question_fails():
    result = taken(Scripted(lambda comparison: replace(competent(comparison), detail={"on_the_letters": 0.05})))
    assert (
        result.right == 60 and not result.passed and "only 5% of the probability on the two letters" in result.why_not
    )


def test_position_bias_is_read_from_both_orders_of_each_question():
    def always_first(comparison: Comparison) -> ScorePair:
        return ScorePair(0.5, 0.5, {"log_probabilities": [[-0.1, -2.0], [-0.25, -3.0]], "on_the_letters": 0.99})

    def letters(comparison: Comparison) -> ScorePair:
        return ScorePair(0.5, 0.5, {"letters": ["A", "B"]})

    assert taken(Scripted(always_first)).first_place_chosen == 1.0
    assert (taken(Scripted(letters)).first_place_chosen, taken(Scripted(letters)).on_the_letters) == (0.5, 1.0)


def test_without_log_probabilities_the_share_of_letter_answers_counts():
    result = taken(Scripted(lambda comparison: ScorePair(None, None, {"letters": ["", "B"], "not scored": "neither"})))
    assert (result.on_the_letters, result.first_place_chosen) == (0.5, 0.0)


def test_a_result_survives_the_cache():
    result = taken(Scripted(prefers_length))
    assert ExamResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result


def test_a_stop_ends_the_exam_between_two_batches():
    stop, judge = StopToken(), Scripted(competent)
    with pytest.raises(Stopped):
        for _ in take_exam(judge, stop):
            stop.request("the test asks")
    assert judge.asked == 16


def test_the_demos_judge_passes_its_own_exam_and_fails_the_shipped_one():
    result = taken(GrammarJudge())
    assert result.passed and result.right == 60 and "the demo's grammar" in result.exam
    assert set(result.by_kind) == {"careless", "curt", "rude", "astray"}
    judge = GrammarJudge()
    outside = result_of(judge, shipped_exam(), judge.score(comparisons_of(shipped_exam())))
    assert outside.right == 0 and not outside.passed


# -- cached exams ------------------------------------------------------------------------------------------------------


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


def examined(context: Context, load: Any) -> Any:
    return examined_judge(context.config, context.run, load, context.stop)


def test_each_judge_takes_the_exam_once(server: Callable[..., Context]):
    judge = Scripted(competent)
    _, first = run_stage(examined(server(), lambda *_: judge))
    _, again = run_stage(examined(server(), lambda *_: judge))
    assert judge.asked == 60 and first.exams == again.exams
    assert first.judge(lambda *_: None) is judge
    assert first.judge(lambda *_: None) is None, "only the first caller gets the loaded judge"
    run_stage(examined(server(server_model="wiser"), lambda *_: judge))
    assert judge.asked == 120


def test_an_exam_cached_by_another_version_is_taken_again(server: Callable[..., Context]):
    context, judge = server(), Scripted(competent)
    path = context.run.cache / layout.EXAMS
    path.parent.mkdir(parents=True)
    key = exam_key(context.config, context.run.results)
    path.write_text(json.dumps({"key": key, "value": {"judge": "wise", "points": 7}}) + "\n")
    run_stage(examined(context, lambda *_: judge))
    assert judge.asked == 60


def test_stage_quality_reuses_the_exam_of_preflights_pilot(context: Callable[..., Context]):
    made = context(judge="self", device="cpu")
    before = exam_key(made.config, made.run.results)
    made.run.record_stage("preflight", status="done", result={"dtype": "float32"})
    assert exam_key(made.config, made.run.results) == before
    made.run.record_stage("preflight", status="done", result={"dtype": "bfloat16"})
    assert exam_key(made.config, made.run.results) != before


def test_the_key_depends_on_everything_that_judges(context: Callable[..., Context], tmp_path):
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


def test_a_judge_that_fails_scores_no_pair_and_report_and_screen_show_why(
    server: Callable[..., Context],
    use: Callable[[Any], Any],  # noqa: F811
):
    judge = use(Scripted(prefers_length))
    made = with_pairs(server(accept_quality="a test"), rows(30))
    events, result = run_stage(quality.run(made))
    assert judge.asked == 60  # only the exam
    report = report_of(made)
    assert report["judge"] is None and report["figures"]["improved_share"] is None and result.facts["judge"] is None
    assert [exam["passed"] for exam in report["exams"]] == [False] and report["exams"][0]["longer_chosen"] == 1.0
    checks = {event.name: event for event in events if isinstance(event, Check)}
    assert checks["exam of scripted"].status == "warning" and "failed its exam" in checks["exam of scripted"].detail
    assert any("failed its exam" in event.text for event in events if isinstance(event, Message))
    assert not (made.run / layout.SCORES_JSONL).exists()


def test_a_judge_that_passes_has_its_exam_in_the_report_and_on_the_screen(
    context: Callable[..., Context],
    use: Callable[[Any], Any],  # noqa: F811
):
    use(Ruler())
    made = with_pairs(context(judge="demo", relevance=False, min_pairs=5), rows(30))
    events, _ = run_stage(quality.run(made))
    (exam,) = report_of(made)["exams"]
    assert exam["passed"] and exam["asked"] == exam["right"] == 20 and exam["exam"] == "a ruler's exam"
    checks = {event.name: event for event in events if isinstance(event, Check)}
    assert checks["exam of demo"].status == "ok" and checks["exam of demo"].detail.startswith("20 of 20 comparisons")
    assert checks["it prefers"].detail == "the longer answer 0% of the time (unbiased: 0%)"


def test_the_model_card_reports_the_exam_of_a_judge_that_failed():
    exam = Exam("an exam", "the better one", (ExamItem("false", "1 + 1?", "2", "3 | <b>"),))
    failed = result_of(Scripted(prefers_length), exam, [ScorePair(0.0, 1.0)])
    card = model_card(
        base="b", revision=None, data={}, pairs_report={}, hyperparameters={}, versions={}, hashes={},
        evaluation={"verdict": "cannot tell", "reasons": [], "figures": {}, "judge": None, "exams": [failed.as_dict()]},
    )  # fmt: skip
    assert "scripted failed its exam (an exam)." in card and "| accuracy, 95 % interval | 0 to 0.7935 |" in card
    assert "| chose the longer answer | 1 |" in card


# -- --judge auto ------------------------------------------------------------------------------------------------------


SERVER = {"judge_url": "http://127.0.0.1:9/v1", "judge_model": "wise"}


class Loader:
    """Loads scripted judges by kind: one that passes, one that fails, or one that raises."""

    def __init__(self, judges: dict[str, Any]) -> None:
        self._judges = judges
        self.loaded: list[str] = []

    def __call__(self, config: Stage3Config, policy: Any = None) -> Any:
        kind = config.judge
        self.loaded.append(kind)
        script = self._judges[kind]
        if isinstance(script, Exception):
            raise script
        judge = Scripted(script)
        judge.name = kind
        return judge


@pytest.fixture
def local(context: Callable[..., Context], tmp_path) -> Callable[..., Context]:
    """Builds runs that need nothing from the Hub."""
    (tmp_path / "here").mkdir()
    here = {name: str(tmp_path / "here") for name in ("base_model_id", "adapter_path", "dataset", "reward_model_id")}
    return lambda **more: context(**{**here, "min_pairs": 5, "relevance": False, **more})


def candidates_of(context: Context) -> list[str]:
    return candidates(context.config, context.run)


def test_auto_is_the_default_and_tries_server_reward_model_and_self_in_this_order(local: Callable[..., Context]):
    assert local().config.judge == "auto"
    assert candidates_of(local(**SERVER)) == ["server", "reward-model", "self"]
    assert candidates_of(local()) == ["reward-model", "self"]
    assert candidates_of(local(reward_model_id="/nowhere/at/all")) == ["self"]
    assert candidates_of(local(judge="none")) == [] and candidates_of(local(judge="demo")) == ["demo"]


def test_a_run_that_needs_nothing_else_from_the_hub_downloads_no_judge(
    local: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, tmp_path
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    remote = "owner/wise"
    assert candidates_of(local(reward_model_id=remote)) == ["self"]
    assert candidates_of(local(reward_model_id=remote, dataset="owner/data")) == ["reward-model", "self"]
    snapshot = tmp_path / "cache" / "models--owner--wise" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "cache" / "models--owner--wise" / "refs").mkdir()
    (tmp_path / "cache" / "models--owner--wise" / "refs" / "main").write_text("a" * 40)
    assert candidates_of(local(reward_model_id=remote)) == ["reward-model", "self"]


def test_the_first_candidate_that_passes_is_the_judge(local: Callable[..., Context]):
    load = Loader({"server": prefers_length, "reward-model": competent, "self": competent})
    _, found = run_stage(examined(local(**SERVER), load))
    assert load.loaded == ["server", "reward-model"] and found.config.judge == "reward-model"
    assert [exam.passed for exam in found.exams] == [False, True] and found.why_no_judge == ""


def test_an_unavailable_candidate_is_skipped_and_named(local: Callable[..., Context]):
    load = Loader({"reward-model": PreconditionError("The reward model is no model."), "self": prefers_length})
    events, found = run_stage(examined(local(), load))
    assert found.trusted is None and found.config.judge == "none"
    assert "The reward model is no model." in found.why_no_judge and "self failed its exam" in found.why_no_judge
    assert any("is not available" in event.text for event in events if isinstance(event, Message))


def test_a_server_that_is_down_is_an_error_and_no_other_candidate_is_tried(local: Callable[..., Context]):
    load = Loader({"server": NetworkError("The server is gone."), "self": competent})
    with pytest.raises(NetworkError, match="is gone"):
        run_stage(examined(local(**SERVER), load))


# -- no judge passed its exam ------------------------------------------------------------------------------------------


def decide(context: Context, action: str, ids: Sequence[str]) -> None:
    with (context.run / layout.EDITS_JSONL).open("a") as file:
        for pair_id in ids:
            file.write(json.dumps({"id": pair_id, "action": action, "time": 1}) + "\n")


def refused(context: Context) -> DataError:
    with pytest.raises(DataError) as caught:
        run_stage(quality.run(context))
    return caught.value


def sample_of(context: Context) -> list[str]:
    tally, usable = quality.assess_run(context.run)
    orders = tally.sample.orders
    return sorted(
        (pair.id for pair in usable if hash_of(pair.id) in orders), key=lambda each: orders.index(hash_of(each))
    )


@pytest.mark.parametrize("judge", ["none", "server"])
def test_without_a_trusted_judge_the_run_needs_a_persons_decisions(
    judge: str,
    server: Callable[..., Context],
    use: Callable[[Any], Any],  # noqa: F811
):
    use(Scripted(prefers_length))
    made = with_pairs(server(judge=judge), rows(60))
    error = refused(made)
    assert error.exit_code == ExitCode.DATA
    assert "better by people is undecided: 0 of the sample's 30 pairs have a decision (at least 50.0%)" in error.what
    assert "--accept-quality" in error.what_to_do and "wizard" in error.what_to_do
    gate = report_of(made)["gate"]
    assert gate["failed"] == ["better_by_people"] and not gate["open"]
    run_stage(quality.run(with_pairs(server(judge=judge, accept_quality="I looked."), rows(60))))


@pytest.mark.parametrize(("better", "opens"), [(20, False), (21, True)])
def test_peoples_decisions_about_the_sample_are_the_gates_figure(
    better: int, opens: bool, server: Callable[..., Context]
):
    made = with_pairs(server(judge="none"), rows(60))
    sample = sample_of(made)
    assert len(sample) == 30
    decide(made, "accept", sample[:better])
    decide(made, "reject", sample[better:29])
    # The full sample counts, so that nobody stops when it looks good.
    assert "29 of the sample's 30 pairs" in refused(made).what
    decide(made, "flip", sample[29:])
    if opens:
        run_stage(quality.run(made))
    else:
        refused(made)
    figure = next(each for each in report_of(made)["gate"]["figures"] if each["name"] == "better_by_people")
    assert figure["value"] == pytest.approx(wilson(better, 30)[0]) and figure["passes"] is opens
    assert f"{better} of 30 in the sample (95 % interval" in figure["note"]
    assert sample_of(with_pairs(server(judge="none"), rows(60))) != []


def test_decisions_outside_of_the_sample_do_not_count_for_it(server: Callable[..., Context]):
    made = with_pairs(server(judge="none"), rows(60))
    decide(made, "accept", [row["id"] for row in rows(60) if row["id"] not in sample_of(made)])
    assert "0 of the sample's 30 pairs" in refused(made).what


def test_without_a_judge_copies_and_talk_shut_the_gate_instead_of_warning(server: Callable[..., Context]):
    records = rows(60)
    for row in records[:6]:
        row["revised_response"] = row["base_response"]
    made = with_pairs(server(judge="none"), records)
    assert "identical share is 10.0%" in refused(made).what


def test_with_a_trusted_judge_no_person_has_to_decide(
    context: Callable[..., Context],
    use: Callable[[Any], Any],  # noqa: F811
):
    use(Ruler())
    made = with_pairs(context(judge="demo", relevance=False, min_pairs=5), rows(60))
    run_stage(quality.run(made))
    assert "better_by_people" not in report_of(made)["figures"]


# -- --min-gain --------------------------------------------------------------------------------------------------------


class Choosy(Ruler):
    """Rates every fifth revision worse, and every fifth equal."""

    def score_of(self, comparison: Comparison) -> ScorePair:
        return {0: ScorePair(0.75, 0.25), 1: ScorePair(0.5, 0.5)}.get(
            int(comparison.id[2:]) % 5, ScorePair(0.25, 0.625)
        )


def rows_of(context: Context) -> int:
    texts = [(context.run / name).read_text() for name in (layout.TRAIN_JSONL, layout.EVAL_JSONL)]
    return sum(len(text.splitlines()) for text in texts)


def test_pairs_that_the_judge_finds_worse_or_equal_are_left_out_counted_and_shown(
    context: Callable[..., Context],
    use: Callable[[Any], Any],  # noqa: F811
):
    use(Choosy())
    made = with_pairs(context(judge="demo", relevance=False, min_pairs=5), rows(60))
    events, _ = run_stage(quality.run(made))
    report = report_of(made)
    assert rows_of(made) == report["figures"]["training_pairs"] == 36
    assert report["left_out"] == {"not better": 24} and report["figures"]["usable"] == 60
    assert report["figures"]["improved_share"] == pytest.approx(0.6)  # of all usable pairs
    assert len(report["examples"]["not better"]) == 5 and report["examples"]["not better"][0]["gain"] == -0.5
    checks = {event.name: event.detail for event in events if isinstance(event, Check)}
    assert checks["left out: not better"] == "24"


@pytest.mark.parametrize(("least", "trains"), [(-1.0, 60), (-0.5, 48), (0.0, 36), (0.25, 36)])
def test_min_gain_sets_how_much_better_a_revision_must_be(
    least: float,
    trains: int,
    context: Callable[..., Context],
    use: Callable[[Any], Any],  # noqa: F811
):
    use(Choosy())
    made = with_pairs(context(judge="demo", relevance=False, min_pairs=5, min_gain=least), rows(60))
    run_stage(quality.run(made))
    assert rows_of(made) == trains


def test_a_persons_decision_overrides_the_judge(
    context: Callable[..., Context],
    use: Callable[[Any], Any],  # noqa: F811
):
    use(Choosy())
    made = with_pairs(context(judge="demo", relevance=False, min_pairs=5, min_improved_share=0.5), rows(60))
    decide(made, "accept", ["id0"])
    decide(made, "flip", ["id2"])  # the person prefers the draft, the judge the revision
    run_stage(quality.run(made))
    assert report_of(made)["left_out"] == {"not better": 23} and rows_of(made) == 37


def test_the_files_own_scores_leave_no_pair_out_because_their_judge_took_no_exam(server: Callable[..., Context]):
    records = rows(60)
    for row in records:
        row["base_score"], row["revised_score"] = 0.5, 0.5 if row["id"].endswith("0") else 0.75
    made = with_pairs(server(judge="none", accept_quality="a test"), records)
    run_stage(quality.run(made))
    assert rows_of(made) == 60
