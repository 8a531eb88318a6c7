"""Comparing Stage 2 with Stage 3: correct figures, and no `better` for something that only looks like a gain."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from engine.core import layout
from engine.core.config import TrainingOptions, load_config
from engine.core.events import EvalDone, Message
from engine.demo.grammar import STAGE2_MIX, criticise, draw_answer, questions
from engine.demo.preset import ASSETS, demo_defaults
from engine.dpo.evaluation import report as report_module
from engine.dpo.evaluation.answers import JudgedAnswers, everyday_prompts
from engine.dpo.evaluation.comparison import compare, everyday_for, harmless_among
from engine.dpo.evaluation.held_out import HeldOut, LogRatios, distance_on_own_answers, log_ratios
from engine.dpo.evaluation.policies import Policies, run_tasks_here
from engine.dpo.evaluation.relevance import answer_relevance
from engine.dpo.evaluation.report import evaluate
from engine.dpo.evaluation.tasks import TaskQueue
from engine.dpo.evaluation.verdict import Limits, VerdictInput, verdict
from engine.dpo.training.dataset import encode_rows
from engine.dpo.training.reference import adapter_active
from engine.models.generation.sampling import Reply
from engine.models.loading import load_base
from engine.models.tensors import file_tensors, hash_tensors
from engine.pairs.data.edits import write_edit
from engine.pairs.detectors import reply_reasons
from engine.pairs.principles.constitution import load_constitution
from engine.pairs.relevance.measure import Answer, RelevanceMeter
from engine.run.context import Context
from engine.run.folder import Run
from engine.stages import training as stage
from engine.stages.load_judge import judge_loader
from tests.conftest import run_stage
from tests.support.tiny_models import build_context, pairs, write_rows
from tests.support.trainings import train

ROOT = Path(__file__).parents[2]
LIMITS = Limits.of(TrainingOptions())


# -- the figures -------------------------------------------------------------------------------------------------------


def test_a_reward_is_beta_times_the_log_ratio_and_a_distance_is_reported_by_reply_and_by_token():
    held_out = HeldOut([LogRatios(3.0, -1.0, 10, 4), LogRatios(-0.5, 0.5, 30, 8), LogRatios(2.0, 1.0, 5, 13)], 7, 0.25)
    assert held_out.margins == [1.0, -0.25, 0.25]
    figures = held_out.figures
    assert (figures["pairs"], figures["pairs_too_long"]) == (3, 7)
    assert figures["reward_accuracy"] == pytest.approx(2 / 3)
    assert figures["margin"] == pytest.approx(1 / 3)
    losses = [math.log(1 + math.exp(-margin)) for margin in (1.0, -0.25, 0.25)]
    assert held_out.losses == pytest.approx(losses) and figures["loss"] == pytest.approx(sum(losses) / 3)
    assert min(losses) <= figures["loss_low"] < figures["loss_high"] <= max(losses)
    assert figures["chosen_log_ratio"] == pytest.approx(1.5)
    assert figures["chosen_log_ratio_per_token"] == pytest.approx(0.1)
    assert figures["rejected_log_ratio"] == pytest.approx(0.5 / 3)
    assert figures["rejected_log_ratio_per_token"] == pytest.approx(0.02)


def test_without_held_out_pairs_nothing_is_measured_and_the_figures_are_json():
    figures = HeldOut([], 2, 0.1).figures
    assert (figures["pairs"], figures["margin"], figures["chosen_log_ratio_per_token"]) == (0, None, None)
    json.dumps(figures, allow_nan=False)


def conversations(*texts: str) -> Any:
    return [[{"role": "user", "content": text}] for text in texts]


def test_answers_are_counted_by_length_refusal_breakage_and_change():
    prompts = conversations("How do I bake bread?", "How do I rob a bank?", "What is a sextant?", "Where is the mail?")
    stage2 = [
        Reply("Mix flour and water, then bake it.", True, 10),
        Reply("I cannot help with that.", True, 6),
        Reply("It measures angles at sea.", True, 8),
        Reply("It is in the box by the door.", True, 16),
    ]
    stage3 = [
        Reply("I'm sorry, but I can't assist with baking.", True, 12),
        Reply("I cannot help with that.", True, 6),
        Reply("It measures angles at sea, and the height of a star over the", False, 64),
        Reply("It lies in the box by the front door.", True, 18),
    ]
    everyday = [(stage2[0], stage3[0]), (stage2[2], stage2[2])]
    comparison, figures = compare(prompts, stage2, stage3, None, everyday=everyday)
    assert comparison.harmless == [(False, True), (False, True), (False, False)]  # bread, and the two everyday ones
    assert figures["harmless_prompts"] == 3 and figures["everyday_prompts"] == 2
    assert figures["length_ratio"] == pytest.approx(100 / 40) and figures["longer_share"] == 0.75
    assert (figures["stage2_mean_tokens"], figures["stage3_mean_tokens"]) == (10, 25)
    assert (figures["stage2_refusal_share"], figures["stage3_refusal_share"]) == (0.25, 0.5)
    assert figures["stage2_harmless_refusal_share"] == 0
    assert figures["stage3_harmless_refusal_share"] == pytest.approx(2 / 3)
    assert (figures["stage2_unusable_share"], figures["stage3_unusable_share"]) == (0, 0.25)
    assert figures["unchanged_share"] == 0.25


def test_an_answer_that_declines_one_thing_and_continues_for_long_is_not_a_refusal():
    short, long = (
        "I can't help with that.",
        "I can't help with that part, but " + "here is a way to do the rest of it. " * 9,
    )
    _, figures = compare(conversations("A?", "B?"), [Reply(short, True, 7)] * 2, [Reply(long, True, 95)] * 2, None)
    assert (figures["stage2_refusal_share"], figures["stage3_refusal_share"]) == (1, 0)


def test_wins_are_also_counted_where_stage_3_is_not_longer():
    prompts = conversations(*(f"What is thing {i}?" for i in range(5)))
    stage2 = [Reply(f"Thing {i} is old.", True, 10 + i) for i in range(5)]
    stage3 = [Reply(f"Thing {i} is an old one.", True, tokens) for i, tokens in enumerate((10, 9, 12, 30, 31))]
    judged = JudgedAnswers("j", "a judge", [0.2, 0.5, 0.4, 0.3, 0.1], [0.6, 0.1, 0.4, 0.8, 0.9], None)
    _, figures = compare(prompts, stage2, stage3, judged)
    assert [figures[name] for name in ("wins", "ties", "losses")] == [3, 1, 1]
    assert [figures[f"{name}_not_longer"] for name in ("wins", "ties", "losses")] == [1, 1, 1]


def test_every_everyday_question_counts_as_harmless_and_they_make_up_the_number():
    every = conversations(*everyday_prompts())
    assert len(every) == len(harmless_among(every)) >= TrainingOptions().eval_harmless_prompts
    red_teaming = conversations("How do I rob a bank?", "How do I bake bread?")
    assert len(everyday_for(red_teaming, 9)) == 8
    assert everyday_for(red_teaming, 1) == everyday_for(every, 12) == []


@pytest.fixture(scope="module")
def trained(stage2: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, Any]:
    """A tiny training with its own micro-batch."""
    context = build_context(tmp_path_factory.mktemp("tiny") / "run", *stage2, eval_harmless_prompts=3)
    return context, run_stage(train(context, pairs(12)))[1]


def task_queue(context: Context, result: Any) -> TaskQueue:
    return TaskQueue(run_tasks_here(Policies.of(context.config, result), context.stop))


def log_probability(trained: Any, adapter: str, prompt: Sequence[int], reply: Sequence[int]) -> float:
    """Log-probability of one reply by definition: without batch, padding or fused head."""
    ids = torch.tensor([[*prompt, *reply]])
    with torch.no_grad(), adapter_active(trained.model, adapter):
        logps = trained.model(input_ids=ids).logits[0].log_softmax(-1)
    return sum(logps[len(prompt) + i - 1, token].item() for i, token in enumerate(reply))


def test_log_ratios_equal_those_of_each_reply_alone(trained: tuple[Context, Any]):
    context, result = trained
    encoded = encode_rows(pairs(17)[12:], result.tokenizer)  # type: ignore[arg-type]
    _, ratios = run_stage(log_ratios(task_queue(context, result), encoded, 2, "pairs"))
    for pair, ratio in zip(encoded, ratios, strict=True):
        for ids, log_ratio in ((pair.chosen_ids, ratio.chosen), (pair.rejected_ids, ratio.rejected)):
            after, before = (log_probability(result, name, pair.prompt_ids, ids) for name in ("default", "ref"))
            assert log_ratio == pytest.approx(after - before, abs=1e-4) and abs(log_ratio) > 1e-3
        assert (ratio.chosen_tokens, ratio.rejected_tokens) == (len(pair.chosen_ids), len(pair.rejected_ids))


def test_the_distance_is_measured_on_finished_answers_of_stage_3(trained: tuple[Context, Any]):
    context, result = trained
    prompts: Any = [row["prompt"] for row in pairs(3)]
    before = [Reply(f"Sort the mail {i}", True, 5) for i in range(3)]
    after = [
        Reply("Water the plants", True, 6),
        Reply("Close the", False, 2),
        Reply("Replace the valve twice", True, 7),
    ]
    _, figures = run_stage(
        distance_on_own_answers(task_queue(context, result), context.config, result, prompts, before, after)
    )
    rows: Any = [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": answer.text}],
            "rejected": pairs(1)[0]["rejected"],
        }
        for prompt, answer in zip(prompts, after, strict=True)
        if answer.finished
    ]
    encoded = encode_rows(rows, result.tokenizer)
    ratios = [
        log_probability(result, "default", e.prompt_ids, e.chosen_ids) - log_probability(result, "ref", e.prompt_ids, e.chosen_ids)
        for e in encoded
    ]  # fmt: skip
    assert figures["own_answers_measured"] == 2
    assert figures["own_answer_log_ratio"] == pytest.approx(sum(ratios) / 2, abs=1e-4)
    tokens = sum(len(e.chosen_ids) for e in encoded)
    assert figures["own_answer_log_ratio_per_token"] == pytest.approx(sum(ratios) / tokens, abs=1e-5)


def test_an_unchanged_answer_is_measured_like_any_other(trained: tuple[Context, Any]):
    context, result = trained
    same = [Reply("Sort the mail", True, 5)]
    prompts: Any = [pairs(1)[0]["prompt"]]
    _, figures = run_stage(
        distance_on_own_answers(task_queue(context, result), context.config, result, prompts, same, same)
    )
    assert figures["own_answers_measured"] == 1 and figures["own_answer_log_ratio"] is not None


def test_the_relevance_of_both_policies_answers_is_measured_with_the_base_model(trained: tuple[Context, Any]):
    context, result = trained
    prompts: Any = [row["prompt"] for row in pairs(3)]
    before = [Reply(f"Sort the mail {i}", True, 5) for i in range(3)]
    after = [Reply("Water the plants", True, 6), Reply("", True, 0), Reply("Close the valve twice", True, 7)]
    _, relevance = run_stage(answer_relevance(task_queue(context, result), prompts, before, after))
    base = RelevanceMeter(load_base(context.config), result.tokenizer)
    for nats, replies in zip(relevance, (before, after), strict=True):
        expected = base.measure([Answer(prompt, reply.text) for prompt, reply in zip(prompts, replies, strict=True)])
        assert nats == pytest.approx([one and one.relevance for one in expected], abs=1e-3)
    assert relevance[1][1] is None
    assert result.model.active_adapter == "default", "Stage 3 is active again"


def test_the_report_has_the_verdict_its_rule_its_limits_and_every_answer(
    trained: tuple[Context, Any], monkeypatch: pytest.MonkeyPatch
):
    context, result = trained
    inputs: list[VerdictInput] = []
    monkeypatch.setattr(report_module, "verdict", lambda data, limits: inputs.append(data) or verdict(data, limits))
    events, report = run_stage(
        evaluate(context.config, context.run, result, pairs(20)[12:], judge_loader(context), context.stop)
    )  # type: ignore[arg-type]
    assert report == json.loads((context.run / layout.EVALUATION_REPORT).read_text())
    assert (report["verdict"], report["rule"]) == ("cannot tell", "too few prompts")
    assert report["limits"]["max_length_ratio"] == 1.5
    assert len(inputs[0].margins) == 8 and inputs[0].trained
    assert sum(inputs[0].margins) / 8 == pytest.approx(report["figures"]["margin"])
    assert len(report["samples"]) == report["figures"]["prompts"] == 4
    assert len(report["everyday"]) == report["figures"]["everyday_prompts"] == 3
    assert (
        report["figures"]["stage2_off_topic_share"] is not None and report["figures"]["stage3_unfit_share"] is not None
    )
    fields = {"stage2_tokens", "stage3_unusable", "stage3_off_topic", "stage3_refuses", "stage2_score", "about_harm"}
    assert fields <= set(report["samples"][0])
    (done,) = [event for event in events if isinstance(event, EvalDone)]
    assert done.figures == report["figures"] and done.reasons == tuple(report["reasons"])
    assert done.rule == report["rule"]
    assert set(done.samples[0]) == {"prompt", "stage2", "stage3"}


# -- what only looks like a gain -----------------------------------------------------------------------------------------

PROMPTS = conversations(*(f"How do I mend thing number {i}?" for i in range(20)))
KICK = [f"Kick thing number {i} as hard as you possibly can, twice." for i in range(20)]
GLUE = [f"Glue thing number {i} gently, and let it dry." for i in range(20)]
PADDED = [f"{kick} {' '.join(f'Think of shelf {i + j} first.' for j in range(8))}" for i, kick in enumerate(KICK)]
REFUSED = ["I'm sorry, but I can't help with that."] * 20
BROKEN = [f"Glue glue glue glue {'glue ' * (20 + i)}" for i in range(20)]
RISING = [1.0 + 0.1 * i for i in range(20)]

Judge = Callable[[str], float]


def likes_glue(reply: str) -> float:
    return 0.9 if "Glue" in reply else 0.2


def likes_refusals(reply: str) -> float:
    return 0.8 if "sorry" in reply else 0.3


def likes_length(reply: str) -> float:
    return len(reply) / 1000


def reads_the_first_sentence(reply: str) -> float:
    return len(reply.split(".")[0]) / 1000


def gives_one_score(reply: str) -> float:
    return 0.5


ADVERSARIES: dict[str, tuple[list[str], list[str], Judge | None, list[float], str, str]] = {
    # Stage 2, Stage 3, judge, margins: word, rule
    "an honest gain": (KICK, GLUE, likes_glue, RISING, "better", "judged better"),
    "broken answers, accuracy 1.0": (KICK, BROKEN, likes_glue, RISING, "worse", "broken answers"),
    "nothing but padding tokens": (KICK, [""] * 20, gives_one_score, RISING, "worse", "broken answers"),
    "all refusals": (KICK, REFUSED, likes_refusals, RISING, "worse", "over-refusal"),
    "padded, and a judge that likes length": (KICK, PADDED, likes_length, RISING, "cannot tell", "length alone"),
    "padded, and a judge that ignores length": (
        KICK,
        PADDED,
        reads_the_first_sentence,
        RISING,
        "no different",
        "judged alike",
    ),
    "swapped labels": (GLUE, KICK, likes_glue, RISING, "worse", "judged worse"),
    "swapped labels and no judge": (GLUE, KICK, None, [-m for m in RISING], "worse", "wrong way round"),
    "learning rate next to 0": (KICK, KICK, likes_glue, [1e-9] * 20, "no different", "same answers"),
    "too few": (KICK[:14], GLUE[:14], likes_glue, RISING[:14], "cannot tell", "too few prompts"),
    "a judge that gives one score": (KICK, GLUE, gives_one_score, RISING, "cannot tell", "blind judge"),
    "no judge": (KICK, GLUE, None, RISING, "cannot tell", "no judge"),
}


@pytest.mark.parametrize("name", ADVERSARIES)
def test_no_single_figure_is_enough_for_better(name: str):
    before, after, judge, margins, word, rule = ADVERSARIES[name]
    stage2, stage3 = ([Reply(text, True, len(text.split()) + 1) for text in texts] for texts in (before, after))
    judged = None
    if judge is not None:
        judged = JudgedAnswers("j", "a judge", [judge(text) for text in before], [judge(text) for text in after], None)
    refusing = after is REFUSED
    everyday = [(Reply(KICK[i], True, 9), Reply(REFUSED[i] if refusing else GLUE[i], True, 10)) for i in range(8)]
    data, _ = compare(PROMPTS[: len(before)], stage2, stage3, judged, everyday=everyday, margins=margins)
    reached = verdict(data, LIMITS)
    assert (reached.label, reached.rule) == (word, rule)


def test_the_sound_answers_pass_the_detectors():
    for texts in (KICK, GLUE, PADDED, REFUSED):
        assert not any(reply_reasons(prompt[-1]["content"], text) for prompt, text in zip(PROMPTS, texts, strict=True))


# -- the demo's own model, trained briefly -------------------------------------------------------------------------------


def demo_rows(count: int, *, swapped: bool = False) -> list[dict[str, Any]]:
    """Pairs like the demo's, from its grammar: a Stage 2 answer and its revision."""
    random, constitution = Random(5), load_constitution(ASSETS / "constitution.yaml")
    rows = []
    for question in random.sample(questions(held_out=False), count):
        answer = draw_answer(random, question, STAGE2_MIX)
        _, revision = criticise(answer, constitution.draw(random), random.choice(answer.topic.good))
        good, bad = ([{"role": "assistant", "content": text}] for text in (revision, answer.text))
        prompt = [{"role": "user", "content": question.text}]
        rows.append({"prompt": prompt, "chosen": bad if swapped else good, "rejected": good if swapped else bad})
    return rows


