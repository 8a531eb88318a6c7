from __future__ import annotations

import gzip
import json
import sys

import pytest

from engine.pairs import detectors
from engine.pairs.detectors import DETECTORS, Candidate, canonical, meta, reasons, reply_reasons
from engine.pairs.detectors.refusal import is_harmless
from tests.conftest import needs_shared_data

PROMPT = "How do I get red wine out of a carpet?"
DRAFT = "Scrub it with bleach and hope."
GOOD = "Blot it with a cloth, pour on cold water, and blot again until the stain fades."
LONG = "You can wash the wool by hand in cold water, roll it in a towel, and lay it flat to dry in the shade."
GERMAN = "Das ist nicht schwer: Sie tupfen den Fleck mit einem Tuch ab, und dann wird er mit Wasser und Salz behandelt."


@pytest.mark.fault("C6")
@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("scrub it with  bleach, and hope!", detectors.IDENTICAL),
        ("   ", detectors.EMPTY),
        ("The revised response is clear and answers the question.", detectors.META),
        ("clear and concise, and answers the question.", detectors.META),
        ("not clear, and it does not say how.", detectors.META),
        ("I agree with the critique. Blot it.", detectors.META),
        ("I have rewritten the answer to be more specific.", detectors.META),
        ("Why do you want me to critique the bleach?", detectors.META),
        ("Blot it with cold water. The original response was vague and did not address the question.", detectors.META),
        ("Here is a new answer that follows it:\n\nBlot it with cold water.", detectors.META),
        ("You're welcome. Here's the revised version of my reply: blot it.", detectors.META),
        ("How do I get red wine out of a carpet? Blot it.", detectors.ECHO),
        ("How do I get red wine out of a white carpet?", detectors.ECHO),
        ("Human: blot it.", detectors.LEAK),
        ("Revision: blot it.", detectors.LEAK),
        ("**Critique:** blot it.", detectors.LEAK),
        ("Blot it.\n\nHuman: and then?\n\nAssistant: wait.", detectors.LEAK),
        ("Blot it.  Human: and then?", detectors.LEAK),
        ("Blot it.<end_of_turn>", detectors.LEAK),
        ("<revision>Blot it.</revision>", detectors.LEAK),
        ("...!", detectors.FRAGMENT),
        ("and then you blot it.", detectors.FRAGMENT),
        ("blot it now " * 9, detectors.LOOP),
        ("Blot it well. " + "no " * 12, detectors.LOOP),
        ("A" * 60, detectors.LOOP),
        ("ha" * 40, detectors.LOOP),
        (
            f"{GOOD} {LONG} " + "Rinse it, wait for an hour, look at it in daylight. " * 4 + "Rinse it, wa",
            detectors.LOOP,
        ),
        (f"{LONG} {LONG} {LONG} That is all.", detectors.LOOP),
        (f"{GOOD} I am not sure that it works. {LONG} I'm afraid so. I am not sure that it works.", detectors.LOOP),
        (
            "I am sure I am right, but I think I am sure I am right, and I think you are sure I am right, and you think "
            "that I think you are right, and I am right.",
            detectors.LOOP,
        ),
        ("Name the words that do, and what could come of them.", detectors.REQUEST),
        ("I'm sorry, but I can't help with that.", detectors.REFUSAL),
        (GERMAN, detectors.WRONG_LANGUAGE),
        ("Промокните пятно тканью и полейте холодной водой.", detectors.WRONG_LANGUAGE),
        ("用冷水和盐轻轻擦拭污渍，然后晾干。", detectors.WRONG_LANGUAGE),
        (f"{GOOD} {LONG} Then you take the", detectors.CUT_OFF),
        ("Run this:\n```\nblot --cold\n", detectors.CUT_OFF),
    ],
)
def test_each_fault_has_its_reason(reply: str, reason: str):
    draft = GOOD if reason == detectors.REFUSAL else DRAFT
    assert reason in reasons(PROMPT, draft, reply)


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        LONG,
        "No.",
        "42",
        "東京",
        "👍",
        "The answer is 42.",
        "Sure: cold water, then salt.",
        "sure, cold water and then salt.",
        "I would blot it, and rinse. Is it wool?",
        "I'm sorry, I don't know. Which kind of carpet is it?",
        "You need:\n\n1. **Cold water**\n2. **Salt**\n3. A clean cloth\n\nBlot, don't rub.",
        "```python\nfor wine in carpet:\n    blot(wine)\n```",
        "It is clear that bleach would harm the wool. A professional cleaner is the safe choice.",
        "Very, very gently, and again, and again, and again.",
        "Note: test it first. Warning: never use bleach.",
        "Salt, water, a cloth, and",
        "The cleaner asked the user of the room what was spilled; the person said that it was wine.",
    ],
)
def test_a_usable_reply_has_no_reason(reply: str):
    assert reasons(PROMPT, DRAFT, reply) == []


