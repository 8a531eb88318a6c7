"""The fields of reports that the program itself reads back. All other fields of a report are kept unchanged."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

_KEEP_UNKNOWN_FIELDS = ConfigDict(extra="allow")


class Gate(BaseModel):
    model_config = _KEEP_UNKNOWN_FIELDS

    figures: list[dict[str, Any]] = []


class PairsReport(BaseModel):
    """`pairs/report.json`."""

    model_config = _KEEP_UNKNOWN_FIELDS

    gate: Gate = Gate()


class EvaluationReport(BaseModel):
    """`evaluation/report.json`."""

    model_config = _KEEP_UNKNOWN_FIELDS

    figures: dict[str, float | int | None]


class SweptTrial(BaseModel):
    model_config = _KEEP_UNKNOWN_FIELDS

    name: str
    options: dict[str, Any]
    outcome: str = ""
    figures: dict[str, Any] | None = None
    seconds: float | None = None


class SweepReport(BaseModel):
    """`trials/sweep.json`."""

    model_config = _KEEP_UNKNOWN_FIELDS

    trials: list[SweptTrial]
    picked: str | None = None
