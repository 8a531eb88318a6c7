"""Nothing is scored twice: scores are cached by pair, judge and texts, through stops, kills, edits and redone stages."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from engine.core import layout
from engine.core.errors import DamagedState, DataError, NetworkError, PreconditionError, Stopped
from engine.core.events import Check, Message, Progress
from engine.core.stage_table import STAGE
from engine.demo.grammar import STAGE2_MIX, criticise, draw_answer, questions
from engine.demo.preset import ASSETS
from engine.dpo.evaluation.report import JudgedAnswers, compare
from engine.models.generation.sampling import Reply
from engine.pairs.data.record import Pair
from engine.pairs.judges import scores as scores_module
from engine.pairs.judges.base import Comparison, ScorePair, judge_name
from engine.pairs.judges.exam import Exam, ExamItem
from engine.pairs.judges.scores import (
    JudgeSummary,
    comparison_of,
    in_this_process,
    key_of,
    longest_first,
    read_scores,
    score_pairs,
)
from engine.pairs.principles.constitution import load_constitution
from engine.pipeline.graph import evidence_of
from engine.run.context import Context
from engine.stages import quality
from tests.conftest import run_stage


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"id{i}",
            "prompt": f"How do I mend thing number {i}?",
            "messages": [{"role": "user", "content": f"How do I mend thing number {i}?"}],
            "base_response": f"Kick thing number {i} as hard as you possibly can, twice, and never look back at it.",
            "revised_response": f"Glue thing number {i} gently" + ", and wait for it" * (i % 3) + ".",
            "critic_notes": "",
            "principle_ids": ["kind", "brief"],
            "attempts": 2,
            "status": "ok",
            "base_score": None,
            "revised_score": None,
        }
        for i in range(count)
    ]


def as_pairs(count: int) -> list[Pair]:
    keys = ("id", "prompt", "messages", "base_response", "revised_response")
    return [Pair(**{key: row[key] for key in keys}, principle_ids=("kind", "brief")) for row in rows(count)]


class Ruler:
    """A judge that prefers short replies, records its comparisons, and can be made to fail."""

    name = "demo"
    about = "a ruler"

    def __init__(self, error: Callable[[Sequence[Comparison]], Exception | None] = lambda _: None) -> None:
        self.asked: list[str] = []
        self._error = error

    def score(self, comparisons: Sequence[Comparison]) -> list[ScorePair]:
        if all(comparison.criterion for comparison in comparisons):  # its exam
            return [
                ScorePair(-float(len(comparison.first)), -float(len(comparison.second))) for comparison in comparisons
            ]
        error = self._error(comparisons)
        if error is not None:
            raise error
        self.asked += [comparison.id for comparison in comparisons]
        return [self.score_of(comparison) for comparison in comparisons]

    def score_of(self, comparison: Comparison) -> ScorePair:
        return ScorePair(
            -float(len(comparison.first)), -float(len(comparison.second)), {"principle": comparison.principle_id}
        )

    def own_exam(self) -> Exam:
        items = tuple(ExamItem("padded", f"How long is {i}?", "So long.", f"As long as {i} is.") for i in range(20))
        return Exam("a ruler's exam", "The shorter one.", items)


class LoadedJudge:
    """Loads the judge that a test sets."""

    judge: Any = None

    def __call__(self, _: Any, policy: Any = None) -> Any:
        return self.judge


JUDGE = LoadedJudge()


def scored_by(context: Context, pairs: Sequence[Pair], load: Callable[[Context], Any]) -> Any:
    """Scores pairs into the run folder with the judge of the configuration."""
    name = judge_name(context.config) or ""
    loaded = in_this_process(lambda: load(context), context.stop)
    return score_pairs(context.run / layout.SCORES_JSONL, pairs, name, lambda: loaded)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    monkeypatch.setattr(quality, "judge_loader", lambda _: JUDGE)

    def with_judge(judge: Any) -> Any:
        JUDGE.judge = judge
        return judge

    return with_judge


@pytest.fixture
def scored(context: Callable[..., Context], use: Callable[[Any], Any]) -> Context:
    """A run whose 40 pairs are all scored."""
    made = context(judge="demo")
    use(Ruler())
    run_stage(scored_by(made, as_pairs(40), JUDGE))
    return made


def lines(context: Context) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (context.run / layout.SCORES_JSONL).read_text().splitlines()]


def test_a_score_is_written_with_its_judge_its_texts_and_its_detail(scored: Context):
    written = lines(scored)
    assert {row["id"] for row in written} == {f"id{i}" for i in range(40)} and len(written) == 40
    row = next(row for row in written if row["id"] == "id7")
    pair = as_pairs(8)[7]
    assert row == {
        "id": "id7",
        "judge": "demo",
        "texts": key_of(comparison_of(pair))[1],
        "base_score": -float(len(pair.base_response)),
        "revised_score": -float(len(pair.revised_response)),
        "detail": {"principle": "brief"},
    }
    assert row["base_score"] != row["revised_score"]


def test_nothing_is_scored_twice_and_scores_come_in_the_order_of_the_pairs(scored: Context, use: Callable[[Any], Any]):
    judge = use(Ruler())
    backwards = list(reversed(as_pairs(41)))
    _, found = run_stage(scored_by(scored, backwards, JUDGE))
    assert judge.asked == ["id40"]
    assert [scores.second for scores in found] == [-len(pair.revised_response) for pair in backwards]
    before = (scored.run / layout.SCORES_JSONL).read_bytes()
    events, _ = run_stage(scored_by(scored, backwards, JUDGE))
    assert judge.asked == ["id40"] and events == []
    assert (scored.run / layout.SCORES_JSONL).read_bytes() == before


@pytest.mark.parametrize("changed", ["revised_response", "base_response", "messages"])
def test_only_a_changed_text_is_scored_again(changed: str, scored: Context, use: Callable[[Any], Any]):
    judge, pairs = use(Ruler()), as_pairs(40)
    other: Any = [{"role": "user", "content": "Another question?"}] if changed == "messages" else "Another text."
    pairs[11] = replace(pairs[11], **{changed: other})
    _, found = run_stage(scored_by(scored, pairs, JUDGE))
    assert judge.asked == ["id11"]
    assert found[11].second == -len(pairs[11].revised_response)
    run_stage(scored_by(scored, as_pairs(40), JUDGE))
    assert judge.asked == ["id11"]  # the old text is back, and so is its score


def test_another_judge_scores_every_pair_itself(
    scored: Context, context: Callable[..., Context], use: Callable[[Any], Any]
):
    judge = use(Ruler())
    other = context(judge="reward-model", reward_model_id="owner/wise")
    run_stage(scored_by(other, as_pairs(40), JUDGE))
    assert len(judge.asked) == 40
    assert [row["judge"] for row in lines(other)] == ["demo"] * 40 + ["reward-model owner/wise"] * 40
    known, damaged = read_scores(scored.run / layout.SCORES_JSONL, "demo")
    assert (len(known), damaged) == (40, 0)


def test_torn_and_damaged_lines_are_reported_and_scored_again(scored: Context, use: Callable[[Any], Any]):
    path = scored.run / layout.SCORES_JSONL
    complete = path.read_bytes().splitlines(keepends=True)
    torn, damaged = json.loads(complete[-1]), json.loads(complete[3])
    path.write_bytes(b"".join([*complete[:3], b'{"judge":"demo","id":3}\n', *complete[4:-1], complete[-1][:-20]]))
    judge = use(Ruler())
    events, found = run_stage(scored_by(scored, as_pairs(40), JUDGE))
    assert sorted(judge.asked) == sorted([torn["id"], damaged["id"]])
    messages = " ".join(event.text for event in events if isinstance(event, Message))
    assert (
        "Damaged lines in" in messages
        and "Moved an unfinished score" in messages
        and "2 pairs with the judge demo; 38 are done" in messages
    )
    assert [scores.second for scores in found] == [-len(pair.revised_response) for pair in as_pairs(40)]


def test_a_stop_between_two_batches_keeps_what_is_scored(context: Callable[..., Context], use: Callable[[Any], Any]):
    made, judge = context(judge="demo"), use(Ruler())
    working = scored_by(made, as_pairs(40), JUDGE)
    with pytest.raises(Stopped):
        for event in working:
            if isinstance(event, Progress):
                made.stop.request("the test asks")
    assert len(judge.asked) == len(lines(made)) == scores_module.COMPARISONS_PER_BATCH
    first = list(judge.asked)
    events, _ = run_stage(scored_by(context(judge="demo"), as_pairs(40), JUDGE))
    assert sorted(judge.asked) == sorted(f"id{i}" for i in range(40)) and judge.asked[:16] == first
    progress = [(event.done, event.total) for event in events if isinstance(event, Progress)]
    assert progress == [(32, 40), (40, 40)]


KILLED = """
import sys
from pathlib import Path
from engine.core.config import load_config
from engine.run.context import Context
from engine.run.folder import Run
from tests.pairs.test_scores import Ruler, as_pairs, scored_by
folder = Path(sys.argv[1])
def hold(comparisons):
    if len(judge.asked) == 32:
        print("two batches", flush=True)
        sys.stdin.read()