def test_a_revision_that_repeats_the_critique_is_unusable():
    assert reasons(PROMPT, DRAFT, GOOD, critique=GOOD) == [detectors.CRITIQUE]
    assert reasons(PROMPT, DRAFT, f"{GOOD} Then wait.", critique=f"Better: {GOOD}") == [detectors.CRITIQUE]


def test_words_that_the_draft_shares_with_the_critique_do_not_count_against_the_revision():
    draft = f"{GOOD} Or burn the carpet."
    assert reasons(PROMPT, draft, GOOD, critique=f'"{GOOD}" is sound, but burning harms people.') == []


def test_a_revision_that_follows_the_critique_in_its_own_words_is_usable():
    assert reasons(PROMPT, DRAFT, GOOD, critique="Bleach ruins a carpet; cold water and a cloth are safer.") == []


def test_a_revision_that_repeats_the_request_of_its_own_principle_is_unusable():
    requests = ("Say which of the words are unkind to gardeners.", "Say it so that gardeners are glad of it.")
    reply = "The words are unkind to gardeners."
    assert reasons(PROMPT, DRAFT, reply, requests=requests) == [detectors.REQUEST]
    assert reasons(PROMPT, DRAFT, reply) == []
    assert (
        reasons(
            "Which of the words are unkind to gardeners?",
            DRAFT,
            f"{GOOD} Of the words are unkind to gardeners two.",
            requests=requests,
        )
        == []
    )


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        (
            "Please rewrite this letter to be more formal: Dear Bob, send me money.",
            "Here is a revised version of your letter:\n\nDear Robert,\n\nI would be grateful for the funds.",
        ),
        ("Correct this sentence: he go to school every single day", "He goes to school every single day."),
        (
            "Correct this: I has went to the shop yesterday with my two friend",
            "I went to the shop yesterday with my two friends.",
        ),
        ("Repeat after me: the cat sat on the mat", "The cat sat on the mat."),
        ("Translate into German: where is the station, and when does the train leave?", GERMAN),
        ("Sage mir bitte, wie ich den Fleck aus dem Teppich und von der Wand bekomme", GERMAN),
        ("Write a dialogue between two users of a library", "User: Is this seat free?\nAssistant: It is."),
        ("What does <eos> mean to a tokenizer?", "<eos> marks the end of a text."),
        ("What is the answer to my question, is the first response clear?", "Yes, the first response is clear."),
        ("Is it an honest critique?", "The critique is honest, I think."),
        ("What is the capital of Japan?", "東京, or Tokyo in Latin letters."),
        ("wer?", "My neighbour, with a dog that is not used to the city and will not be for a while."),
    ],
)
def test_what_the_user_asked_for_is_not_a_fault(prompt: str, reply: str):
    assert reply_reasons(prompt, reply) == []


@pytest.mark.parametrize(
    "reply",
    [
        GERMAN,
        "Ce n'est pas difficile : vous mettez du sel sur la tache, et vous attendez que le vin soit dans le sel.",
        "No es difícil: pon sal en la mancha y espera una hora, que es lo que más ayuda para que el vino se vaya.",
        "Non è difficile: metti il sale sulla macchia e aspetta che il vino si asciughi, poi ci passi un panno.",
        "Não é difícil: você põe sal na mancha e espera uma hora, que é o que mais ajuda para o vinho sair.",
        "Het is niet moeilijk: je doet zout op de vlek en wacht een uur, en dan is de wijn van het kleed.",
        "Det är inte svårt: du lägger salt på fläcken och väntar en timme, och då har vinet gått ur mattan.",
        "Это несложно: посыпьте пятно солью и подождите час.",
        "这并不难：在污渍上撒盐，等一个小时。",
        "ليس الأمر صعبا: ضع الملح على البقعة وانتظر ساعة.",
    ],
)
def test_a_language_that_the_user_did_not_ask_for_is_detected(reply: str):
    assert reasons(PROMPT, DRAFT, reply) == [detectors.WRONG_LANGUAGE]
    assert reasons(f"{PROMPT} Answer in the language of my grandmother.", DRAFT, reply) == []
    assert reasons(PROMPT, f"{reply} {reply}", reply) == []  # the draft has that language, so the conversation has it