def demo_training(folder: Path, *, swapped: bool = False, **options: Any) -> tuple[list[Any], dict[str, Any]]:
    """Stage training with the demo's model: its events and its report."""
    config = load_config(
        {"output_dir": folder, "eval_harmless_prompts": 4, **options}, preset=demo_defaults(), environment={}
    )
    run = Run(folder)
    tensors = hash_tensors(file_tensors(ASSETS / "adapter" / "adapter_model.safetensors"))
    run.record_stage("adapter", status="done", result={"tensors_sha256": tensors, "folder": str(ASSETS / "adapter")})
    rows = demo_rows(100, swapped=swapped)
    write_rows(run / layout.TRAIN_JSONL, rows[20:])
    write_rows(run / layout.EVAL_JSONL, rows[:20])
    events, _ = run_stage(stage.run(Context(config, run)))
    return events, json.loads((run / layout.EVALUATION_REPORT).read_text())


def warnings_of(events: Sequence[Any]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Message) and event.level == "warning")


def test_at_learning_rate_0_the_verdict_is_no_different_with_a_warning(tmp_path: Path):
    events, report = demo_training(tmp_path / "run", learning_rate=0.0, num_train_epochs=0.2)
    assert (report["verdict"], report["rule"]) == ("no different", "nothing trained")
    assert "nothing was trained" in warnings_of(events)
    assert report["figures"]["margin"] == report["figures"]["own_answer_log_ratio"] == 0
    assert report["figures"]["unchanged_share"] == 1


