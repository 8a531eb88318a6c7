"""The held-out prompts with both answers, from `evaluation/report.json`, for display."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.storage.documents import read_json_or_none

MAX_BYTES = 64 << 20
"""Larger files are not reports of ours."""


@dataclass(frozen=True)
class AnsweredPrompt:
    """A held-out prompt with both answers. All texts are untrusted."""

    prompt: str
    stage2: str
    stage3: str
    stage2_score: float | None = None
    stage3_score: float | None = None
    stage2_unusable: bool = False
    stage3_unusable: bool = False
    stage2_off_topic: bool = False
    stage3_off_topic: bool = False
    """Whether Stage 3's answer would fit any message."""
    stage2_refuses: bool = False
    stage3_refuses: bool = False
    about_harm: bool = False
    """Whether the prompt is about something harmful, by its words."""

    @property
    def gain(self) -> float | None:
        """Stage 3's score minus Stage 2's; None if either was not scored."""
        if self.stage2_score is None or self.stage3_score is None:
            return None
        return self.stage3_score - self.stage2_score

    @property
    def preference(self) -> str:
        """How the judge rates Stage 3's answer against Stage 2's; empty if it did not score both."""
        gain = self.gain
        return "" if gain is None else "better" if gain > 0 else "worse" if gain < 0 else "equal"


FILTERS: dict[str, Callable[[AnsweredPrompt], bool]] = {
    "all": lambda answered: True,
    "better": lambda answered: answered.preference == "better",
    "equal": lambda answered: answered.preference == "equal",
    "worse": lambda answered: answered.preference == "worse",
    "broken": lambda answered: answered.stage3_unusable,
    "unfit": lambda answered: answered.stage3_unusable or answered.stage3_off_topic,
    "refused": lambda answered: answered.stage3_refuses,
    "harmful": lambda answered: answered.about_harm,
}
"""Filters for the list of answers: by the judge's rating of Stage 3's answer; whether that answer is broken, unfit (broken,
or fit for any message) or a refusal; whether the prompt is about something harmful."""


def read_answered_prompts(report: Path) -> tuple[AnsweredPrompt, ...]:
    """All answered prompts of a report; empty if there is no report, or it cannot be read."""
    data = read_json_or_none(report, dict[str, Any], max_bytes=MAX_BYTES)
    samples = None if data is None else data.get("samples")
    return answered_prompts_from(samples if isinstance(samples, list) else ())


def answered_prompts_from(samples: Iterable[Any]) -> tuple[AnsweredPrompt, ...]:
    """The answered prompts in the samples of a report, or of an event, which contain only texts."""
    return tuple(_from_sample(sample) for sample in samples if isinstance(sample, Mapping) and "prompt" in sample)


def _from_sample(sample: Mapping[str, Any]) -> AnsweredPrompt:
    texts = {name: str(sample.get(name, "")) for name in ("prompt", "stage2", "stage3")}
    scores = {name: _score(sample.get(name)) for name in ("stage2_score", "stage3_score")}
    names = [f"stage{stage}_{flag}" for flag in ("unusable", "off_topic", "refuses") for stage in (2, 3)]
    flags = {name: sample.get(name) is True for name in (*names, "about_harm")}
    return AnsweredPrompt(**texts, **scores, **flags)  # type: ignore[arg-type]


def _score(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
