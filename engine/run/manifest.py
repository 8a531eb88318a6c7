"""Read `run.json`, and check the types of the fields that every command uses, whoever wrote the file last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from engine.core.errors import DamagedState
from engine.core.typed import validated
from engine.run.results import RESULTS
from engine.security.sanitize import visible_line
from engine.storage.documents import read_json

SCHEMA = 1
MAX_MANIFEST_BYTES = 16 << 20
"""A run writes about ten thousand bytes."""
_WRITTEN_ATOMICALLY = "It records what the run has done, and is written atomically: another program changed it."


class _Stage(BaseModel):
    model_config = ConfigDict(extra="allow")

    status: str = ""
    summary: str = ""
    depends_on: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    started: float | None = Field(None, allow_inf_nan=False)
    seconds: float | None = Field(None, allow_inf_nan=False)


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="allow")

    config: dict[str, Any]
    stages: dict[str, _Stage]
    error: dict[str, Any] | None = None
    version: str = ""


def new_manifest() -> dict[str, Any]:
    return {"schema": SCHEMA, "config": {}, "stages": {}}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a file, unchanged. Raises DamagedState, UnsafeError and OSError as `read_json` does."""
    remedy = f"Move {visible_line(str(path.parent))} aside to start over, or restore the file from a copy."
    found: dict[str, Any] = read_json(
        path, dict[str, Any], max_bytes=MAX_MANIFEST_BYTES, why=_WRITTEN_ATOMICALLY, what_to_do=remedy
    )
    if found.get("schema", SCHEMA) != SCHEMA:
        raise DamagedState(
            f"{visible_line(str(path))} has schema {visible_line(repr(found['schema']), 40)}; this version reads {SCHEMA}.",
            "Another version of stage3-tui made this run.",
            "Use that version, or another --output-dir.",
        )
    try:
        if "schema" not in found:
            raise ValueError("schema: Field required")
        validated(_Manifest, found)
        for name, stage in found["stages"].items():
            if name in RESULTS and stage.get("result"):
                _check_result_types(name, stage["result"])
    except ValueError as error:
        raise DamagedState(
            f"Cannot read {visible_line(str(path))}.", f"{error}. {_WRITTEN_ATOMICALLY}", remedy
        ) from None
    return found


def _check_result_types(stage: str, result: dict[str, Any]) -> None:
    """Raises ValueError for a field of a wrong type. A missing field is allowed: another version wrote the result."""
    try:
        validated(RESULTS[stage], result, partial=True)
    except ValueError as error:
        raise ValueError(f"stages.{stage}.result.{error}") from None
