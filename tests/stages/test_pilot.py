"""Preflight's pilot: its pairs are the run's, its figures the gate's, and it ends a run that cannot pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from engine.core.errors import DataError
from engine.core.events import Check, Message, PairFailed, PairMade, PilotDone
from engine.demo.judge import GrammarJudge
from engine.demo.preset import ASSETS
from engine.models.loading import load_tokenizer
from engine.pairs.data.record import Pair
from engine.pairs.generation.cost import expected_prompts
from engine.pairs.generation.generate import GenerationInputs
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.methods import record_maker, sequentially
from engine.pairs.generation.prompts import load_prompts
from engine.pairs.generation.settings import GenerationSettings
from engine.preflight.pilot import judge_pilot, make_pilot, require_promising_pilot
from engine.run.context import Context
from engine.run.stop import StopToken
from engine.stages import pairs as stage
from tests.conftest import run_stage
from tests.stages.test_pairs import Backend


class Mumbling(Backend):
    """Repeats its draft instead of revising it."""

    KIND = dict.fromkeys((1, 3, 5), "Kick it hard")

    def reply(self, talks: Any, settings: Any, seeds: Any) -> Any:
        return super().reply(talks, settings, [0] * len(seeds))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"How do I mend thing {n}?"}) + "\n" for n in range(60)))
    return path


@pytest.fixture
def run_of(context: Callable[..., Context], prompts: Path) -> Callable[..., Context]:
    def at_work(**options: Any) -> Context:
        values = {
            "dataset": str(prompts),
            "split": "train",
            "max_attempts": 1,
            "num_examples": 60,
            "min_pairs": 1,
            "relevance": False,
            "judge": "none",
        }
        made = context(**{**values, "base_model_id": str(ASSETS / "base"), "dtype": "float32", **options})
        made.run.record_stage("adapter", status="done", result={"tensors_sha256": "a", "base_model_id": "b"})
        return made

    return at_work


def pilot(context: Context, backend: Backend, prompts: int = 24) -> tuple[list[Any], list[Pair]]:
    settings = GenerationSettings.of(context.config)
    identity = RecordIdentity.of(context.config, settings, context.run.results)
    make = sequentially(record_maker(backend, settings, None, StopToken()))
    inputs = GenerationInputs(context.config, backend, settings, make, identity, context.stop)
    return run_stage(make_pilot(context.run, load_prompts(context.config)[:prompts], inputs))


def judged(context: Context, pairs: list[Pair], load_judge: Any = lambda *_: None) -> tuple[list[Any], Any]:
    return run_stage(
        judge_pilot(context.config, context.run, pairs, load_tokenizer(context.config), load_judge, context.stop)
    )


def hope(context: Context, estimates: Any) -> Any:
    return require_promising_pilot(estimates, context.config, context.run / layout.PILOT_PAIRS)


def figures(events: list[Any]) -> dict[str, Any]:
    (done,) = [event for event in events if isinstance(event, PilotDone)]
    return {figure["name"]: figure for figure in done.figures}


def whole_run(context: Context, monkeypatch: pytest.MonkeyPatch, backend: Backend) -> list[Any]:
    monkeypatch.setattr(stage, "load_backend", lambda *_: backend)
    monkeypatch.setattr(stage, "adapter_folder", lambda *_: None)
    return run_stage(stage.run(context))[0]


def records(context: Context, name: str = layout.PAIRS_JSONL) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (context.run / name).read_text().splitlines()]


def test_the_pilots_pairs_are_not_made_again(run_of, monkeypatch):
    context, backend = run_of(), Backend()
    events, pairs = pilot(context, backend)
    assert len(pairs) == 24 and len(backend.drafted) == 24
    assert not any(isinstance(event, PairMade | PairFailed) for event in events), "the run has not made any yet"
    again = Backend()
    events = whole_run(context, monkeypatch, again)
    assert len(again.drafted) == 36 and not set(again.drafted) & set(backend.drafted)
    assert records(context)[:24] == records(context, layout.PILOT_PAIRS)
    assert sum(isinstance(event, PairMade) for event in events) == 60


def test_a_pilot_that_was_killed_continues_and_ends_with_the_same_file(run_of):
    context = run_of()
    pilot(context, Backend())
    path = context.run / layout.PILOT_PAIRS
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for kept in (0, 1, 5, 23):
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        pilot(context, Backend())
        assert path.read_bytes() == content


def test_another_method_makes_another_pilot_and_keeps_the_previous_one(run_of):
    pilot(run_of(), Backend())
    before = records(run_of(), layout.PILOT_PAIRS)
    context = run_of(temperature=0.3)
    backend = Backend()
    _, pairs = pilot(context, backend)
    assert len(backend.drafted) == 24 and len(pairs) == 24
    kept = context.run.folder / "superseded/1" / layout.PILOT_PAIRS
    assert [json.loads(line) for line in kept.read_text().splitlines()] == before
    back = Backend()
    pilot(run_of(), back)
    assert back.drafted == [], "and going back makes nothing"


def test_the_pilot_estimates_the_gates_figures_with_an_interval(run_of):
    context = run_of()
    events, estimates = judged(context, pilot(context, Backend())[1])
    usable = figures(events)["usable_share"]
    assert (usable["successes"], usable["n"], usable["threshold"]) == (24, 24, 0.5)
    assert 0.86 < usable["low"] < 0.87 and usable["high"] == pytest.approx(1.0)
    assert "improved_share" not in figures(events), "nobody judged"
    report = json.loads((context.run / layout.PILOT_REPORT).read_text())
    assert report["method"] == "critique-revision" and report["figures"] == list(figures(events).values())
    run_stage(hope(context, estimates))


def test_a_hopeless_pilot_ends_the_run_unless_a_person_accepts_it(run_of):
    context = run_of()
    events, estimates = judged(context, pilot(context, Mumbling())[1])
    assert figures(events)["usable_share"]["hopeless"]
    assert any(isinstance(event, Check) and event.name == "pilot: left out: identical" for event in events)
    with pytest.raises(DataError, match="usable share is 0 of 24") as refused:
        run_stage(hope(context, estimates))
    assert str(context.run / layout.PILOT_PAIRS) in refused.value.what_to_do
    accepts = run_of(accept_quality="to see them")
    events, _ = run_stage(hope(accepts, judged(accepts, pilot(accepts, Mumbling())[1])[1]))
    assert [event.level for event in events if isinstance(event, Message)] == ["warning"]


def test_the_pilot_detects_pairs_that_are_too_long_to_train_on(run_of):
    context = run_of(max_length=16)
    events, estimates = judged(context, pilot(context, Backend())[1])
    assert figures(events)["too_long_share"]["hopeless"]
    with pytest.raises(DataError, match="too long share is 24 of 24"):
        run_stage(hope(context, estimates))


def test_a_trusted_judge_scores_the_pilot_and_stage_quality_reuses_its_scores(run_of):
    context = run_of(judge="demo")
    pairs = pilot(context, Backend())[1]
    events, _ = judged(context, pairs, lambda *_: GrammarJudge())
    improved = figures(events)["improved_share"]
    assert (improved["successes"], improved["n"]) == (0, 24), "no sentence of the grammar: neither is better"
    scored = [json.loads(line) for line in (context.run / layout.SCORES_JSONL).read_text().splitlines()]
    assert {row["id"] for row in scored} == {pair.id for pair in pairs}


def test_relevance_is_measured_in_the_pilot_and_not_again(run_of):
    context = run_of(relevance=True)
    pairs = pilot(context, Backend())[1]
    events, _ = judged(context, pairs)
    assert figures(events)["relevant_share"]["n"] == 24
    kept = (context.run / layout.RELEVANCE_JSONL).read_text().splitlines()
    assert len(kept) == 24
    judged(context, pairs)
    assert (context.run / layout.RELEVANCE_JSONL).read_text().splitlines() == kept


def test_the_screen_gets_some_pairs_with_their_findings(run_of):
    context = run_of()
    events, _ = judged(context, pilot(context, Mumbling())[1])
    (done,) = [event for event in events if isinstance(event, PilotDone)]
    assert done.pairs == 24 and len(done.shown) == 12
    assert done.shown[0]["reasons"] == ["identical"] and done.shown[0]["prompt"].startswith("How do I mend")


def test_a_target_forecasts_the_prompts_that_the_pilots_share_asks_for(config):
    assert expected_prompts(config(num_examples=70)) == 70
    assert expected_prompts(config(num_examples=70, target_pairs=100), usable_share=0.8) == 125


# -- stage pairs stops early, and draws towards a target -----------------------------------------------------------------


def test_stage_pairs_stops_once_the_gate_cannot_open_unless_a_person_accepts_it(run_of, monkeypatch):
    with pytest.raises(DataError, match=r"After \d+ prompts, the gate can no longer open") as refused:
        whole_run(run_of(), monkeypatch, Mumbling())
    made = len(records(run_of()))
    assert 48 <= made < 60 and "--method contrast" in refused.value.what_to_do
    backend = Mumbling()
    whole_run(run_of(accept_quality="all of them, please"), monkeypatch, backend)
    assert len(records(run_of())) == 60 and len(backend.drafted) == 60 - made, "what was made is kept"


class HalfOfThem(Backend):
    """Every other prompt gets its draft again."""

    def reply(self, talks: Any, settings: Any, seeds: Any) -> Any:
        replies = super().reply(talks, settings, [0] * len(seeds))
        odd = [int(talk[0]["content"].rstrip("?").split()[-1]) % 2 for talk in talks]
        return [
            replies[0].__class__("Kick it hard, as one would.", True, 5) if one and len(talk) != 3 else reply
            for one, talk, reply in zip(odd, talks, replies, strict=True)
        ]


class Dying(HalfOfThem):
    """Is killed after this many calls."""

    def __init__(self, lives: int) -> None:
        super().__init__()
        self.lives, self.calls = lives, 0

    def reply(self, talks: Any, settings: Any, seeds: Any) -> Any:
        if self.calls == self.lives:
            raise KeyboardInterrupt
        self.calls += 1
        return super().reply(talks, settings, seeds)


def test_a_target_draws_prompts_until_enough_usable_pairs_exist(run_of, monkeypatch):
    context, backend = run_of(target_pairs=14, num_examples=5), HalfOfThem()
    whole_run(context, monkeypatch, backend)
    made = records(context)
    usable = sum(row["status"] == "ok" for row in made)
    assert usable >= 14 and len(made) < 60
    again = HalfOfThem()
    whole_run(context, monkeypatch, again)
    assert again.drafted == []


def test_a_run_towards_a_target_that_was_killed_makes_the_same_file(run_of, monkeypatch):
    context = run_of(target_pairs=14)
    path, plan = context.run / layout.PAIRS_JSONL, context.run / layout.PAIRS_PLAN
    calls = Dying(1000)
    whole_run(context, monkeypatch, calls)
    content = path.read_bytes()
    for lived in range(1, calls.calls):
        path.unlink()
        plan.unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            whole_run(context, monkeypatch, Dying(lived))
        path.write_bytes(path.read_bytes() + b'{"id":"not fin')
        whole_run(context, monkeypatch, HalfOfThem())
        assert path.read_bytes() == content


def test_an_unreachable_target_is_reported(run_of, monkeypatch):
    events = whole_run(run_of(target_pairs=50), monkeypatch, HalfOfThem())
    warnings = [event.text for event in events if isinstance(event, Message) and event.level == "warning"]
    assert any("All 60 prompts" in text and "30 usable pairs" in text for text in warnings)