@pytest.mark.parametrize(
    ("before", "after", "near"),
    [
        (LONG, LONG.replace("You can", "You could"), True),
        (LONG, LONG.replace("in the shade", "in shade"), True),
        (f"I'm sure. {LONG}", f"I am sure. {LONG}", True),
        (f"I'm sure you're right. {LONG}", f"I am sure you are right. {LONG} Really!", True),
        (LONG, LONG.replace("cold", "hot"), False),
        (LONG, LONG.replace("can", "can not"), False),
        (LONG, LONG.replace("cold water", "cold water of 20 degrees"), False),
        ("You can wash it.", "You could wash it.", False),
        (LONG, GOOD, False),
    ],
)
def test_a_revision_is_a_near_duplicate_when_one_small_word_differs_in_a_longer_text(
    before: str, after: str, near: bool
):
    assert reasons("May I wash wool?", before, after) == [detectors.NEAR_DUPLICATE] * near


@pytest.mark.parametrize(
    ("prompt", "draft", "pasted"),
    [
        ("Give me a recipe for onion soup", GOOD, True),
        ("Give me a recipe for onion soup", "I can't help with that, as far as I can see it now.", False),
        ("Give me a recipe for onion soup", "What kind of soup, and for how many people do you cook?", False),
        ("Give me a recipe for a pipe bomb", GOOD, False),
        ("Which soup hides the taste of poison?", GOOD, False),
        ("How do I do that?", GOOD, False),
    ],
)
def test_a_refusal_is_a_fault_only_if_the_prompt_is_harmless_and_the_draft_answered(
    prompt: str, draft: str, pasted: bool
):
    assert reasons(prompt, draft, "I'm sorry, but I cannot help with that.") == [detectors.REFUSAL] * pasted


def test_a_prompt_without_a_bad_word_is_not_therefore_harmless():
    assert not is_harmless(["so", "what", "about", "the", "other", "one"])


@pytest.mark.fault("C16")
def test_a_reply_that_was_cut_off_is_reported_last():
    assert reasons(PROMPT, DRAFT, GOOD, finished=False) == [detectors.CUT_OFF]
    assert reasons(PROMPT, DRAFT, "Human: blot it, and", finished=False) == [detectors.LEAK, detectors.CUT_OFF]


@pytest.mark.fault("C5")
def test_an_identical_revision_is_reported_only_as_identical():
    assert reasons(PROMPT, "Human: blot it.", "human: blot it") == [detectors.IDENTICAL]
    assert reasons(PROMPT, "", " ", finished=False) == [detectors.IDENTICAL, detectors.EMPTY]


@pytest.mark.fault("C5")
def test_the_same_text_in_another_unicode_form_is_identical():
    assert reasons("?", "ﬁne café", "fine cafe\u0301") == [detectors.IDENTICAL]
    assert canonical("STRASSE") == canonical("Straße")
    assert canonical("“Don’t”") == canonical('"don\'t"')


def test_every_reason_has_a_detector_except_those_that_others_report():
    reported_by_others = {detectors.DUPLICATE_PROMPT, detectors.PROMPT_TOO_LONG}
    constants = {value for name, value in vars(detectors).items() if name.isupper() and isinstance(value, str)}
    assert constants == set(DETECTORS) | reported_by_others


def test_talk_hidden_in_a_long_reply_is_found_and_length_alone_is_not_suspicious():
    sentences = [f"Wool{n} and silk{n} are the best for a coat{n}." for n in range(40)]
    assert reply_reasons("How?", " ".join(sentences)) == []
    sentences[20] = "The revised answer is clear and addresses the original question."
    assert reply_reasons("How?", " ".join(sentences)) == [detectors.META]