judge = Ruler(hold)
context = Context(load_config({"output_dir": folder, "judge": "demo"}, environment={}), Run(folder))
list(scored_by(context, as_pairs(40), lambda *_: judge))
"""


def test_after_a_kill_only_unacknowledged_pairs_are_scored(context: Callable[..., Context], use: Callable[[Any], Any]):
    made, judge, root = context(judge="demo"), use(Ruler()), Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(made.run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
    ) as child:  # fmt: skip
        assert child.stdout is not None and child.stdout.readline() == "two batches\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    acknowledged = {row["id"] for row in lines(made)}
    assert len(acknowledged) == 32
    run_stage(scored_by(made, as_pairs(40), JUDGE))
    assert len(judge.asked) == 8 and set(judge.asked).isdisjoint(acknowledged)
    assert len(lines(made)) == 40


def test_a_batch_too_large_for_the_memory_is_halved(context: Callable[..., Context], use: Callable[[Any], Any]):
    full = RuntimeError("CUDA out of memory. Tried to allocate")
    judge = use(Ruler(lambda comparisons: full if len(comparisons) > 5 else None))
    _, found = run_stage(scored_by(context(judge="demo"), as_pairs(20), JUDGE))
    assert [scores.second for scores in found] == [-len(pair.revised_response) for pair in as_pairs(20)]
    assert sorted(judge.asked) == sorted(f"id{i}" for i in range(20))


def test_the_judges_error_passes_through_and_earlier_scores_are_kept(
    context: Callable[..., Context], use: Callable[[Any], Any]
):
    broken = NetworkError("The server is gone.")
    judge = use(Ruler(lambda comparisons: broken if len(judge.asked) == 16 else None))
    made = context(judge="demo")
    with pytest.raises(NetworkError, match="is gone"):
        run_stage(scored_by(made, as_pairs(20), JUDGE))
    assert len(lines(made)) == 16


def test_the_longest_are_scored_first_and_the_order_is_the_same_every_time():
    comparisons = [comparison_of(pair) for pair in as_pairs(12)]
    ordered = longest_first(comparisons)
    lengths = [len(c.conversation[0]["content"]) + len(c.first) + len(c.second) for c in ordered]
    assert lengths == sorted(lengths, reverse=True)
    assert longest_first(list(reversed(comparisons))) == ordered


# -- the stage quality -------------------------------------------------------------------------------------------------


def with_pairs(context: Context, records: list[dict[str, Any]]) -> Context:
    path = context.run / layout.PAIRS_JSONL
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return context


def report_of(context: Context) -> dict[str, Any]:
    return json.loads((context.run / layout.PAIRS_REPORT).read_text())


def test_the_stage_scores_usable_pairs_and_the_gate_reads_the_scores(
    context: Callable[..., Context], use: Callable[[Any], Any]
):
    records = rows(30)
    records[4]["revised_response"] = records[4]["base_response"]  # cannot train, so it is not scored
    records[9]["base_score"], records[9]["revised_score"] = 0.5, 0.25  # which the judge's scores replace
    made, judge = with_pairs(context(judge="demo", min_pairs=5, relevance=False), records), use(Ruler())
    before = (made.run / layout.PAIRS_JSONL).read_bytes()
    events, result = run_stage(quality.run(made))
    assert (made.run / layout.PAIRS_JSONL).read_bytes() == before
    assert sorted(judge.asked) == sorted(f"id{i}" for i in range(30) if i != 4)
    assert report_of(made)["figures"]["improved_share"] == 1.0
    assert report_of(made)["judge"] == result.facts["judge"]
    assert report_of(made)["judge"] | {"not_scored": None} == {
        "name": "demo", "scored": 29, "better": 29, "equal": 0, "worse": 0, "not_scored": None, "on_the_letters": None
    }  # fmt: skip
    check = next(event for event in events if isinstance(event, Check) and event.name == "judge")
    assert (check.status, check.detail) == ("ok", "demo: 29 better, 0 equal, 0 worse")
    assert not any("No judge scored" in event.text for event in events if isinstance(event, Message))


def test_an_edited_pair_is_scored_again_when_the_stage_runs_again(
    context: Callable[..., Context], use: Callable[[Any], Any]
):
    made, judge = with_pairs(context(judge="demo", min_pairs=5, relevance=False), rows(30)), use(Ruler())
    run_stage(quality.run(made))
    judge.asked.clear()
    edit = {"id": "id3", "action": "edit", "text": "Ask somebody who knows.", "time": 1}
    (made.run / layout.EDITS_JSONL).write_text(json.dumps(edit) + "\n")
    assert made.run.set_aside(*STAGE["quality"].outputs, why="edits") is not None  # what the pipeline does
    run_stage(quality.run(made))
    assert judge.asked == ["id3"]
    assert report_of(made)["judge"]["scored"] == 30


def test_ties_and_worse_revisions_do_not_count_as_improved_and_are_distinguished(
    context: Callable[..., Context], use: Callable[[Any], Any]
):
    class Torn(Ruler):
        def score_of(self, comparison: Comparison) -> ScorePair:
            kinds = {
                0: ScorePair(0.25, 0.75),
                1: ScorePair(0.5, 0.5),
                2: ScorePair(0.625, 0.375),
                3: ScorePair(None, None, WHY),
            }
            return kinds[min(int(comparison.id[2:]) % 10, 3)]

    WHY = {"not scored": "longer than the 48 tokens that the judge reads", "tokens": 50}
    made = with_pairs(context(judge="demo", min_pairs=5, relevance=False), rows(30))
    use(Torn())
    with pytest.raises(DataError, match=r"improved share is 33\.3% \(at least 60\.0%\)"):
        events = []
        for event in quality.run(made):
            events.append(event)
    checks = {event.name: event for event in events if isinstance(event, Check)}
    assert checks["judge"].detail == "demo: 3 better, 3 equal, 3 worse, 21 not scored"
    assert checks["judge"].status == "warning"
    assert checks["not scored: longer than the 48 tokens that the judge reads"].detail == "21"


def test_a_judge_that_can_score_nothing_is_an_error(context: Callable[..., Context], use: Callable[[Any], Any]):
    class Blind(Ruler):
        def score_of(self, comparison: Comparison) -> ScorePair:
            return ScorePair(None, None, {"not scored": "too dark"})

    use(Blind())
    with pytest.raises(PreconditionError, match="could score none of 30 pairs") as refused:
        run_stage(quality.run(with_pairs(context(judge="demo", min_pairs=5, relevance=False), rows(30))))
    assert "too dark" in refused.value.why


def test_without_a_judge_the_files_own_scores_count_and_are_named_as_such(context: Callable[..., Context]):
    records = rows(30)
    made = with_pairs(context(judge="none", min_pairs=5, relevance=False, accept_quality="a test"), records)
    events, _ = run_stage(quality.run(made))
    assert report_of(made)["figures"]["improved_share"] is None and report_of(made)["judge"] is None
    assert any("No judge scored these pairs" in event.text for event in events if isinstance(event, Message))
    for row in records[:20]:
        row["base_score"], row["revised_score"] = 0.125, 0.875
    made.run.set_aside(*STAGE["quality"].outputs, why="edits")
    events, _ = run_stage(quality.run(with_pairs(made, records)))
    assert report_of(made)["figures"]["improved_share"] == 1.0
    assert any("20 scores come from the pairs file" in event.text for event in events if isinstance(event, Message))
    assert not (made.run / layout.SCORES_JSONL).exists()


@pytest.mark.fault("C2")
def test_a_damaged_line_needs_a_decision_and_a_torn_one_was_never_acknowledged(context: Callable[..., Context]):
    made = with_pairs(context(judge="none", min_pairs=5, relevance=False, accept_quality="a test"), rows(30))
    pairs, edits = made.run / layout.PAIRS_JSONL, made.run / layout.EDITS_JSONL
    with pairs.open("a") as file:
        file.write('{"id": "id30", "prompt": "torn')
    run_stage(quality.run(made))
    assert report_of(made)["pairs"] == 30
    edits.write_text('{"id": "id1", "action": "reject", "time": 1}\n{"id": "id2", "action": "rej\n')
    with pytest.raises(DamagedState, match=r"Line 2 of .*edits\.jsonl is damaged"):
        run_stage(quality.run(made))
    edits.unlink()
    with pairs.open("a") as file:
        file.write("\n")
    with pytest.raises(DamagedState, match=r"Line 31 of .*pairs\.jsonl is damaged"):
        run_stage(quality.run(made))


def test_a_judge_that_hardly_answers_with_a_letter_gets_a_warning(
    context: Callable[..., Context], use: Callable[[Any], Any]
):
    class Mumbling(Ruler):
        def score_of(self, comparison: Comparison) -> ScorePair:
            return ScorePair(0.25, 0.75, {"on_the_letters": 0.125 if comparison.id == "id1" else 0.0625})

    use(Mumbling())
    made = with_pairs(context(judge="demo", min_pairs=5, relevance=False), rows(30))
    events, _ = run_stage(quality.run(made))
    assert any("probability of only 6.5%" in event.text for event in events if isinstance(event, Message))
    assert report_of(made)["judge"]["on_the_letters"] == pytest.approx((0.125 + 29 * 0.0625) / 30, abs=1e-6)


def test_another_judge_or_another_server_model_makes_the_stage_stale(context: Callable[..., Context]):
    server = {"judge": "server", "server_url": "http://127.0.0.1:9/v1"}
    seen = [
        json.dumps(evidence_of(context(**options), "quality"), sort_keys=True)
        for options in (
            {},
            {"server_model": "wise"},
            {"judge": "self"},
            {**server, "server_model": "wise"},
            {**server, "server_model": "wiser"},
        )
    ]
    assert seen[0] == seen[1] and len(set(seen)) == 4


def test_the_demos_judge_finds_the_revisions_of_its_grammar_better(context: Callable[..., Context]):
    random, records = Random(5), []
    constitution = load_constitution(ASSETS / "constitution.yaml")
    for number, question in enumerate(questions(held_out=False)[:60]):
        answer = draw_answer(random, question, STAGE2_MIX)
        _, revision = criticise(answer, constitution.draw(random), random.choice(question.topic.good))
        texts = {"prompt": question.core, "base_response": answer.text, "revised_response": revision}
        asked = [{"role": "user", "content": question.core}]
        records.append({**rows(1)[0], **texts, "id": f"q{number}", "messages": asked})
    made = with_pairs(context(judge="demo", min_pairs=5, relevance=False), records)
    with contextlib.suppress(DataError):  # other figures of the gate do not matter here
        run_stage(quality.run(made))
    judged = report_of(made)["judge"]
    assert judged["scored"] > 40 and judged["better"] == judged["scored"]
    assert {row["revised_score"] for row in lines(made)} <= {0.9, 1.0}


# -- the verdict -------------------------------------------------------------------------------------------------------


def test_the_verdicts_figures_leave_out_comparisons_without_a_score():
    prompts: Any = [[{"role": "user", "content": f"How do I mend thing {i}?"}] for i in range(4)]
    stage2 = [Reply(f"Kick the thing number {i} twice.", True, 5) for i in range(4)]
    stage3 = [Reply(f"Glue the thing number {i} gently.", True, 6) for i in range(4)]
    judged = JudgedAnswers("j", "a judge", [0.125, None, 0.75, 0.5], [0.25, None, 0.375, 0.5], None)
    comparison, figures = compare(prompts, stage2, stage3, judged)
    assert comparison.differences == [0.125, -0.375, 0.0] and comparison.prompts == 4
    assert (figures["wins"], figures["ties"], figures["losses"], figures["not_judged"]) == (1, 1, 1, 1)
    assert figures["stage2_mean_score"] == pytest.approx((0.125 + 0.75 + 0.5) / 3)
    assert figures["stage2_flawed_share"] is None
    judged = JudgedAnswers(
        "j", "a judge", [0.5] * 4, [0.25] * 4, ([True, True, True, False], [True, False, False, False])
    )
    _, figures = compare(prompts, stage2, stage3, judged)
    assert (figures["stage2_flawed_share"], figures["stage3_flawed_share"]) == (0.75, 0.25)
    _, figures = compare(prompts, stage2, stage3, None)
    assert figures["stage2_mean_score"] is None and "wins" not in figures


def test_the_judges_summary_counts_each_outcome():
    scores = [
        ScorePair(1.0, 2.0),
        ScorePair(3.0, 2.5),
        ScorePair(4.0, 4.0),
        ScorePair(None, None, {"not scored": "why"}),
    ]
    summary = JudgeSummary.of("j", [*scores, scores[0]])
    assert summary.sentence == "j: 2 better, 1 equal, 1 worse, 1 not scored"
    assert summary.scored == 4 and summary.as_dict()["not_scored"] == {"why": 1}
