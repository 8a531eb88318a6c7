"""Reports that a run reads back, as far as anything but a person reads them; the rest of each stays as it is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

_AS_IT_IS = ConfigDict(extra="allow")


class Gate(BaseModel):
    model_config = _AS_IT_IS

    figures: list[dict[str, Any]] = []


class PairsReport(BaseModel):
    """`pairs/report.json`."""

    model_config = _AS_IT_IS

    gate: Gate = Gate()


class EvaluationReport(BaseModel):
    """`evaluation/report.json`."""

    model_config = _AS_IT_IS

    figures: dict[str, float | int | None]


class SweptTrial(BaseModel):
    model_config = _AS_IT_IS

    name: str
    options: dict[str, Any]
    outcome: str = ""
    figures: dict[str, Any] | None = None
    seconds: float | None = None


class SweepReport(BaseModel):
    """`trials/sweep.json`."""

    model_config = _AS_IT_IS

    trials: list[SweptTrial]
    picked: str | None = None
