"""Measure the relevance of a set's pairs, batch by batch, with the base model."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
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

PAIRS_PER_BATCH = 32


def measure_pairs(
    pairs: Sequence[Pair], path: Path, model: str, load: Callable[[], RelevanceMeter], stop: StopToken
) -> Generator[Event, None, dict[str, ReplyMeasures]]:
    """The relevance of each pair's revision, by key. Missing values are measured and added to `path`.

    model   the name of the measuring model
    load    loads it; called only if something is left to measure

    Raises Stopped between batches, and DiskError.
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
    meter, started, done = load(), time.monotonic(), 0
    by_length = sorted(missing, key=lambda key: (missing[key][0], key))
    for start in range(0, len(by_length), PAIRS_PER_BATCH):
        stop.raise_if_requested()
        batch = by_length[start : start + PAIRS_PER_BATCH]
        read = [pairs[missing[key][1]] for key in batch]
        found = meter.measure([Answer(pair.messages, pair.revised_response) for pair in read])
        measured = [
            MeasuredReply(pair.id, model, key, round(one.relevance, 4), round(one.surprise, 4))
            for pair, key, one in zip(read, batch, found, strict=True)
            if one is not None
        ]
        append_relevance(path, measured)
        known.update({reply.key: reply.measures for reply in measured})
        done += len(batch)
        rate = done / max(time.monotonic() - started, 1e-9)
        yield Progress(done, len(by_length), "revisions read", rate, (len(by_length) - done) / rate, "relevance")
    return known


def measure_relevance(
    config: Stage3Config, usable: Sequence[Pair], path: Path, token: str | None, stop: StopToken
) -> Generator[Event, None, KnownMeasures]:
    """Measure the pairs that are usable by their text; the others are out anyway."""

    def load() -> RelevanceMeter:
        return RelevanceMeter(load_base(config, token), load_tokenizer(config, token))

    found = yield from measure_pairs(usable, path, config.base_model_id, load, stop)
    free_memory()
    return found


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
