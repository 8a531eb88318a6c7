"""The three methods of generating pairs: their requests, their records, and what the records depend on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from engine.core.errors import ConfigError
from engine.core.generators import drain
from engine.models.chat import Conversation
from engine.models.generation.sampling import RefusedReply, Reply, SamplingSettings
from engine.pairs import detectors
from engine.pairs.data.record import EMPTY_DRAFT, OK, PairRecord, text_labels
from engine.pairs.formats.native_form import pair_of_record
from engine.pairs.generation.best_of_n import NO_DIFFERENCE
from engine.pairs.generation.cost import replies_per_pair
from engine.pairs.generation.critique_revision import REFUSED
from engine.pairs.generation.dialogue import with_persona
from engine.pairs.generation.methods import check_method, record_maker
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.settings import GenerationSettings
from engine.pairs.judges.base import Comparison, ScorePair
from engine.pairs.principles.constitution import Principle, load_constitution
from engine.run.stop import StopToken

PROMPTS = [
    Prompt("id0", [{"role": "user", "content": "How do I mend a tap?"}]),
    Prompt("id1", [{"role": "user", "content": "Where should I keep my keys?"}]),
]
KIND = "Turn the water off first, then change the washer."
RUDE = "That is your problem, so do not ask me about it."
LAZY = "Hit it with a hammer until it stops."


class Scripted:
    """A backend with scripted replies, in order, that records its requests."""

    tokens, context_length = 0, None

    def __init__(self, *rounds: Sequence[str | Reply]) -> None:
        self.rounds = list(rounds)
        self.requests: list[list[Conversation]] = []
        self.seeds: list[list[int]] = []

    def reply(
        self, conversations: Sequence[Conversation], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[Reply]:
        self.requests.append(list(conversations))
        self.seeds.append(list(seeds))
        return [text if isinstance(text, Reply) else Reply(text, True, 3) for text in self.rounds.pop(0)]

    def length(self, conversation: Conversation) -> int:
        return sum(len(message["content"]) for message in conversation)


class ByLength:
    """A judge that can only compare: it prefers the longer of two replies."""

    name, about = "by length", "the longer reply"

    def __init__(self) -> None:
        self.comparisons: list[Comparison] = []

    def score(self, comparisons: Sequence[Comparison]) -> list[ScorePair]:
        self.comparisons += comparisons
        return [
            ScorePair(0.5, 0.5 + (len(comparison.second) - len(comparison.first)) / 1000) for comparison in comparisons
        ]


@pytest.fixture
def settings_for(config):
    def of(**options: Any) -> GenerationSettings:
        return GenerationSettings.of(config(**{"max_attempts": 2, **options}))

    return of


def made(settings: GenerationSettings, backend: Scripted, prompts: Sequence[Prompt] = PROMPTS[:1], judge: Any = None):
    return drain(record_maker(backend, settings, judge, StopToken())(prompts))  # type: ignore[arg-type]


# -- contrast ----------------------------------------------------------------------------------------------------------


def test_a_contrast_answers_as_an_assistant_that_follows_the_principle_and_as_one_that_does_not(settings_for):
    backend = Scripted([KIND, KIND], [RUDE, RUDE])
    records = made(settings_for(method="contrast"), backend, PROMPTS)
    principles = {one.id: one for one in load_constitution(None).principles}
    for number, record in enumerate(records):
        assert (record.revised_response, record.base_response, record.status) == (KIND, RUDE, OK)
        assert (record.method, record.attempts, record.critic_notes) == ("contrast", 1, "")
        principle = principles[record.made_by[0]]
        follows, opposes = (requests[number] for requests in backend.requests)
        assert follows[0] == {"role": "system", "content": principle.persona}
        assert opposes[0] == {"role": "system", "content": principle.opposite}
        assert follows[1:] == opposes[1:] == record.messages, "they differ only in the persona"
        assert record.messages == PROMPTS[number].messages, "the pair trains on the prompt without it"


def test_a_persona_precedes_the_prompts_own_system_message():
    asked = [{"role": "system", "content": "Answer in Dutch."}, {"role": "user", "content": "Hello?"}]
    assert with_persona(asked, "You are kind.") == [
        {"role": "system", "content": "You are kind.\n\nAnswer in Dutch."},
        {"role": "user", "content": "Hello?"},
    ]


def test_each_answer_of_a_contrast_has_its_own_seed(settings_for):
    backend = Scripted([KIND, KIND], [RUDE, RUDE])
    made(settings_for(method="contrast"), backend, PROMPTS)
    assert len({seed for seeds in backend.seeds for seed in seeds}) == 4


def test_a_contrast_of_two_equal_answers_is_retried_under_another_principle(settings_for):
    backend = Scripted([KIND], [KIND], [KIND], [RUDE])
    (record,) = made(settings_for(method="contrast"), backend)
    assert (record.status, record.attempts, record.base_response) == (OK, 2, RUDE)
    assert len(set(record.principle_ids)) == 2 and record.made_by == record.principle_ids[1:]


def test_a_chosen_answer_that_talks_about_answers_is_not_a_pair(settings_for):
    (record,) = made(
        settings_for(method="contrast", max_attempts=1), Scripted(["The revised answer is clear."], [RUDE])
    )
    assert record.status == detectors.META and record.made_by == ()


def test_a_chosen_answer_that_recites_its_persona_is_not_a_pair(settings_for):
    principle = load_constitution(None).principles[0]
    (record,) = made(settings_for(method="contrast", max_attempts=1), Scripted([f"Yes. {principle.persona}"], [RUDE]))
    assert record.status == detectors.REQUEST


def test_a_contrast_without_a_pair_records_the_reason(settings_for):
    refused = RefusedReply("", False, 0, reason="blocked")
    settings = settings_for(method="contrast", max_attempts=1)
    records = made(settings, Scripted([refused, KIND], [RUDE, ""]), PROMPTS)
    assert [record.status for record in records] == [REFUSED, EMPTY_DRAFT]


def test_a_principle_without_personas_is_its_own_persona_and_is_inverted_in_words():
    principle = Principle("calm", "Stay calm.", "", "")
    assert principle.chosen_system == "Stay calm."
    assert principle.rejected_system == "Do the opposite of what this principle asks for: Stay calm."
    named = replace(principle, persona="You are calm.", opposite="You are upset.")
    assert (named.chosen_system, named.rejected_system) == ("You are calm.", "You are upset.")


def test_the_shipped_constitution_has_both_personas_of_each_principle():
    assert all(one.persona and one.opposite for one in load_constitution(None).principles)


def test_a_constitution_with_only_requests_cannot_make_contrasts(config, tmp_path: Path):
    requests = {"harmful0": {"prompt": ["CritiqueRequest: Say what is harmful in it."], "edit_request": "Rewrite it."}}
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    options = {"constitution": tmp_path / "requests.json", "judge": "none"}
    check_method(config(**options))
    with pytest.raises(ConfigError, match="only requests for critiques"):
        check_method(config(method="contrast", **options))


# -- best of n ---------------------------------------------------------------------------------------------------------


def test_best_of_n_pairs_the_judges_best_draft_with_its_worst(settings_for):
    backend, judge = Scripted([LAZY], [RUDE], [KIND]), ByLength()
    (record,) = made(settings_for(method="best-of-n", num_drafts=3), backend, judge=judge)
    assert (record.status, record.revised_response, record.base_response) == (OK, KIND, LAZY)
    assert record.method == "best-of-n" and len(record.made_by) == 1
    assert {comparison.first for comparison in judge.comparisons} == {LAZY} and len(judge.comparisons) == 2
    assert {comparison.principle_id for comparison in judge.comparisons} == set(record.made_by)
    assert len({seed for seeds in backend.seeds for seed in seeds}) == 3


def test_the_first_draft_may_be_the_best_or_the_worst(settings_for):
    (record,) = made(settings_for(method="best-of-n", num_drafts=2), Scripted([KIND], [LAZY]), judge=ByLength())
    assert (record.revised_response, record.base_response) == (KIND, LAZY)


def test_unusable_drafts_are_not_ranked(settings_for):
    broken = (
        "Please mend the tap the tap the tap the tap the tap the tap the tap the tap the tap the tap the tap the tap"
    )
    assert detectors.reply_reasons(PROMPTS[0].text, broken)
    backend = Scripted([LAZY], [broken], [KIND])
    (record,) = made(settings_for(method="best-of-n", num_drafts=3), backend, judge=ByLength())
    assert (record.revised_response, record.base_response) == (KIND, LAZY)


@pytest.mark.parametrize(
    ("drafts", "why"),
    [
        ([[KIND], [KIND]], detectors.IDENTICAL),
        ([[KIND], [""]], EMPTY_DRAFT),
        ([["abc of the tap, first.", ], ["xyz of the tap, third."]], NO_DIFFERENCE),
    ],
)  # fmt: skip
def test_drafts_that_cannot_be_ranked_make_no_pair(settings_for, drafts, why):
    (record,) = made(settings_for(method="best-of-n", num_drafts=2), Scripted(*drafts), judge=ByLength())
    assert record.status == why and record.made_by == ()


@pytest.mark.parametrize(("options", "named"), [({"judge": "none"}, "judge"), ({"temperature": 0.0}, "temperature")])
def test_best_of_n_without_a_judge_or_a_temperature_is_refused_at_once_with_advice(config, options, named):
    with pytest.raises(ConfigError, match="best-of-n") as refused:
        check_method(config(**{"method": "best-of-n", "judge": "self", **options}))
    assert f"--{named}" in refused.value.what_to_do
    check_method(config(**{**options, "method": "contrast"}))


# -- what a record depends on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "counts", "does_not"),
    [
        ("critique-revision", {"rounds": 2, "max_attempts": 5}, {"num_drafts": 7, "judge": "self"}),
        ("contrast", {"max_attempts": 5}, {"rounds": 2, "num_drafts": 7, "judge": "self"}),
        ("best-of-n", {"num_drafts": 7, "judge": "self"}, {"rounds": 2, "max_attempts": 5}),
    ],
)
def test_a_record_depends_on_what_its_method_uses(settings_for, method, counts, does_not):
    def inputs(**options: Any) -> Any:
        return settings_for(**{"judge": "demo", "method": method, **options}).text_inputs()

    assert all(inputs(**{name: value}) != inputs() for name, value in counts.items())
    assert all(inputs(**{name: value}) == inputs() for name, value in does_not.items())


def test_an_opposite_matters_only_to_contrast(settings_for, tmp_path):
    path = tmp_path / "principles.yaml"

    def inputs(method: str, opposite: str) -> Any:
        path.write_text(f"principles: [{{id: calm, text: Stay calm., opposite: {opposite}}}]")
        return settings_for(method=method, judge="demo", constitution=path).text_inputs()

    for method in ("critique-revision", "contrast", "best-of-n"):
        same = inputs(method, "Be upset.") == inputs(method, "Shout.")
        assert same == (method != "contrast")


def test_records_from_before_the_method_option_stay_valid(settings_for):
    before = asdict(settings_for())
    for later in ("method", "num_drafts", "judge"):
        del before[later]
    del before["constitution"]["source"]
    for principle in before["constitution"]["principles"]:
        del principle["persona"], principle["opposite"]
    assert json.loads(json.dumps(settings_for().text_inputs())) == json.loads(json.dumps(before))


@pytest.mark.parametrize(("method", "replies"), [("critique-revision", 3), ("contrast", 2), ("best-of-n", 5)])
def test_the_forecast_counts_the_replies_of_each_method(config, method, replies):
    assert replies_per_pair(config(method=method, num_drafts=5)) == replies


def test_a_record_keeps_its_method_which_names_the_texts():
    record = PairRecord(
        "a", "Why?", [{"role": "user", "content": "Why?"}], RUDE, KIND, "", ("calm",), 1, OK, method="contrast"
    )
    pair = pair_of_record(record)
    assert pair.method == "contrast" and pair.preferred == KIND
    assert text_labels("contrast") == ("Under the opposite", "Under the principle")
    assert text_labels(["contrast"]) == text_labels("") == ("Draft", "Revision")
