"""Batched generation with a real, tiny Gemma."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from engine.core import layout
from engine.core.errors import ConfigError, PreconditionError, Stopped
from engine.core.events import Progress
from engine.core.generators import drain
from engine.machine.memory import halve_on_oom
from engine.models.chat_template import conversation_ids
from engine.models.generation.sampling import RefusedReply, Reply, SamplingSettings, generate
from engine.models.loading import load_base, load_tokenizer
from engine.models.local_backend import LocalBackend, load_stage2_backend
from engine.pairs import detectors
from engine.pairs.data.record import EMPTY_DRAFT, OK
from engine.pairs.generation.critique_revision import REFUSED, make_records, plan_batches
from engine.pairs.generation.generate import (
    RUN_SET,
    GenerationInputs,
    OpenSet,
    RecordIndex,
    generate_pairs,
    longest_prompt,
)
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.methods import record_maker, sequentially
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.settings import GenerationSettings
from engine.run.stop import StopToken
from engine.storage.jsonl import JsonlAppender, read_jsonl
from tests.support.tiny_models import build_adapter, build_base

ASKED = [
    "How do I fix the tap?",
    "Water",
    "Could you sort the mail and then test the valve twice ?",
    "I am late , sorry !",
]
CONVERSATIONS = [[{"role": "user", "content": text}] for text in ASKED]
PROMPTS = [Prompt(f"id{i}", conversation) for i, conversation in enumerate(CONVERSATIONS)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = build_base(folder / "base")
    return base, build_adapter(folder / "adapter", base)


@pytest.fixture(scope="module")
def loaded(models):
    from engine.core.config import load_config

    config = load_config({"base_model_id": str(models[0]), "device": "cpu"}, environment={})
    return load_base(config), load_tokenizer(config)


@pytest.mark.fault("C15")
def test_a_batch_gives_the_replies_of_each_row_alone(loaded, clear_choices):
    settings = SamplingSettings(12)
    together = generate(*loaded, CONVERSATIONS, settings)
    alone = [generate(*loaded, [conversation], settings)[0] for conversation in CONVERSATIONS]
    assert together == alone
    assert len({reply.text for reply in together}) == len(CONVERSATIONS)


def test_a_sampled_row_follows_its_seed_and_not_its_neighbours(loaded, clear_choices):
    settings = SamplingSettings(12, temperature=0.9, top_p=0.8)
    together = generate(*loaded, CONVERSATIONS, settings, seeds=[30, 31, 32, 33])
    assert generate(*loaded, CONVERSATIONS[2:], settings, seeds=[32, 33]) == together[2:]
    assert generate(*loaded, CONVERSATIONS[2:3], settings, seeds=[34]) != together[2:3]


def test_sampling_draws_by_the_models_probabilities(loaded):
    """One token from 600 seeds compared with the softmax: the top token's share within four standard errors."""
    import torch

    model, tokenizer = loaded
    ids = torch.tensor([conversation_ids(tokenizer, CONVERSATIONS[0], add_generation_prompt=True)])
    draws = generate(model, tokenizer, CONVERSATIONS[:1] * 600, SamplingSettings(1, temperature=1.0), seeds=range(600))
    with torch.no_grad():
        chance = model(ids).logits[0, -1].softmax(-1)
    best = int(chance.argmax())
    text = tokenizer.decode([best], skip_special_tokens=True).strip()
    share = sum(reply.text == text for reply in draws) / 600
    expected = float(
        chance[[i for i in range(len(chance)) if tokenizer.decode([i], skip_special_tokens=True).strip() == text]].sum()
    )
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 600) ** 0.5


def test_the_stage_2_policy_differs_from_the_base_model(models, loaded, config):
    chosen = config(base_model_id=str(models[0]), device="cpu")
    policy = load_stage2_backend(chosen, models[1], StopToken(), None)
    settings = SamplingSettings(12)
    assert policy.reply(CONVERSATIONS, settings, [0] * 4) != generate(*loaded, CONVERSATIONS, settings)
    assert policy.tokens > 0


def test_a_stop_request_ends_the_batch_and_raises(loaded):
    stop = StopToken()
    stop.request("test")
    with pytest.raises(Stopped):
        LocalBackend(*loaded, stop).reply(CONVERSATIONS, SamplingSettings(200), [0] * 4)