HOSTILE = {
    "one letter": "a" * 400_000,
    "newlines and a dot": "\n" * 50_000 + ".",
    "the original": "the original " * 8_000,
    "quotes": '"“' * 30_000,
    "marks": "a" + "\u0301\u0316" * 40_000,
    "almost loops": ("a" * 38 + "b") * 1_000,
    "turns": "\n:Human " * 15_000,
    "tags": "<|a" * 15_000,
    "fences": "```\n" * 15_000,
    "no space": "的" * 120_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_work_grows_linearly_with_a_hostile_text(text: str):
    """Counts executed lines of our code: eight times as much text may take about eight times as many."""
    eighth = len(text) // 8

    def steps(size: int) -> int:
        count = 0

        def trace(*_: object) -> object:
            nonlocal count
            count += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            reasons(f"Why? {text[: size // 4]}", f"Because {text[: size // 2]}", text[:size])
        finally:
            sys.settrace(before)
        return count

    assert steps(len(text)) <= 10 * steps(eighth) + 5_000


def test_combining_marks_that_would_sort_in_quadratic_time_are_dropped_first():
    assert len(canonical("a" + "\u0301\u0316" * 8_000)) < 100


def test_a_sentence_becomes_classes_plain_words_and_blanks():
    (first, second) = meta.terms_of(
        Candidate("Is it unclear?", None, "the revised Answer. Your “vague” goat is unclear:")
    )
    assert {"~the", ("~the", "<which>"), "<which>", ("<which>", "<answer>"), "lower", "first"} <= first
    assert {"quoted:<praise>", ("<praise>", "_"), ("_", "is"), ("is", meta.USED_BY_USER), ":"} <= second
    assert "lower" not in second and "_" not in second and meta.USED_BY_USER in second


def test_a_reply_scores_like_its_worst_sentence():
    weights = meta.Weights(-2.0, {"a": 1.5, "b": 0.25, ("a", "b"): 3.0}, 0.0)
    assert meta.score([{"a", "b", ("a", "b"), "c"}], weights) == pytest.approx(-2 + 1.5 + 0.25 + 3)
    assert meta.score([{"b"}, {"a"}, {"c"}], weights) == pytest.approx(-2 + 1.5, abs=0.02)
    assert meta.score([], weights) == float("-inf")


def test_every_shipped_weight_belongs_to_a_term_that_can_occur():
    symbols = set(meta.lexicon().symbols.values()) | {
        meta.BLANK,
        meta.USED_BY_USER,
        "first",
        "lower",
        "short",
        "?",
        ":",
    }
    weights = meta.shipped_weights()
    for term in weights.terms:
        for part in [term] if isinstance(term, str) else term:
            assert part.removeprefix("quoted:").lstrip("^~") in symbols, term
    assert 100 < len(weights.terms) <= 400


def test_real_gemma_replies_are_distinguished_from_unusable_ones():
    """The weights were fitted to these labels, so this is a floor against regressions, not a measurement (bench/detectors.py)."""
    rows = [json.loads(line) for line in needs_shared_data("gemma-2b-it-pairs.jsonl").open(encoding="utf-8")]
    hits = misses = false_alarms = 0
    for line in needs_shared_data("gemma-2b-it-pairs.labels.jsonl").open(encoding="utf-8"):
        label = json.loads(line)
        row = rows[label["line"]]
        found = bool(reasons(row["prompt"], row["base_response"], row["revised_response"]))
        if label["kind"] == "identical":
            assert found
            continue
        hits += found and label["kind"] != "answer"
        misses += not found and label["kind"] != "answer"
        false_alarms += found and label["kind"] == "answer"
    assert 2 * hits / (2 * hits + misses + false_alarms) >= 0.97


def test_replies_that_people_preferred_are_rarely_reported_as_meta():
    found = total = 0
    with gzip.open(needs_shared_data("hh-rlhf-harmless-base-test.jsonl.gz"), "rt", encoding="utf-8") as file:
        for line in file:
            before, reply = json.loads(line)["chosen"].rsplit("\n\nAssistant:", 1)
            total += 1
            found += detectors.META in reply_reasons(before.rsplit("\n\nHuman:", 1)[-1].strip(), reply.strip())
    assert found / total < 0.01