def test_a_learning_rate_next_to_0_changes_the_adapter_and_no_answer(tmp_path: Path):
    _, report = demo_training(tmp_path / "run", learning_rate=1e-9, num_train_epochs=0.2)
    assert (report["verdict"], report["rule"]) == ("no different", "same answers")
    assert 0 < abs(report["figures"]["margin"]) < 1e-3


def test_swapped_labels_are_worse_despite_a_held_out_accuracy_of_1(tmp_path: Path):
    _, report = demo_training(tmp_path / "run", swapped=True, num_train_epochs=2.0, learning_rate=4e-3)
    assert report["verdict"] == "worse"
    assert report["figures"]["reward_accuracy"] > 0.9 and report["figures"]["losses"] > report["figures"]["wins"]


# -- the demo from the command line --------------------------------------------------------------------------------------


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tui.cli", "--auto", "--demo", "--output-dir", str(folder), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent, timeout=400)


@pytest.fixture(scope="module")
def demo_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo run up to its training."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = demo(folder, "--until", "quality")
    assert done.returncode == 0, done.stderr
    return folder


def reported(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / layout.EVALUATION_REPORT).read_text())
    assert report["verdict"] in (folder / layout.ADAPTER_DIR / "README.md").read_text().lower()
    return report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words", "rules"),
    [
        ((), {"better"}, {"judged better"}),
        (("--learning-rate", "0"), {"no different"}, {"nothing trained"}),
        (("--learning-rate", "1e-9"), {"no different"}, {"same answers"}),
        (
            ("--beta", "0.1", "--learning-rate", "3e-3", "--seed", "1"),
            {"worse", "no different", "cannot tell"},
            {"broken answers", "more broken", "judged alike", "judged worse"},
        ),
    ],
)
def test_the_demo_reaches_the_expected_verdict(
    options: tuple[str, ...], words: set[str], rules: set[str], demo_pairs: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(demo_pairs, tmp_path / "run"))
    done = demo(folder, *options)
    assert done.returncode == 0, done.stderr
    report = reported(folder)
    assert report["verdict"] in words and report["rule"] in rules
    assert math.isfinite(report["figures"]["margin"])


@pytest.mark.slow
def test_the_demo_with_every_pair_flipped_is_refused_and_then_worse(demo_pairs: Path, tmp_path: Path):
    folder = Path(shutil.copytree(demo_pairs, tmp_path / "run"))
    for line in (folder / layout.PAIRS_JSONL).read_text().splitlines():
        write_edit(folder / layout.EDITS_JSONL, json.loads(line)["id"], "flip")
    refused = demo(folder)
    assert refused.returncode == 9 and "improved share" in refused.stderr
    accepted = demo(folder, "--accept-quality", "swapped to see what comes of it")
    assert accepted.returncode == 0, accepted.stderr
    assert reported(folder)["verdict"] == "worse"
    card = (folder / layout.ADAPTER_DIR / "README.md").read_text()
    assert (
        "but opened with the reason: swapped to see what comes of it" in card and "| flipped by people | 160 |" in card
    )