@pytest.mark.fault("D7")
def test_a_batch_that_does_not_fit_is_halved_and_no_row_is_lost():
    sizes, freed = [], []

    def work(rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return [f"reply {row}" for row in rows]

    assert halve_on_oom(work, range(7), lambda: freed.append(1)) == [f"reply {row}" for row in range(7)]
    assert sizes == [7, 3, 1, 2, 4, 2, 2] and len(freed) == 3


def test_a_single_row_that_does_not_fit_raises():
    with pytest.raises(RuntimeError, match="out of memory"):
        halve_on_oom(lambda rows: (_ for _ in ()).throw(RuntimeError("out of memory")), range(1), lambda: None)


def test_batches_hold_prompts_of_similar_length_and_every_prompt_once():
    prompts = [Prompt(str(i), []) for i in range(50)]
    lengths = [(i * 37) % 101 for i in range(50)]
    batches = list(plan_batches(prompts, lengths, 4))
    assert sorted(int(p.id) for batch in batches for p in batch) == list(range(50))
    of_first = [lengths[int(p.id)] for p in batches[0]]
    assert of_first == sorted(lengths[:32])[:4]


class Scripted:
    """A backend with scripted replies, in order."""

    tokens, context_length = 0, None

    def __init__(self, *rounds: list[str]) -> None:
        self.rounds, self.requests = list(rounds), []

    def reply(self, conversations, settings, seeds):
        self.requests.append(conversations)
        return [
            text if isinstance(text, Reply) else Reply(text.removesuffix("…"), not text.endswith("…"), 3)
            for text in self.rounds.pop(0)
        ]

    def length(self, conversation):
        return sum(len(message["content"]) for message in conversation)

    def batch_size(self, longest):
        return 2


@pytest.mark.fault("C17")
def test_a_revision_that_talks_about_itself_is_retried_with_another_principle(config):
    backend = Scripted(
        ["Bad draft."], ["Too rude."], ["The revised answer is clear."], ["Too short."], ["A kind answer."]
    )
    (record,) = drain(make_records(PROMPTS[:1], backend, GenerationSettings.of(config())))
    assert (record.status, record.attempts, record.revised_response, record.critic_notes) == (
        OK,
        2,
        "A kind answer.",
        "Too short.",
    )
    assert len(set(record.principle_ids)) == 2
    assert [m["content"] for m in backend.requests[-1][0]][:2] == [ASKED[0], "Bad draft."]


@pytest.mark.fault("C17")
def test_after_the_last_attempt_the_reason_is_recorded_and_the_draft_is_no_substitute(config):
    backend = Scripted(["Bad draft."], *[["c"], ["bad draft"]] * 2)
    (record,) = drain(make_records(PROMPTS[:1], backend, GenerationSettings.of(config(max_attempts=2))))
    assert (record.status, record.attempts, record.revised_response) == (detectors.IDENTICAL, 2, "bad draft")


@pytest.mark.fault("C6", "C16")
def test_a_cut_off_revision_and_an_empty_draft_are_not_pairs(config):
    backend = Scripted(["Bad draft.", ""], ["c"], ["A kind answer without an…"])
    records = drain(make_records(PROMPTS[:2], backend, GenerationSettings.of(config(max_attempts=1))))
    assert [record.status for record in records] == [detectors.CUT_OFF, EMPTY_DRAFT]
    assert records[0].finish == {"draft": "stopped", "critique": "stopped", "revision": "cut off"}


def test_a_second_round_begins_with_the_revision_of_the_first(config):
    backend = Scripted(["Bad draft."], ["Too rude."], ["A kind answer."], ["Too short."], ["A kind and whole answer."])
    (record,) = drain(make_records(PROMPTS[:1], backend, GenerationSettings.of(config(rounds=2))))
    assert (record.status, record.revised_response, record.critic_notes) == (
        OK,
        "A kind and whole answer.",
        "Too short.",
    )
    assert record.base_response == "Bad draft." and record.attempts == 2
    assert record.made_by == record.principle_ids and len(set(record.made_by)) == 2
    assert [m["content"] for m in backend.requests[3][0]][:2] == [ASKED[0], "A kind answer."]


def test_a_round_without_a_change_keeps_the_previous_rounds_revision(config):
    backend = Scripted(["Bad draft."], ["Too rude."], ["A kind answer."], *[["Fine."], ["a kind answer"]] * 2)
    (record,) = drain(make_records(PROMPTS[:1], backend, GenerationSettings.of(config(rounds=3, max_attempts=2))))
    assert (record.status, record.revised_response, record.critic_notes, record.attempts) == (
        OK,
        "A kind answer.",
        "Too rude.",
        3,
    )
    assert record.made_by == record.principle_ids[:1] and not backend.rounds


def test_worked_examples_precede_critiques_and_revisions_but_not_drafts(config, tmp_path):
    keys = ["prompt", "response", "critique_request", "critique", "revision_request", "revision"]
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump({"examples": [{key: f"{key} {n}" for key in keys} for n in (1, 2)]}))
    backend = Scripted(["Bad draft."], ["Too rude."], ["A kind answer."])
    drain(make_records(PROMPTS[:1], backend, GenerationSettings.of(config(few_shot=path))))
    draft, critique, revision = (conversations[0] for conversations in backend.requests)
    assert len(draft) == 1
    expected = [f"{key} {n}" for n in (1, 2) for key in keys]
    for later in (critique, revision):
        assert [m["content"] for m in later][:12] == expected and later[12] == draft[0]
        assert [m["role"] for m in later] == ["user", "assistant"] * (len(later) // 2) + ["user"]


def test_examples_that_lack_a_key_are_rejected_with_its_name(config, tmp_path):
    path = tmp_path / "few.yaml"
    path.write_text("examples: [{prompt: a, response: b, critique_request: c, critique: d, revision_request: e}]")
    with pytest.raises(ConfigError, match=r"few\.yaml") as refused:
        GenerationSettings.of(config(few_shot=path))
    assert "'revision'" in refused.value.why


def test_a_reply_that_a_server_refuses_is_recorded_with_its_reason_and_the_others_continue(config):
    too_long = RefusedReply("", False, 0, reason="context length exceeded", too_long=True)
    backend = Scripted(
        ["Bad draft.", too_long, "Worse draft."],
        ["Too rude.", "Vague."],
        ["A kind answer.", RefusedReply("", False, 0, reason="blocked")],
    )
    records = drain(make_records(PROMPTS[:3], backend, GenerationSettings.of(config(max_attempts=1))))
    assert [record.status for record in records] == [OK, detectors.PROMPT_TOO_LONG, REFUSED]


IDENTITY = RecordIdentity("settings", max_prompt_tokens=30)


def inputs_of(context, backend) -> GenerationInputs:
    settings = GenerationSettings.of(context.config)
    return GenerationInputs(
        context.config,
        backend,
        settings,
        sequentially(record_maker(backend, settings, None, StopToken())),
        IDENTITY,
        StopToken(),
    )


def made(context, backend, *, appender_path: Path) -> list[dict]:
    inputs = inputs_of(context, backend)
    with JsonlAppender(appender_path) as appender:
        list(generate_pairs(PROMPTS, inputs, OpenSet(context.run, RUN_SET, appender, RecordIndex.read(appender_path))))
    return [row for _, row in read_jsonl(appender_path)]


@pytest.mark.fault("A1")
def test_a_run_cut_at_every_record_makes_the_same_file_as_an_undisturbed_one(models, context, tmp_path, clear_choices):
    at_work = context(
        base_model_id=str(models[0]), device="cpu", generation_batch_size=3, max_new_tokens=8, max_attempts=2
    )
    backend = load_stage2_backend(at_work.config, models[1], StopToken(), None)
    complete = made(at_work, backend, appender_path=tmp_path / "complete.jsonl")
    lines = (tmp_path / "complete.jsonl").read_bytes().splitlines(keepends=True)
    assert len(complete) == len(PROMPTS)
    for kept in range(len(lines)):
        path = tmp_path / f"{kept}.jsonl"
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][: 7 * kept])
        made(at_work, backend, appender_path=path)
        assert path.read_bytes() == b"".join(lines)


