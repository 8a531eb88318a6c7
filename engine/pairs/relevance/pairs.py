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
"""(number of pairs, measures); empty revisions have no measures."""
MeasureBatches = Callable[[Sequence[Sequence[Pair]]], Iterator[Event | MeasuredBatch]]
"""Measures batches of pairs, in order. Raises Stopped between batches."""


@contextmanager
def in_this_process(load: Callable[[], RelevanceMeter], model: str, stop: StopToken) -> Iterator[MeasureBatches]:
    """The model in the memory of this process, which is freed at the end."""
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
    results = meter.measure([Answer(pair.messages, pair.revised_response) for pair in batch])
    keys = [key_of_reply(pair.messages, pair.revised_response) for pair in batch]
    return [
        MeasuredReply(pair.id, model, key, round(measures.relevance, 4), round(measures.surprise, 4))
        for pair, key, measures in zip(batch, keys, results, strict=True)
        if measures is not None
    ]


def measure_pairs(
    pairs: Sequence[Pair], path: Path, model: str, load: Callable[[], AbstractContextManager[MeasureBatches]]
) -> Generator[Event, None, dict[str, ReplyMeasures]]:
    """The relevance of each pair's revision, by key. Missing values are measured and added to `path`.

    model   the name of the measuring model
    load    loads the model while something is left to measure; not called if nothing is

    Raises DiskError, and what `MeasureBatches` raises.
    """
    known = read_relevance(path, model)
    missing = {
        key: (sum(len(message["content"]) for message in pair.messages), number)
        for number, pair in enumerate(pairs)
        if (key := key_of_reply(pair.messages, pair.revised_response)) not in known
    }
    """(length of the conversation, number of the pair) by key; the texts stay on disk."""
    if not missing:
        return known
    yield Message(
        "info", f"Measuring with the base model how much revisions depend on their prompts ({len(missing)} to measure)."
    )
    by_length = array("Q", (missing[key][1] for key in sorted(missing, key=lambda key: (missing[key][0], key))))
    starts = range(0, len(by_length), PAIRS_PER_BATCH)
    batches = Mapped(starts, lambda start: [pairs[number] for number in by_length[start : start + PAIRS_PER_BATCH]])
    with load() as measure_batches:
        started, done = time.monotonic(), 0
        for item in measure_batches(batches):
            if isinstance(item, Event):
                yield item
                continue
            count, measured = item
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
    load_in_workers: Callable[[], AbstractContextManager[MeasureBatches]] | None = None,
) -> Generator[Event, None, KnownMeasures]:
    """Measure the pairs that are usable by their texts. The others are left out anyway.

    load_in_workers   loads the base model into worker processes
    """

    def load() -> RelevanceMeter:
        return RelevanceMeter(load_base(config, token), load_tokenizer(config, token))

    def load_here() -> AbstractContextManager[MeasureBatches]:
        return in_this_process(load, config.base_model_id, stop)

    return (yield from measure_pairs(usable, path, config.base_model_id, load_in_workers or load_here))


def measure_stream(
    pairs: Iterable[tuple[int, Pair]], meter: RelevanceMeter, known: dict[str, ReplyMeasures]
) -> Iterator[tuple[int, Pair]]:
    """Yield (line, pair with its revision's relevance) in order. Holds one batch of pairs in memory.

    known   measures by key; new ones are added
    """
    lines = iter(pairs)
    while batch := list(islice(lines, PAIRS_PER_BATCH)):
        missing = {
            key: pair for _, pair in batch if (key := key_of_reply(pair.messages, pair.revised_response)) not in known
        }
        results = meter.measure([Answer(pair.messages, pair.revised_response) for pair in missing.values()])
        known.update({key: measures for key, measures in zip(missing, results, strict=True) if measures is not None})
        yield from ((line, with_measures(pair, known)) for line, pair in batch)
