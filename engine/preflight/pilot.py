"""The pilot: a few prompts go all the way to judged pairs, before hours are spent on all of them.

Its records are made as stage pairs makes them, which takes them over; its scores are those that stage quality looks up. What the
gate will say of the whole set is estimated with intervals: if a whole interval is on the wrong side of a threshold, it ends
here, after minutes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.core import layout
from engine.core.events import Check, Event, Message, PairFailed, PairMade, PilotDone
from engine.dpo.training.dataset import Row, measure_lengths
from engine.pairs.assessment.gate import Tally
from engine.pairs.assessment.outlook import (
    Estimate,
    improved_estimate,
    relevant_estimate,
    require_hope,
    too_long_estimate,
    usable_estimate,
)
from engine.pairs.assessment.training_set import Judged, judged_pairs, preference_row
from engine.pairs.data.record import Pair
from engine.pairs.formats.reading import read_pairs
from engine.pairs.generation.making import (
    PILOT_SET,
    Maker,
    OpenSet,
    Recorded,
    generate_pairs,
    set_aside_what_no_longer_holds,
    take_over,
    torn_line,
)
from engine.pairs.generation.prompts import Prompt
from engine.pairs.judges.base import LoadJudge, ScorePair
from engine.pairs.judges.examination import ExaminedJudge, examined_judge
from engine.pairs.judges.scores import score_pairs
from engine.pairs.relevance.kept import with_relevance
from engine.pairs.relevance.of_pairs import measure_relevance
from engine.run.context import Context
from engine.storage.files import write_json
from engine.storage.jsonl import BadLine, JsonlAppender

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAIRS_SHOWN = 12
"""In the event, for the screen; `preflight/pairs.jsonl` has all."""
TEXT_SHOWN = 600
"""Characters of each text of them."""


def make_pilot(context: Context, prompts: Sequence[Prompt], maker: Maker) -> Generator[Event, None, list[Pair]]:
    """The pairs of these prompts; what an earlier start or another set made is not made again."""
    why = set_aside_what_no_longer_holds(context, PILOT_SET, prompts, maker.identity)
    if why:
        yield Message("info", f"The pilot is made again: {why}.")
    path = context.run / PILOT_SET.pairs
    with JsonlAppender(path) as appender:
        yield from torn_line(appender)
        open_set = OpenSet(PILOT_SET, appender, Recorded.read(path))
        yield from _without_pairs(take_over(context, open_set, prompts, maker.identity))
        yield from _without_pairs(generate_pairs(context, prompts, maker, open_set))
    return [pair for _, pair in read_pairs(path, last_line_may_lack_newline=False) if not isinstance(pair, BadLine)]


def _without_pairs(events: Iterable[Event]) -> Iterator[Event]:
    """The run counts its pairs by these events, and will tell of the pilot's again when it takes them over."""
    for event in events:
        if not isinstance(event, PairMade | PairFailed):
            yield event


def judge_pilot(
    context: Context, pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, load_judge: LoadJudge
) -> Generator[Event, None, list[Estimate]]:
    """What the pilot says of the whole set, figure by figure; also in `preflight/report.json`."""
    config = context.config
    tally, judged = _found(pairs)
    if config.relevance and any(each.verdict.usable for each in judged):
        known = yield from measure_relevance(context, [each.pair for each in judged if each.verdict.usable])
        tally, judged = _found([with_relevance(pair, known) for pair in pairs])
    usable = [each.pair for each in judged if each.verdict.usable]
    rows: list[Row] = [preference_row(pair) for pair in usable]  # type: ignore[misc]
    too_long = sum(length > config.max_length for length in measure_lengths(rows, tokenizer))
    scores: Mapping[str, ScorePair] = {}
    examined = (yield from examined_judge(context, load_judge)) if usable else ExaminedJudge(context)
    if examined.believed is not None:
        given = yield from score_pairs(examined.context, usable, lambda *_: examined.judge(load_judge))
        examined.release()
        scores = dict(zip((pair.id for pair in usable), given, strict=True))
    outcomes = [score.outcome for score in scores.values() if score.outcome != "not scored"]
    estimates = [
        usable_estimate(tally.usable, tally.made, config),
        *([relevant_estimate(tally.relevant, tally.measured, config)] if tally.measured else []),
        too_long_estimate(too_long, len(usable), config),
        *([improved_estimate(outcomes.count("better"), len(outcomes), config)] if outcomes else []),
    ]
    for estimate in estimates:
        yield Check(f"pilot: {estimate.title}", "failed" if estimate.hopeless else "ok", estimate.sentence)
    for reason, count in tally.reasons.most_common():
        yield Check(f"pilot: left out: {reason}", "skipped", str(count))
    reasons = {each.pair.id: each.verdict.reasons for each in judged}
    shown = tuple(_shown(pair, reasons[pair.id], scores.get(pair.id)) for pair in pairs[:PAIRS_SHOWN])
    figures = tuple(estimate.as_dict() for estimate in estimates)
    told = {"prompts": len(pairs), "method": config.method, "exams": examined.as_dict(), "figures": figures}
    write_json(context.run / layout.PILOT_REPORT, {**told, "left_out": dict(tally.reasons.most_common())})
    yield PilotDone(len(pairs), figures, shown)
    return estimates


def _found(pairs: Sequence[Pair]) -> tuple[Tally, list[Judged]]:
    tally = Tally()
    return tally, list(judged_pairs(enumerate(pairs), {}, tally))


def require_hope_of(context: Context, estimates: Sequence[Estimate]) -> Generator[Event, None, None]:
    """Raises DataError (exit 9) if the pilot leaves no hope that the gate will open."""
    accepted = require_hope(
        estimates,
        context.config,
        what="The pilot leaves no hope that the gate will open",
        why="All the pairs would be made as these were, and training would refuse them.",
        look_at=str(context.run / layout.PILOT_PAIRS),
    )
    if accepted:
        yield Message("warning", accepted)


def _shown(pair: Pair, reasons: Sequence[str], score: ScorePair | None) -> dict[str, Any]:
    return {
        "id": pair.id,
        "prompt": pair.prompt[:TEXT_SHOWN],
        "base_response": pair.base_response[:TEXT_SHOWN],
        "revised_response": pair.revised_response[:TEXT_SHOWN],
        "principle": pair.made_by[-1] if pair.made_by else "",
        "method": pair.method,
        "reasons": list(reasons),
        "outcome": "" if score is None else score.outcome,
    }