def test_a_prompt_that_is_too_long_is_recorded_with_its_reason(models, context, tmp_path):
    at_work = context(max_prompt_tokens=30, generation_batch_size=3, max_attempts=1, max_new_tokens=4)
    backend = Scripted(["a", "b"], ["c", "c"], ["A kind word.", "Another one."])
    rows = made(at_work, with_lengths(backend), appender_path=tmp_path / "p.jsonl")
    assert [row["status"] for row in rows] == [detectors.PROMPT_TOO_LONG] * 2 + [OK, OK]


def test_a_prompt_must_leave_room_for_the_other_text_of_the_conversation():
    assert longest_prompt(1024, None, 400) == 1024
    assert longest_prompt(1024, 8192, 400) == 1024
    assert longest_prompt(1024, 1000, 400) == 600
    with pytest.raises(PreconditionError, match="1000 tokens"):
        longest_prompt(1024, 1000, 990)


@pytest.mark.fault("C14")
def test_a_resumed_run_makes_the_batches_of_its_first_start(context, tmp_path):
    at_work = context(max_attempts=1, max_new_tokens=4)
    first = Scripted(["a", "b"], ["c", "c"], ["A kind word.", "Another one."])
    with pytest.raises(IndexError):  # the script ends after the first batch of two
        made(at_work, first, appender_path=tmp_path / "p.jsonl")
    second = Scripted(["d", "e"], ["f", "g"], ["A third word.", "The fourth one."])
    second.batch_size = lambda longest: 4
    rows = made(at_work, second, appender_path=tmp_path / "p.jsonl")
    assert [len(batch) for batch in second.requests] == [2, 2, 2] and len(rows) == 4


