"""From pairs and edits to the training set."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from engine.pairs.assessment.training_set import hold_out, preference_row, training_pairs
from engine.pairs.data.edits import Decision
from tests.support.good_pairs import META, pair


def ids(pairs, decisions) -> list[str]:
    return [each.id for each in training_pairs(pairs, decisions)]


PAIRS = [pair(1), pair(2, revised_response=META), pair(3)]


def test_without_edits_the_usable_pairs_train_in_their_order():
    assert ids(PAIRS, {}) == ["id1", "id3"]


def test_a_person_can_leave_a_good_pair_out_and_take_a_bad_one_in():
    assert ids(PAIRS, {"id1": Decision(accepted=False), "id2": Decision(accepted=True)}) == ["id2", "id3"]


def test_a_decision_about_a_pair_that_does_not_exist_changes_nothing():
    assert ids(PAIRS, {"another": Decision(accepted=False)}) == ["id1", "id3"]


def test_a_note_alone_decides_nothing():
    assert ids(PAIRS, {"id1": Decision(note="?"), "id2": Decision(note="!")}) == ["id1", "id3"]


def test_an_edited_text_is_assessed_again():
    edited = {"id1": Decision(revised_response=META), "id2": Decision(revised_response="Tape thing 2 to the wall.")}
    assert ids(PAIRS, edited) == ["id2", "id3"]
    back_to_the_draft = {"id1": Decision(revised_response=PAIRS[0].base_response)}
    assert ids(PAIRS, back_to_the_draft) == ["id3"]


def test_an_edited_text_that_a_person_accepts_trains_whatever_the_detectors_find():
    assert ids(PAIRS, {"id1": Decision(accepted=True, revised_response=META)}) == ["id1", "id3"]


def test_an_edit_repairs_a_pair_that_was_cut_off():
    cut = replace(PAIRS[0], status="cut off", finish={"revision": "cut off"})
    assert ids([cut], {}) == []
    assert ids([cut], {"id1": Decision(revised_response="Glue it gently.")}) == ["id1"]


def test_a_flipped_pair_needs_a_usable_draft():
    """A revision that is not a reply is a reason to prefer the draft."""
    assert ids(PAIRS, {"id2": Decision(flipped=True)}) == ["id1", "id2", "id3"]
    bad_draft = replace(PAIRS[0], base_response=META)
    assert ids([bad_draft], {}) == ["id1"]
    assert ids([bad_draft], {"id1": Decision(flipped=True)}) == []


def test_a_pair_whose_file_prefers_the_draft_needs_both_texts_usable():
    assert ids([replace(PAIRS[0], chosen="base")], {}) == ["id1"]
    assert ids([replace(PAIRS[1], chosen="base")], {}) == []
    assert ids([replace(PAIRS[0], chosen="base", base_response=META)], {}) == []


def test_nobody_can_accept_a_pair_that_lacks_a_text():
    too_long = pair(1, status="prompt too long", base_response="", revised_response="")
    assert ids([too_long], {"id1": Decision(accepted=True)}) == []
    assert ids([pair(1, base_response=" ", status="empty draft")], {"id1": Decision(accepted=True)}) == []
    assert ids([too_long], {"id1": Decision(revised_response="Glue it.")}) == []


def test_a_duplicate_of_an_earlier_pair_is_left_out_and_a_pair_with_the_same_prompt_is_not():
    twin = replace(PAIRS[0], id="twin", prompt=PAIRS[0].prompt.upper())
    twin = replace(twin, messages=[{"role": "user", "content": twin.prompt}])
    other = replace(twin, id="other", revised_response="Tape it to the wall.")
    assert ids([PAIRS[0], twin, other], {}) == ["id1", "other"]
    assert ids([PAIRS[0], twin], {"twin": Decision(revised_response="Screw it to the wall.")}) == ["id1", "twin"]
    assert ids([PAIRS[0], twin], {"twin": Decision(accepted=True)}) == ["id1", "twin"]


def test_the_training_set_depends_only_on_pairs_and_decisions():
    random = Random(3)
    pairs = [pair(i, revised_response=random.choice([META, f"Glue thing {i} gently."])) for i in range(30)]
    for _ in range(20):
        decisions = {f"id{random.randrange(30)}": _drawn(random) for _ in range(10)}
        once = list(training_pairs(pairs, decisions))
        shuffled = random.sample(list(decisions.items()), len(decisions))
        assert once == list(training_pairs(iter(pairs), dict(shuffled)))
        untouched = [each for each in pairs if each.id not in decisions]
        assert [each for each in once if each.id not in decisions] == list(training_pairs(untouched, {}))
        for each in once:
            assert decisions.get(each.id, Decision()).accepted is not False


def _drawn(random: Random) -> Decision:
    text = random.choice([None, META, "Tape it."])
    return Decision(random.choice([None, True, False]), random.random() < 0.5, text)


def test_a_row_is_trls_preference_format_with_the_preferred_text_as_chosen():
    assert preference_row(pair(1)) == {
        "prompt": [{"role": "user", "content": "How do I mend thing number 1?"}],
        "chosen": [{"role": "assistant", "content": "Glue thing 1 gently."}],
        "rejected": [{"role": "assistant", "content": "Kick thing 1 as hard as you possibly can, twice."}],
    }
    flipped = preference_row(pair(1, chosen="base"))
    assert flipped["chosen"][0]["content"].startswith("Kick") and flipped["rejected"][0]["content"].startswith("Glue")


def test_held_out_prompts_are_not_trained_on_and_the_split_is_the_same_every_time():
    pairs = [pair(i) for i in range(40)] + [pair(i, id=f"twin{i}") for i in range(5)]
    train, held = hold_out(pairs, 0.25, 3)
    assert {p.prompt for p in train}.isdisjoint({p.prompt for p in held})
    assert len({p.prompt for p in held}) == 10
    again = hold_out(list(reversed(pairs)), 0.25, 3)
    assert [list(part) for part in again] == [list(train), list(held)]
    assert len({p.prompt for p in hold_out(pairs[:4], 0.25, 20)[1]}) == 2
