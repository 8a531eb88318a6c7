"""run.json and the manifest of a checkpoint: what was recorded is read back, and damage is reported."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core import layout
from engine.core.errors import DamagedState
from engine.core.stage_table import STAGES
from engine.dpo.training.checkpoints import MANIFEST, checkpoint_error, write_checkpoint
from engine.run.folder import Run
from engine.run.results import RESULTS as RESULT_TYPES
from engine.security.redaction import redacted
from tests.properties.values import PRINTABLE_TEXT, RECORD

TYPED = {field.name for result in RESULT_TYPES.values() for field in fields(result)}
"""Fields that are checked when they are read. Hypothesis draws words of the program, too."""
UNTYPED = PRINTABLE_TEXT.filter(lambda name: name not in TYPED)
RESULTS = st.dictionaries(st.sampled_from(STAGES), st.dictionaries(UNTYPED, st.integers() | PRINTABLE_TEXT), max_size=3)


@given(RESULTS)
def test_the_next_process_reads_what_the_stages_recorded(results: dict[str, dict[str, Any]]):
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        for stage, result in results.items():
            run.record_stage(stage, status="done", result=result)
        again = Run(Path(folder))
        assert {stage: again.result(stage) for stage in results} == redacted(results)


@pytest.mark.fault("A15")
@given(RESULTS.filter(bool), st.data())
def test_a_damaged_run_json_is_read_or_reported_and_left_unchanged(
    results: dict[str, dict[str, Any]], data: st.DataObject
):
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        for stage, result in results.items():
            run.record_stage(stage, status="done", result=result)
        path = run / layout.RUN_JSON
        damaged = _damaged(path.read_bytes(), data)
        path.write_bytes(damaged)
        try:
            assert isinstance(Run(Path(folder)).manifest["stages"], dict)
        except DamagedState as error:
            assert layout.RUN_JSON in error.what
        assert path.read_bytes() == damaged


@pytest.mark.fault("A15")
@given(RECORD)
def test_a_run_json_with_any_other_object_is_reported(record: dict[str, Any]):
    from engine.storage.files import write_json

    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / layout.RUN_JSON, {**record, "schema": 1})
        with pytest.raises(DamagedState):
            Run(Path(folder))


@pytest.mark.fault("D14")
@given(st.dictionaries(st.sampled_from(["adapter", "optimizer.pt", "rng/state"]), st.binary(min_size=1, max_size=64), min_size=1),
       st.data())  # fmt: skip
def test_no_byte_of_a_checkpoint_changes_unnoticed(files: dict[str, bytes], data: st.DataObject):
    def fill(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), 7, fill, "the same")
        assert checkpoint_error(checkpoint, "the same") == ""
        name = data.draw(st.sampled_from([*files, MANIFEST]))
        before = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(_damaged(before, data))
        fault = checkpoint_error(checkpoint, "the same")  # damage to the manifest may be harmless, such as a blank
        assert fault or name == MANIFEST


def _damaged(written: bytes, data: st.DataObject) -> bytes:
    """The bytes, truncated or with one byte changed."""
    index = data.draw(st.integers(0, len(written) - 1))
    if data.draw(st.booleans()):
        return written[:index]
    return written[:index] + bytes([written[index] ^ data.draw(st.integers(1, 255))]) + written[index + 1 :]