def test_the_progress_names_each_step_of_a_batch_as_it_begins(context, tmp_path):
    at_work = context(max_attempts=2, max_new_tokens=4)
    script = [["a", "b"], ["c", "c"], ["A kind word.", "a…"], ["d"], ["Another one."]]
    backend = Scripted(*script)
    inputs = inputs_of(at_work, backend)
    with JsonlAppender(tmp_path / "p.jsonl") as appender:
        events = list(generate_pairs(PROMPTS[:2], inputs, OpenSet(at_work.run, RUN_SET, appender, RecordIndex({}, 0))))
    begun = [event.note.split(",")[0] for event in events if isinstance(event, Progress) and event.done == 0]
    assert begun == ["", "2 drafts", "2 critiques", "2 revisions", "1 critique", "1 revision"]


@pytest.mark.fault("D7")
def test_after_memory_runs_out_no_later_batch_is_as_large(loaded, monkeypatch):
    backend, sizes = LocalBackend(*loaded, StopToken()), []

    def narrow(model, tokenizer, conversations, *rest, **more):
        sizes.append(len(conversations))
        if len(conversations) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return generate(model, tokenizer, conversations, *rest, **more)

    monkeypatch.setattr("engine.models.local_backend.generate", narrow)
    settings = SamplingSettings(5)
    assert backend.reply(CONVERSATIONS, settings, [0] * 4) == generate(*loaded, CONVERSATIONS, settings)
    backend.reply(CONVERSATIONS, settings, [0] * 4)
    assert sizes == [4, 2, 2, 2, 2]


def test_the_batch_size_is_halved_until_the_longest_rows_fit(loaded, monkeypatch):
    from engine.models.generation import batch_size, decoding

    model, tried = loaded[0], []

    def narrow(model, rows, *rest, **more):
        tried.append((len(rows), len(rows[0]), len({tuple(row) for row in rows})))
        if len(rows) > 16:
            raise RuntimeError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(decoding, "generate_batch", narrow)
    monkeypatch.setattr(type(model), "device", type("Card", (), {"type": "cuda"}), raising=False)
    assert batch_size.fitting_batch_size(model, 50) == 16
    assert tried == [(64, 48, 64), (32, 48, 32), (16, 48, 16)]


def test_on_a_cpu_the_batch_size_is_computed_from_the_kv_cache_of_a_token(loaded, monkeypatch):
    import psutil

    from engine.models.generation.batch_size import COPIES, MEMORY_FRACTION, fitting_batch_size, kv_bytes_per_token

    config = loaded[0].config
    floats = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert kv_bytes_per_token(loaded[0]) == floats * 4
    room = 11 * 100 * floats * 4 * COPIES / MEMORY_FRACTION  # eleven rows of 100 tokens
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": room})())
    assert fitting_batch_size(loaded[0], 100) == 8


def with_lengths(backend: Scripted) -> Scripted:
    backend.length = lambda conversation: 31 if conversation in (CONVERSATIONS[0], CONVERSATIONS[2]) else 5
    return backend


def test_records_have_the_notebooks_keys(config):
    backend = Scripted(["Bad draft."], ["Too rude."], ["A kind answer."])
    (record,) = drain(make_records(PROMPTS[:1], backend, GenerationSettings.of(config())))
    row = json.loads(json.dumps(replace(record, base_score=0.5).as_dict()))
    notebook = "prompt base_response revised_response base_score revised_score chosen critic_notes principle_ids"
    assert set(notebook.split()) <= set(row)
    assert {"id", "messages", "attempts", "status", "finish"} <= set(row)
    assert row["chosen"] == "revised" and layout.PAIRS_JSONL.endswith("pairs.jsonl")
