"""Names of the gate's figures that screens use. They are separate because `gate` takes a tenth of a second to import."""

from __future__ import annotations

BETTER_BY_PEOPLE = "better_by_people"
"""The figure that stands in for a judge if none passes its exam."""

TRAINING_PAIRS = "training_pairs"
_SUBJECTS = {BETTER_BY_PEOPLE: "the share that is better by people", TRAINING_PAIRS: "the number of training pairs"}


def title_of(name: str) -> str:
    return name.replace("_", " ")


def subject_of(name: str) -> str:
    """A figure as the subject of a sentence."""
    return _SUBJECTS.get(name, f"the {title_of(name)}")
