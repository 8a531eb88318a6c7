"""Measure the relevance of a set's pairs, batch by batch, with the base model."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path

from engine.core.config import Stage3Config
from engine.core.events import Event, Message, Progress
from engine.machine.memory import free_memory
from engine.models.loading import load_base, load_tokenizer
from engine.pairs.data.record import Pair
from engine.pairs.relevance.cache import (
    KnownMeasures,
    MeasuredReply,
    append_relevance,
    key_of_reply,
    read_relevance,
    with_measures,
)
from engine.pairs.relevance.measure import Answer, RelevanceMeter, ReplyMeasures
from engine.run.stop import StopToken
from engine.storage.lazy import Mapped

PAIRS_PER_BATCH = 32


MeasuredBatch = tuple[int, list[MeasuredReply]]
"""How many pairs it had, and what was measured: nothing for an empty revision."""
MeasureBatches = Callable[[Sequence[Sequence[Pair]]], Iterator[Event | MeasuredBatch]]
"""Measures batches of pairs, in their order. Raises Stopped between batches."""


@contextmanager
def in_this_process(load: Callable[[], RelevanceMeter], model: str, stop: StopToken) -> Iterator[MeasureBatches]:
    """The model in the memory of this process, which is given back at the end."""
    meter = [load()]

    def measure(batches: Sequence[Sequence[Pair]]) -> Iterator[Event | MeasuredBatch]:
        for batch in batches:
            stop.raise_if_requested()
            yield len(batch), measured_batch(meter[0], model, batch)

    try:
        yield measure
    finally:
        meter.clear()
        free_memory()


def measured_batch(meter: RelevanceMeter, model: str, batch: Sequence[Pair]) -> list[MeasuredReply]:
    found = meter.measure([Answer(pair.messages, pair.revised_response) for pair in batch])
    keys = [key_of_reply(pair.messages, pair.revised_response) for pair in batch]
    return [
        MeasuredReply(pair.id, model, key, round(one.relevance, 4), round(one.surprise, 4))
        for pair, key, one in zip(batch, keys, found, strict=True)
        if one is not None
    ]


def measure_pairs(
    pairs: Sequence[Pair], path: Path, model: str, load: Callable[[], AbstractContextManager[MeasureBatches]]
) -> Generator[Event, None, dict[str, ReplyMeasures]]:
    """The relevance of each pair's revision, by key. Missing values are measured and added to `path`.

    model   the name of the measuring model
    load    loads it for as long as something is left to measure; not called if nothing is

    Raises DiskError, and as `MeasureBatches`.
    """
    known = read_relevance(path, model)
    missing = {
        key: (sum(len(message["content"]) for message in pair.messages), number)
        for number, pair in enumerate(pairs)
        if (key := key_of_reply(pair.messages, pair.revised_response)) not in known
    }
    """Length of the conversation, and the pair's number: the texts stay on the disk."""
    if not missing:
        return known
    yield Message("info", f"Measuring how much {len(missing)} revisions depend on their prompts, with the base model.")
    by_length = array("Q", (missing[key][1] for key in sorted(missing, key=lambda key: (missing[key][0], key))))
    starts = range(0, len(by_length), PAIRS_PER_BATCH)
    batches = Mapped(starts, lambda start: [pairs[number] for number in by_length[start : start + PAIRS_PER_BATCH]])
    with load() as measure_batches:
        started, done = time.monotonic(), 0
        for told in measure_batches(batches):
            if isinstance(told, Event):
                yield told
                continue
            count, measured = told
            append_relevance(path, measured)
            known.update({reply.key: reply.measures for reply in measured})
            done += count
            rate = done / max(time.monotonic() - started, 1e-9)
            yield Progress(done, len(by_length), "revisions read", rate, (len(by_length) - done) / rate, "relevance")
    return known


def measure_relevance(
    config: Stage3Config,
    usable: Sequence[Pair],
    path: Path,
    token: str | None,
    stop: StopToken,
    elsewhere: Callable[[], AbstractContextManager[MeasureBatches]] | None = None,
) -> Generator[Event, None, KnownMeasures]:
    """Measure the pairs that are usable by their text; the others are out anyway.

    elsewhere   loads the base model into other processes
    """

    def load() -> RelevanceMeter:
        return RelevanceMeter(load_base(config, token), load_tokenizer(config, token))

    def here() -> AbstractContextManager[MeasureBatches]:
        return in_this_process(load, config.base_model_id, stop)

    return (yield from measure_pairs(usable, path, config.base_model_id, elsewhere or here))


def measure_stream(
    pairs: Iterable[tuple[int, Pair]], meter: RelevanceMeter, known: dict[str, ReplyMeasures]
) -> Iterator[tuple[int, Pair]]:
    """Yield (line, pair with the relevance of its revision) in order, in constant memory.

    known   known values; new ones are added to it
    """
    lines = iter(pairs)
    while batch := list(islice(lines, PAIRS_PER_BATCH)):
        missing = {
            key: pair for _, pair in batch if (key := key_of_reply(pair.messages, pair.revised_response)) not in known
        }
        found = meter.measure([Answer(pair.messages, pair.revised_response) for pair in missing.values()])
        known.update({key: one for key, one in zip(missing, found, strict=True) if one is not None})
        yield from ((line, with_measures(pair, known)) for line, pair in batch)
