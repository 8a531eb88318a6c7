"""Both answers to each held-out prompt, as `evaluation/report.json` keeps them: for people who want to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.storage.documents import read_json_or_none

MAX_BYTES = 64 << 20
"""A report beyond this is not one of ours."""


@dataclass(frozen=True)
class Answered:
    """A held-out prompt with both answers; every text is foreign."""

    prompt: str
    stage2: str
    stage3: str
    stage2_score: float | None = None
    stage3_score: float | None = None
    stage2_unusable: bool = False
    stage3_unusable: bool = False
    stage2_off_topic: bool = False
    stage3_off_topic: bool = False
    """Would fit any message."""
    stage2_refuses: bool = False
    stage3_refuses: bool = False
    about_harm: bool = False
    """By the prompt's words."""

    @property
    def gain(self) -> float | None:
        """Stage 3's score less Stage 2's; None where one was not scored."""
        if self.stage2_score is None or self.stage3_score is None:
            return None
        return self.stage3_score - self.stage2_score

    @property
    def word(self) -> str:
        """What the judge says of Stage 3's answer; empty where it said nothing."""
        gain = self.gain
        return "" if gain is None else "better" if gain > 0 else "worse" if gain < 0 else "equal"


KINDS: dict[str, Callable[[Answered], bool]] = {
    "all": lambda one: True,
    "better": lambda one: one.word == "better",
    "equal": lambda one: one.word == "equal",
    "worse": lambda one: one.word == "worse",
    "broken": lambda one: one.stage3_unusable,
    "unfit": lambda one: one.stage3_unusable or one.stage3_off_topic,
    "refused": lambda one: one.stage3_refuses,
    "harmful": lambda one: one.about_harm,
}
"""Which answers a person may want to see: as the judge found Stage 3's, where it is broken, broken or fit for any message
(unfit), or a refusal, and where the prompt is about something that could do harm."""


def read_answered(report: Path) -> tuple[Answered, ...]:
    """All of the report's; empty where there is none, or none that can be read."""
    data = read_json_or_none(report, dict[str, Any], max_bytes=MAX_BYTES)
    samples = None if data is None else data.get("samples")
    return answered_of(samples if isinstance(samples, list) else ())


def answered_of(samples: Iterable[Any]) -> tuple[Answered, ...]:
    """Of the samples of a report, or of an event, which has texts alone."""
    return tuple(_answered(one) for one in samples if isinstance(one, Mapping) and "prompt" in one)


def _answered(sample: Mapping[str, Any]) -> Answered:
    texts = {name: str(sample.get(name, "")) for name in ("prompt", "stage2", "stage3")}
    scores = {name: _score(sample.get(name)) for name in ("stage2_score", "stage3_score")}
    faults = [f"stage{stage}_{fault}" for fault in ("unusable", "off_topic", "refuses") for stage in (2, 3)]
    flags = {name: sample.get(name) is True for name in (*faults, "about_harm")}
    return Answered(**texts, **scores, **flags)  # type: ignore[arg-type]


def _score(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
