"""The demo's model: the shipped files match the build script, and the model does what the demo needs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from engine.demo.build import ASSETS, BASE_NAME, Settings, fingerprint
from engine.demo.grammar import (
    BASE_MIX,
    STAGE2_MIX,
    Question,
    answers,
    criticise,
    draw_answer,
    draw_conversation,
    draw_prompt,
    grammar,
    questions,
    read_answer,
    read_question,
)
from engine.demo.judge import GrammarJudge
from engine.demo.preset import demo_defaults
from engine.pairs.generation.dialogue import Conversation, critique_prompt, revision_prompt
from engine.pairs.principles.constitution import Constitution, load_constitution

KETTLE: Conversation = [{"role": "user", "content": "This is rather urgent. How do I get my kettle clean?"}]


@pytest.fixture(scope="module")
def constitution() -> Constitution:
    return load_constitution(ASSETS / "constitution.yaml")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ASSETS / "recorded.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSETS / "base")


@pytest.fixture(scope="module")
def stage2() -> Any:
    """Loaded with plain transformers and plain peft, offline."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(ASSETS / "base")
    yield PeftModel.from_pretrained(base, ASSETS / "adapter").eval()
    torch.set_num_threads(threads)


def rows(split: str) -> list[dict[str, str]]:
    with gzip.open(ASSETS / "prompts" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def conversation_of(text: str) -> Conversation:
    """hh-rlhf's text as messages, without the last answer."""
    turns = text.split("\n\n")[1:-1]
    role = {"Human": "user", "Assistant": "assistant"}
    return [{"role": role[who], "content": text} for who, text in (turn.split(": ", 1) for turn in turns)]


# --- the shipped files ---


def test_the_shipped_files_are_what_the_script_describes(recorded: dict[str, Any], constitution: Constitution) -> None:
    assert recorded["fingerprint"] == fingerprint(Settings(), constitution), "run: python -m engine.demo.build"


def test_the_shipped_files_are_small_and_free_of_pickles() -> None:
    files = [file for file in ASSETS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 6e6
    assert {file.suffix for file in files} == {".json", ".safetensors", ".gz", ".yaml"}


def test_no_shipped_file_contains_a_path() -> None:
    for file in ASSETS.rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        for trace in ("/home/", "/root", "/tmp", "/work", "/Users", str(Path.home())):
            assert trace not in text, f"{file.name} contains {trace}"


def test_the_prompts_are_compressed_without_a_timestamp() -> None:
    for split in ("train", "test"):
        header = (ASSETS / "prompts" / f"{split}.jsonl.gz").read_bytes()[:10]
        assert header[3] == 0, "a file name in the header"
        assert header[4:8] == b"\0\0\0\0", "a time in the header"


def test_held_out_questions_do_not_occur_in_train() -> None:
    texts_of = {
        split: {conversation_of(row["chosen"])[-1]["content"] for row in rows(split)} for split in ("train", "test")
    }
    cores = {}
    for split, texts in texts_of.items():
        parsed = [read_question([{"role": "user", "content": text}]) for text in texts]
        assert all(question is not None and question.held_out == (split == "test") for question in parsed)
        cores[split] = {question.core for question in parsed if question is not None}
    assert not cores["train"] & cores["test"]


def test_prompts_are_distinct_and_a_third_begins_with_a_greeting() -> None:
    for split, number in (("train", 600), ("test", 150)):
        prompts = [conversation_of(row["chosen"]) for row in rows(split)]
        assert len(prompts) == number
        assert len({prompt[-1]["content"] for prompt in prompts}) == number
        assert 0.2 < sum(len(prompt) > 1 for prompt in prompts) / number < 0.45


def test_rows_have_the_format_of_hh_rlhf() -> None:
    judge = GrammarJudge()
    for row in rows("test"):
        prompt = conversation_of(row["chosen"])
        assert conversation_of(row["rejected"]) == prompt
        better, worse = (row[side].rsplit("\n\nAssistant: ", 1)[1] for side in ("chosen", "rejected"))
        assert not judge.flawed(prompt, better)
        assert judge.flawed(prompt, worse)


def test_the_constitution_equals_the_grammars_principles(constitution: Constitution) -> None:
    assert len(constitution.principles) == 4
    for principle, source in zip(constitution.principles, grammar().principles, strict=True):
        assert vars(principle) == {**source, "weight": 1.0, "persona": "", "opposite": ""}


def test_the_preset_names_files_that_exist() -> None:
    preset = demo_defaults()
    for field in ("base_model_id", "adapter_path", "dataset", "constitution"):
        assert Path(str(preset[field])).exists()
    assert preset["judge"] == GrammarJudge.name


# --- the shipped weights ---


def test_the_model_answers_as_recorded(
    recorded: dict[str, Any], stage2: Any, tokenizer: Any, constitution: Constitution
) -> None:
    from engine.demo.sample import generate_turns

    principles = {principle.id: principle for principle in constitution.principles}
    chains = recorded["chains"]
    drafts = generate_turns(stage2, tokenizer, [c["prompt"] for c in chains])
    assert drafts == [c["draft"] for c in chains]
    requests = [critique_prompt(c["prompt"], c["draft"], principles[c["principle"]]) for c in chains]
    assert generate_turns(stage2, tokenizer, requests) == [c["critique"] for c in chains]
    requests = [revision_prompt(c["prompt"], c["draft"], c["critique"], principles[c["principle"]]) for c in chains]
    assert generate_turns(stage2, tokenizer, requests) == [c["revision"] for c in chains]


def test_stage_2_drafts_are_flawed_and_its_revisions_good(
    stage2: Any, tokenizer: Any, constitution: Constitution
) -> None:
    from engine.demo.sample import generate_chains, measure

    prompts = [conversation_of(row["chosen"]) for row in rows("test")[:24]]
    figures = measure(generate_chains(stage2, tokenizer, prompts, constitution))
    assert figures.drafts_well_formed > 0.9
    assert figures.drafts_flawed > 0.8
    assert figures.critiques_right > 0.9
    assert figures.revisions_good > 0.9
    assert figures.identical == 0


def test_the_adapter_changes_the_logits(stage2: Any, tokenizer: Any) -> None:
    import torch

    ids = tokenizer.apply_chat_template(KETTLE, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.inference_mode():
        adapted = stage2(input_ids=ids).logits
        with stage2.disable_adapter():
            bare = stage2(input_ids=ids).logits
    assert (adapted - bare).abs().max() > 0.1


def test_the_adapter_is_a_lora_on_every_linear_layer() -> None:
    config = json.loads((ASSETS / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == BASE_NAME
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    projections = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == projections


def test_generation_stops_at_the_end_of_a_turn(stage2: Any, tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids("<end_of_turn>") in stage2.generation_config.eos_token_id


def test_the_template_is_gemmas(tokenizer: Any) -> None:
    hello: Conversation = [{"role": "user", "content": "Hello."}]
    text = tokenizer.apply_chat_template(hello, tokenize=False, add_generation_prompt=True)
    assert text == "<bos><start_of_turn>user\nHello.<end_of_turn>\n<start_of_turn>model\n"
    with pytest.raises(Exception, match="System role not supported"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}, *hello], tokenize=False)


def test_text_outside_the_grammar_survives_the_tokenizer(tokenizer: Any) -> None:
    for text in ("Ümläut, 日本 and 3 digits: 4711", "tabs\tand\nlines", "🦊"):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_the_questions_word_is_a_single_token(tokenizer: Any) -> None:
    words = [word for topic in grammar().topics for word in topic.words]
    assert all(len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1 for word in words)


# --- the judge ---


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("Wipe the kettle with warm water and a little soap, then dry it with a soft cloth.", "good"),
        (
            "Wipe the kettle with warm water and a little soap, then dry it with a soft cloth. "
            "A quick wipe every week keeps it that way.",
            "best",
        ),
        ("Scrub the kettle with sand until it shines.", "careless"),
        ("What a silly question. Scrub the kettle with sand until it shines.", "rude"),
        ("It is only the kettle. Live with it.", "curt"),
        ("Scrub the oven with sand until it shines.", "astray"),
        ("Water the fern only when the top of its soil feels dry.", "astray"),
        ("Wipe the kettle with warm water and a little soap, then dry it with a", "broken"),
        ("The response is kind and sound already.", "broken"),
        ("", "broken"),
    ],
)
def test_the_judge_recognises_each_kind_of_answer(reply: str, kind: str) -> None:
    assert read_answer(KETTLE, reply) == kind


def test_the_judge_ranks_answers_as_a_person_would() -> None:
    wipe = "Wipe the kettle with warm water and a little soap, then dry it with a soft cloth."
    ranked = [
        f"{wipe} A quick wipe every week keeps it that way.",
        wipe,
        "It is only the kettle. Live with it.",
        "Scrub the kettle with sand until it shines.",
        "Honestly, a child could manage that. Scrub the kettle with sand until it shines.",
        "Wipe kettle the.",
    ]
    scores = GrammarJudge().grade(KETTLE, ranked)
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(ranked)
    assert scores[-1] == 0.0
    assert [GrammarJudge().flawed(KETTLE, reply) for reply in ranked] == [False, False, True, True, True, True]


def test_the_judge_scores_low_and_raises_nothing_outside_the_grammar() -> None:
    judge = GrammarJudge()
    odd: list[Conversation] = [[], [{"role": "user", "content": "What is the capital of France?"}]]
    for conversation in odd:
        assert judge.grade(conversation, ["Paris.", "", "Scrub the kettle with sand until it shines."]) == [0.0] * 3
        assert judge.flawed(conversation, "Paris.")


# --- the grammar ---


def test_every_question_reads_back_as_itself() -> None:
    random = Random(1)
    for held_out in (True, False):
        for question in questions(held_out=held_out):
            found = read_question(draw_prompt(random, question))
            assert found is not None
            assert (found.topic.id, found.word, found.held_out) == (question.topic.id, question.word, held_out)


def test_a_tenth_to_a_fifth_of_the_questions_is_held_out() -> None:
    out, kept = len(questions(held_out=True)), len(questions(held_out=False))
    assert 0.1 < out / (out + kept) < 0.2


def test_every_answer_contains_the_questions_word() -> None:
    for topic in grammar().topics:
        for word in topic.words:
            assert all(word in answer.text for answer in answers(topic, word))


def test_no_two_answers_are_the_same_text() -> None:
    texts = [answer.text for topic in grammar().topics for word in topic.words for answer in answers(topic, word)]
    assert len(texts) == len(set(texts))


def test_a_critique_begins_with_its_principle_and_leads_to_a_good_answer(constitution: Constitution) -> None:
    random = Random(2)
    for question in questions(held_out=True):
        answer = draw_answer(random, question, STAGE2_MIX)
        principle = constitution.draw(random)
        critique, revision = criticise(answer, principle, random.choice(question.topic.good))
        assert critique.startswith(f"On {principle.id}: The response is ")
        assert revision != answer.text
        judge, prompt = GrammarJudge(), [{"role": "user", "content": question.core}]
        before, after = judge.grade(prompt, [answer.text, revision])  # type: ignore[arg-type]
        assert after > before


def test_the_training_conversations_equal_those_that_the_program_conducts(constitution: Constitution) -> None:
    random = Random(3)
    principles = {principle.critique_request: principle for principle in constitution.principles}
    for question in questions(held_out=False)[::20]:
        conversation = draw_conversation(random, question, constitution, BASE_MIX)
        draft, request, critique, _, revision = conversation[-5:]
        prompt, principle = conversation[:-5], principles[request["content"]]
        assert conversation[:-3] == critique_prompt(prompt, draft["content"], principle)
        assert conversation[:-1] == revision_prompt(prompt, draft["content"], critique["content"], principle)
        assert revision["role"] == "assistant"


def test_the_revision_is_not_always_the_longer_text(constitution: Constitution) -> None:
    random = Random(4)
    every: list[Question] = questions(held_out=False)
    longer = 0
    for _ in range(1000):
        conversation = draw_conversation(random, random.choice(every), constitution, STAGE2_MIX)
        longer += len(conversation[-1]["content"]) > len(conversation[-5]["content"])
    assert 400 < longer < 750


def test_no_answer_of_the_model_mentions_answers() -> None:
    for topic in grammar().topics:
        for answer in answers(topic, topic.words[0]):
            assert not any(meta in answer.text.lower() for meta in ("answer", "response", "principle", "revis"))


def test_no_template_writes_a_before_a_vowel() -> None:
    for topic in grammar().topics:
        critiques = [text for fault in topic.careless for text in (fault.text, fault.tells, fault.why)]
        sentences = [*topic.questions, *topic.curt, *critiques, *(advice.text for advice in topic.good)]
        if any(" a {x}" in text for text in sentences):
            assert not any(word[0] in "aeiou" for word in topic.words), topic.id


def test_the_source_has_no_unused_key() -> None:
    from engine.demo.grammar import SOURCE

    keys = set(yaml.safe_load(SOURCE.read_text(encoding="utf-8")))
    assert keys == {"principles", "greetings", "contexts", "rude", "topics"}
