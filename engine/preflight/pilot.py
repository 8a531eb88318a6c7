"""The pilot: take a few prompts all the way to judged pairs before spending hours on the full set.

Stage pairs reuses the pilot's records, and stage quality its scores. The gate's figures are estimated with intervals. If an
entire interval is on the wrong side of a threshold, the run ends here, after minutes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.events import Check, Event, Message, PairFailed, PairMade, PilotDone
from engine.dpo.training.dataset import Row, measure_lengths
from engine.pairs.assessment.gate import Tally
from engine.pairs.assessment.outlook import (
    Estimate,
    improved_estimate,
    relevant_estimate,
    require_reachable,
    too_long_estimate,
    usable_estimate,
)
from engine.pairs.assessment.training_set import AssessedPair, assessed_pairs, preference_row
from engine.pairs.data.record import Pair
from engine.pairs.formats.reading import read_pairs
from engine.pairs.generation.generate import (
    PILOT_SET,
    GenerationInputs,
    OpenSet,
    RecordIndex,
    generate_pairs,
    reuse_records,
    set_aside_outdated,
    torn_line_warning,
)
from engine.pairs.generation.prompts import Prompt
from engine.pairs.judges.base import LoadJudge, ScorePair
from engine.pairs.judges.examined_judge import ExaminedJudge, examined_judge
from engine.pairs.relevance.cache import with_measures
from engine.pairs.relevance.pairs import measure_relevance
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.storage.files import write_json
from engine.storage.jsonl import BadLine, JsonlAppender

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAIRS_SHOWN = 12
"""Pairs in the event, for the screen; `preflight/pairs.jsonl` has all of them."""
TEXT_SHOWN = 600
"""Characters shown of each text."""


def make_pilot(run: Run, prompts: Sequence[Prompt], inputs: GenerationInputs) -> Generator[Event, None, list[Pair]]:
    """Generate the pairs of these prompts, reusing records of earlier starts and of other sets."""
    why = set_aside_outdated(run, PILOT_SET, prompts, inputs.identity, inputs.config.max_failed_share)
    if why:
        yield Message("info", f"The pilot is made again: {why}.")
    path = run / PILOT_SET.pairs
    with JsonlAppender(path) as appender:
        yield from torn_line_warning(appender)
        open_set = OpenSet(run, PILOT_SET, appender, RecordIndex.read(path))
        yield from _without_pairs(reuse_records(open_set, prompts, inputs.identity, inputs.stop))
        yield from _without_pairs(generate_pairs(prompts, inputs, open_set))
    return [pair for _, pair in read_pairs(path, last_line_may_lack_newline=False) if not isinstance(pair, BadLine)]


def _without_pairs(events: Iterable[Event]) -> Iterator[Event]:
    """Drop pair events: the run counts its pairs by them, and stage pairs emits the pilot's when it reuses them."""
    for event in events:
        if not isinstance(event, PairMade | PairFailed):
            yield event


def judge_pilot(
    config: Stage3Config,
    run: Run,
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerBase,
    load_judge: LoadJudge,
    stop: StopToken,
    token: str | None = None,
) -> Generator[Event, None, list[Estimate]]:
    """The pilot's estimates for the whole set, also written to `preflight/report.json`."""
    tally, assessed = _assess(pairs)
    if config.relevance and any(each.verdict.usable for each in assessed):
        measurable = [each.pair for each in assessed if each.verdict.usable]
        path = run / layout.RELEVANCE_JSONL
        measures = yield from measure_relevance(config, measurable, path, token, stop)
        tally, assessed = _assess([with_measures(pair, measures) for pair in pairs])
    usable = [each.pair for each in assessed if each.verdict.usable]
    rows: list[Row] = [preference_row(pair) for pair in usable]  # type: ignore[misc]
    too_long = sum(length > config.max_length for length in measure_lengths(rows, tokenizer))
    scores: Mapping[str, ScorePair] = {}
    examined = ExaminedJudge(config)
    if usable:
        examined = yield from examined_judge(config, run, load_judge, stop)
    if examined.trusted is not None:
        score_list = yield from examined.score(run, usable, load_judge, stop)
        scores = dict(zip((pair.id for pair in usable), score_list, strict=True))
    outcomes = [score.outcome for score in scores.values() if score.outcome != "not scored"]
    estimates = [
        usable_estimate(tally.usable, tally.made, config, left_out=tally.reasons.most_common()),
        *([relevant_estimate(tally.relevant, tally.measured, config)] if tally.measured else []),
        too_long_estimate(too_long, len(usable), config),
        *([improved_estimate(outcomes.count("better"), len(outcomes), config)] if outcomes else []),
    ]
    for estimate in estimates:
        yield Check(f"pilot: {estimate.title}", "failed" if estimate.hopeless else "ok", estimate.sentence)
    for reason, count in tally.reasons.most_common():
        yield Check(f"pilot: left out: {reason}", "skipped", str(count))
    reasons = {each.pair.id: each.verdict.reasons for each in assessed}
    shown = tuple(_shown(pair, reasons[pair.id], scores.get(pair.id)) for pair in pairs[:PAIRS_SHOWN])
    figures = tuple(estimate.as_dict() for estimate in estimates)
    report = {"prompts": len(pairs), "method": config.method, "exams": examined.as_dict(), "figures": figures}
    write_json(run / layout.PILOT_REPORT, {**report, "left_out": dict(tally.reasons.most_common())})
    yield PilotDone(len(pairs), figures, shown)
    return estimates


def _assess(pairs: Sequence[Pair]) -> tuple[Tally, list[AssessedPair]]:
    tally = Tally()
    return tally, list(assessed_pairs(enumerate(pairs), {}, tally))


def require_promising_pilot(
    estimates: Sequence[Estimate], config: Stage3Config, pairs: Path
) -> Generator[Event, None, None]:
    """Raise DataError (exit code 9) if the pilot's figures put the gate out of reach.

    pairs   the file with the pilot's pairs, which the error names
    """
    accepted = require_reachable(
        estimates,
        config,
        what="The pilot shows that the gate cannot open",
        why="All other pairs would be made in the same way, and training would refuse them.",
        pairs_path=str(pairs),
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
