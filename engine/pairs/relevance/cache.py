"""The relevance of a run's pairs, cached in `pairs/relevance.jsonl`. Nothing is measured twice while prompt and revision stay
the same.

The file is append-only and synced. A line is `{id, model, key, nats, surprise}`, where `key` is a hash of the conversation and
the revision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeGuard

from engine.models.chat import Conversation
from engine.pairs.data.record import Pair
from engine.pairs.relevance.measure import ReplyMeasures
from engine.storage.files import sha256_of_json
from engine.storage.jsonl import BadLine, JsonlAppender, read_jsonl

KnownMeasures = Mapping[str, ReplyMeasures]
"""Measures by `MeasuredReply.key`."""


@dataclass(frozen=True)
class MeasuredReply:
    """One line of the file."""

    id: str
    """The id of the pair that was measured."""
    model: str
    key: str
    nats: float
    """The reply's relevance."""
    surprise: float
    """In nats per token."""

    @property
    def measures(self) -> ReplyMeasures:
        return ReplyMeasures(self.nats, self.surprise)


def key_of_reply(conversation: Conversation, reply: str) -> str:
    return sha256_of_json([[[message["role"], message["content"]] for message in conversation], reply])


def with_measures(pair: Pair, known: KnownMeasures) -> Pair:
    """The pair with the base model's measures of its revision, if known."""
    if not known:
        return pair
    measures = known.get(key_of_reply(pair.messages, pair.revised_response))
    relevance, surprise = measures or (None, None)
    return replace(pair, relevance=relevance, surprise=surprise)


def measured_reply(row: Mapping[str, Any] | BadLine) -> MeasuredReply | None:
    """The parsed line; None if it is damaged."""
    if isinstance(row, BadLine):
        return None
    nats, surprise, names = row.get("nats"), row.get("surprise"), [row.get(name) for name in ("id", "model", "key")]
    if not (_is_figure(nats) and _is_figure(surprise)):
        return None
    if not all(isinstance(name, str) for name in names):
        return None
    pair_id, model, key = map(str, names)
    return MeasuredReply(pair_id, model, key, float(nats), float(surprise))


def _is_figure(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def read_relevance(path: Path, model: str | None = None) -> dict[str, ReplyMeasures]:
    """The newest measures of each key; empty if there is no file.

    model   restricts the result to measures by this model
    """
    if not path.is_file():
        return {}
    rows = (measured_reply(row) for _, row in read_jsonl(path))
    return {row.key: row.measures for row in rows if row is not None and model in (None, row.model)}


def append_relevance(path: Path, measured: Sequence[MeasuredReply]) -> None:
    """Append and sync. Raises DiskError."""
    with JsonlAppender(path) as appender:
        for number, reply in enumerate(measured, start=1):
            appender.append(asdict(reply), sync=number == len(measured))
