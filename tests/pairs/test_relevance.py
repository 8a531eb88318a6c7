"""Relevance: measured by the demo's model, cached by text, and its effect on a pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import mean

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.core.errors import Stopped
from engine.core.generators import drain
from engine.demo.grammar import STAGE2_MIX, draw_answer, draw_prompt, questions
from engine.demo.preset import ASSETS
from engine.pairs import detectors
from engine.pairs.assessment.assess import assess_pair
from engine.pairs.assessment.validation import validate
from engine.pairs.data.edits import write_edit
from engine.pairs.detectors.relevance import MAX_SURPRISE, MIN_RELEVANCE, common_words
from engine.pairs.relevance.cache import MeasuredReply, append_relevance, key_of_reply, read_relevance, with_measures
from engine.pairs.relevance.measure import OTHER_MESSAGES, Answer, RelevanceMeter, ReplyMeasures
from engine.pairs.relevance.pairs import in_this_process, measure_pairs
from engine.run.stop import StopToken
from tests.support.good_pairs import pair, row, write_rows

LOW, HIGH = MIN_RELEVANCE[-1] - 1, MIN_RELEVANCE[0] + 1


@pytest.fixture(scope="module")
def meter() -> RelevanceMeter:
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "base").eval()
    return RelevanceMeter(model, AutoTokenizer.from_pretrained(ASSETS / "base"))


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_a_reply_depends_on_its_own_prompt_and_not_on_another(meter: RelevanceMeter):
    random = Random(0)
    drawn = random.sample(questions(held_out=True), 12)
    prompts = [draw_prompt(random, question) for question in drawn]
    replies = [draw_answer(random, question, STAGE2_MIX).text for question in drawn]
    own = meter.measure([Answer(*one) for one in zip(prompts, replies, strict=True)])
    swapped = meter.measure([Answer(*one) for one in zip(prompts, replies[1:] + replies[:1], strict=True)])
    assert mean(one.relevance for one in own) > mean(one.relevance for one in swapped) + 5


def test_words_that_do_not_go_together_surprise_the_model(meter: RelevanceMeter):
    random = Random(0)
    prompts = [draw_prompt(random, question) for question in questions(held_out=True)[:12]]
    replies = [draw_answer(random, question, STAGE2_MIX).text for question in questions(held_out=True)[:12]]
    salads = [" ".join(random.sample(reply.split(), len(reply.split()))) for reply in replies]
    surprise = [
        [one.surprise for one in meter.measure([Answer(*one) for one in zip(prompts, texts, strict=True)])]
        for texts in (replies, salads)
    ]
    assert abs(mean(surprise[0])) < 0.5 and mean(surprise[1]) > MAX_SURPRISE


def test_the_rest_of_a_batch_does_not_change_a_replys_relevance(meter: RelevanceMeter):
    first, second = Answer(asked("How do I fix a tap?"), "Close the valve."), Answer(asked("Why?"), "It is late. " * 9)
    together = meter.measure([first, second])
    apart = [*meter.measure([first]), *meter.measure([second])]
    assert [*together[0], *together[1]] == pytest.approx([*apart[0], *apart[1]], abs=1e-3)


def test_an_empty_reply_has_no_relevance_and_a_reference_message_is_compared_with_the_other_one(meter: RelevanceMeter):
    empty, of_reference = meter.measure([Answer(asked("Why?"), ""), Answer(asked(OTHER_MESSAGES[0]), "Water it.")])
    assert empty is None and of_reference is not None and of_reference.relevance != 0


# -- caching -----------------------------------------------------------------------------------------------------------


class Counting:
    """A meter that counts its measurements."""

    def __init__(self, nats: float = HIGH) -> None:
        self.nats, self.measured = nats, 0

    def measure(self, answers):
        self.measured += len(answers)
        return [ReplyMeasures(self.nats, 0.0) if answer.reply.strip() else None for answer in answers]


def measured(pairs, path: Path, meter: Counting, model: str = "base") -> dict[str, ReplyMeasures]:
    loaded = in_this_process(lambda: meter, model, StopToken())  # type: ignore[arg-type, return-value]
    return drain(measure_pairs(pairs, path, model, lambda: loaded))


def test_nothing_is_measured_twice_unless_its_text_or_the_model_changes(tmp_path: Path):
    path, meter, pairs = tmp_path / "relevance.jsonl", Counting(), [pair(n) for n in range(40)]
    assert len(measured(pairs, path, meter)) == 40 and meter.measured == 40
    assert len(measured(pairs, path, meter)) == 40 and meter.measured == 40
    edited = [replace(pairs[0], revised_response="Glue it twice."), *pairs[1:], replace(pairs[1], id="the same again")]
    measured(edited, path, meter)
    assert meter.measured == 41
    measured(pairs, path, meter, model="another")
    assert meter.measured == 81


def test_a_stopped_measurement_continues_where_it_was(tmp_path: Path):
    path, stop, meter = tmp_path / "relevance.jsonl", StopToken(), Counting()
    pairs = [pair(n) for n in range(40)]
    loaded = in_this_process(lambda: meter, "base", stop)  # type: ignore[arg-type, return-value]
    steps = measure_pairs(pairs, path, "base", lambda: loaded)
    next(steps), next(steps)
    stop.request("SIGTERM")
    with pytest.raises(Stopped):
        drain(steps)
    kept = len(read_relevance(path))
    assert 0 < kept < 40
    measured(pairs, path, meter)
    assert meter.measured == 40


def test_damaged_lines_are_ignored(tmp_path: Path):
    path = tmp_path / "relevance.jsonl"
    rows = [
        '{"id": "a", "model": "base", "key": "k", "nats": "much", "surprise": 0.1}',
        '{"id": "b", "model": "base", "key": "l", "nats": 9.0}',
        '{"nats": NaN}',
        "no json",
    ]
    path.write_text("\n".join(rows) + "\n")
    assert read_relevance(path) == {}


# -- assessing ---------------------------------------------------------------------------------------------------------


def reasons_of(
    nats: float | None, reply: str = "Glue the broken thing with wood glue, gently.", **changes
) -> tuple[str, ...]:
    return assess_pair(replace(pair(1, revised_response=reply, **changes), relevance=nats)).reasons_as_made


def test_a_revision_that_its_prompt_makes_no_more_likely_is_off_topic():
    assert reasons_of(LOW) == (detectors.OFF_TOPIC,)
    assert reasons_of(HIGH) == () and reasons_of(None) == ()


def test_a_revision_that_names_no_subject_must_be_more_relevant():
    nats = (MIN_RELEVANCE[0] + MIN_RELEVANCE[-1]) / 2
    assert reasons_of(nats) == ()
    assert reasons_of(nats, "I think that is a good idea, and I would like to help you with it.") == (
        detectors.OFF_TOPIC,
    )


def test_a_revision_that_surprises_the_model_too_much_is_nonsense_unless_it_is_short():
    def reasons(
        surprise: float | None, reply: str = "Glue the broken thing with wood glue, gently."
    ) -> tuple[str, ...]:
        return assess_pair(replace(pair(1, revised_response=reply), relevance=HIGH, surprise=surprise)).reasons_as_made

    assert reasons(MAX_SURPRISE + 0.1) == (detectors.NONSENSE,)
    assert reasons(MAX_SURPRISE - 0.1) == reasons(None) == ()
    assert reasons(MAX_SURPRISE + 0.1, "Glue it today.") == ()


def test_an_answer_that_is_not_a_revision_may_fit_any_message():
    assert detectors.reasons("Mend it", None, "What do you mean?", relevance=-3.0) == []


def test_the_common_words_name_no_subject():
    assert {"think", "sure", "question", "help"} <= common_words()
    assert common_words().isdisjoint({"glue", "police", "basil", "car", "tap"})


def test_validate_reads_measures_beside_the_file_and_an_edit_discards_them(tmp_path: Path, config):
    path = write_rows(tmp_path / "pairs.jsonl", [row(1), row(2)])
    first = pair(1)
    key = key_of_reply(first.messages, first.revised_response)
    append_relevance(tmp_path / "relevance.jsonl", [MeasuredReply(first.id, "base", key, LOW - 10, 0.0)])
    assert validate(path, config()).report["reasons"] == {detectors.OFF_TOPIC: 1}
    write_edit(tmp_path / "edits.jsonl", first.id, "edit", "Glue it with wood glue.")
    assert validate(path, config()).report["figures"]["training_pairs"] == 2


def test_a_pair_gets_the_measures_of_its_own_texts():
    one = pair(1)
    known = {key_of_reply(one.messages, one.revised_response): ReplyMeasures(3.0, 0.5)}
    assert (with_measures(one, known).relevance, with_measures(one, known).surprise) == (3.0, 0.5)
    other = with_measures(replace(one, revised_response="Other."), known)
    assert (other.relevance, other.surprise) == (None, None)


def test_validate_measures_missing_pairs_with_a_meter(tmp_path: Path, config):
    path = write_rows(tmp_path / "pairs.jsonl", [row(number) for number in range(40)])
    unmeasured = validate(path, config())
    assert unmeasured.report["relevance"] == {"measured": 0, "relevant": 0}
    counting = Counting(LOW - 10)
    result = validate(path, config(), meter=counting)  # type: ignore[arg-type]
    assert counting.measured == 40 and result.report["relevance"] == {"measured": 40, "relevant": 0}
    assert "relevant_share" in result.report["gate"]["failed"]


def test_relevance_that_was_not_measured_has_no_value_in_the_gate(tmp_path: Path, config):
    result = validate(write_rows(tmp_path / "pairs.jsonl", [row(1)]), config())
    (figure,) = [one for one in result.report["gate"]["figures"] if one["name"] == "relevant_share"]
    assert figure["value"] is None and figure["passes"] is None
