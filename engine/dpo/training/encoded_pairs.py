"""Training pairs as token ids in an unnamed temporary file, which disappears with its process. The file is memory-mapped,
so the kernel keeps only pages in use: a million pairs need no more memory than a few.

Imports pyarrow; import it where it is used.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.dpo.training.dataset import EncodedPair
from engine.storage.lazy import LazySequence

PAIRS_PER_BLOCK = 1000
"""Pairs per block of the file. A block is in memory while it is written."""
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
SCHEMA = pa.schema([pa.field("index", pa.int64()), *(pa.field(name, pa.list_(pa.int32())) for name in IDS)])


class EncodedPairs(LazySequence[EncodedPair]):
    """Pairs on disk, in their original order."""

    def __init__(self, pairs: Iterable[EncodedPair], folder: Path) -> None:
        """folder   needs 4 bytes of free space per token; raises OSError if there is less"""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            with pa.ipc.new_stream(file, SCHEMA) as blocks:
                remaining = iter(pairs)
                while block := list(islice(remaining, PAIRS_PER_BLOCK)):
                    columns = {name: [getattr(pair, name) for pair in block] for name in SCHEMA.names}
                    blocks.write_batch(pa.RecordBatch.from_pydict(columns, SCHEMA))
            file.flush()
            # The mapping remains valid after the file is closed.
            self._table = pa.ipc.open_stream(pa.memory_map(f"/proc/self/fd/{file.fileno()}")).read_all()

    @property
    def table(self) -> pa.Table:
        """The columns `prompt_ids`, `chosen_ids` and `rejected_ids`, as TRL's trainer expects them."""
        return self._table.select(list(IDS))

    def __len__(self) -> int:
        return len(self._table)

    def at(self, index: int) -> EncodedPair:
        return EncodedPair(**{name: self._table.column(name)[index].as_py() for name in SCHEMA.names})


def as_dataset_row(pair: EncodedPair) -> dict[str, Any]:
    """A row of TRL's dataset."""
    return {name: getattr(pair, name) for name in IDS}


def fingerprint_of(pairs: Iterable[Mapping[str, Any]], rest: Mapping[str, Any]) -> str:
    """Equals `sha256_of_json({**rest, "pairs": [*pairs]})`, without having all pairs in memory."""
    digest, first = sha256(), True
    before, after = json.dumps({**rest, "pairs": []}, sort_keys=True, default=str).split('"pairs": []')
    digest.update(f'{before}"pairs": ['.encode())
    for pair in pairs:
        digest.update(f"{'' if first else ', '}{json.dumps(pair, sort_keys=True, default=str)}".encode())
        first = False
    digest.update(f"]{after}".encode())
    return digest.hexdigest()
