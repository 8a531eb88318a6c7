"""Stage 8: check every pair, score it if a judge is set; then the gate, the report and the training set.

Scores are not an output of this stage: `pairs/scores.jsonl` stays when it is done again, and only missing ones are added.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.core.errors import DataError, Stage3Error
from engine.core.events import Check, Event, Message
from engine.core.wording import plural
from engine.models.templates.option import template_key
from engine.pairs.assessment.gate import FIGURES_WITHOUT_JUDGE, Figure, Tally, failed, figures, gate_error, report
from engine.pairs.assessment.training_set import assessed_pairs, hold_out, preference_row
from engine.pairs.data.edits import Edits, apply_decision, read_edits, read_settled_edits
from engine.pairs.data.record import Pair
from engine.pairs.formats.indexed_pairs import IndexedPairs
from engine.pairs.formats.run_pairs import damaged_line, run_pairs
from engine.pairs.judges.base import ScorePair, judge_name
from engine.pairs.judges.exam import MIN_LETTER_PROBABILITY
from engine.pairs.judges.examined_judge import ExaminedJudge, examined_judge
from engine.pairs.judges.in_processes import KIND as SCORES
from engine.pairs.judges.scores import JudgeSummary, ScoreCache, comparison_of, key_of
from engine.pairs.relevance.cache import KnownMeasures, with_measures
from engine.pairs.relevance.in_processes import KIND as RELEVANCE
from engine.pairs.relevance.pairs import measure_relevance
from engine.run.folder import Run
from engine.run.results import QualityResult
from engine.stages.base import Context, StageEnd, StageRun
from engine.stages.load_judge import judge_loader
from engine.stages.pair_processes import (
    judge_process_count,
    relevance_process_count,
    relevance_workers,
    scoring_workers,
)
from engine.storage.files import sha256_of_file, write_atomically, write_json
from engine.storage.jsonl import dumps
from engine.workers.rows import remove_shares

NOT_SCORED = ScorePair(None, None)

READ_AS = {
    "chat_template": template_key,
    "judge": lambda config: judge_name(config),
    # Part of the judge's name, if relevant.
    "server_model": lambda config: None,
    "judge_model": lambda config: None,
    "reward_model_id": lambda config: None,
}


def evidence(context: Context) -> dict[str, Any]:
    edits = context.run / layout.EDITS_JSONL
    return {"people's decisions": sha256_of_file(edits) if edits.exists() else None}


def run(context: Context) -> StageRun:
    config, run_ = context.config, context.run
    decisions, edits_bytes = read_settled_edits(run_ / layout.EDITS_JSONL)
    tally, usable = assess_run(run_, decisions)
    measures: KnownMeasures = {}
    if config.relevance and usable:
        workers = partial(relevance_workers, context) if relevance_process_count(config) > 1 else None
        path = run_ / layout.RELEVANCE_JSONL
        measures = yield from measure_relevance(config, usable, path, context.token_text, context.stop, workers)
        remove_shares(run_, RELEVANCE)
        tally, usable = assess_run(run_, decisions, measures=measures)
    yield from count_too_long(context, tally, usable)
    unfixable = [figure.title for figure in failed(figures(tally, config)) if figure.name in FIGURES_WITHOUT_JUDGE]
    skips_judge = bool(unfixable) and config.accept_quality is None
    examined = ExaminedJudge(config) if skips_judge else (yield from _examine_judge(context))
    judgement = None
    if examined.trusted is not None:
        scores, judgement = yield from _score(context, examined, usable)
        tally, usable = assess_run(run_, decisions, scores, measures, config.min_gain)
        yield from count_too_long(context, tally, usable)
    if judgement is not None and "best-of-n" in tally.methods:
        yield Message(
            "info", "A judge chose the best of each prompt's drafts, so finding them improved proves nothing."
        )
    judged = judgement is not None
    all_figures = figures(tally, config, judged=judged)
    for figure in all_figures:
        yield figure_check(figure)
    if not judged:
        yield _why_unjudged(tally, examined, unfixable if skips_judge else [])
    for reason, count in tally.reasons.most_common():
        yield Check(f"left out: {reason}", "skipped", str(count))
    found = None if judgement is None else judgement.as_dict()
    pairs_report = {**report(tally, config, judged=judged), "judge": found, "exams": examined.as_dict()}
    write_json(run_ / layout.PAIRS_REPORT, pairs_report)
    failing = failed(all_figures)
    if failing and config.accept_quality is None:
        raise gate_error(failing)
    if failing:
        yield Message("warning", f"You opened the gate (--accept-quality): {config.accept_quality}")
    train, held_out = hold_out(usable, config.eval_fraction, config.min_eval_pairs)
    if not train or not held_out:
        raise _too_few_pairs(len(usable))
    _write_rows(run_ / layout.TRAIN_JSONL, train)
    _write_rows(run_ / layout.EVAL_JSONL, held_out)
    yield Check("held out", "ok", f"{plural(len(held_out), 'pair')}, split by prompt before training")
    return StageEnd(
        f"{plural(len(train), 'pair')} to train on, {len(held_out)} held out, {tally.made - len(usable)} left out",
        QualityResult(
            train_sha256=sha256_of_file(run_ / layout.TRAIN_JSONL),
            eval_sha256=sha256_of_file(run_ / layout.EVAL_JSONL),
            train=len(train),
            held_out=len(held_out),
            left_out=dict(tally.reasons),
            accepted_for=config.accept_quality if failing else None,
            edits_bytes=edits_bytes,
            judge=pairs_report["judge"],
        ),
    )


def _too_few_pairs(usable: int) -> DataError:
    return DataError(
        f"Too few usable pairs ({usable}) to split into training and held-out sets.",
        "Each set needs at least one: without held-out pairs, the effect of training cannot be measured.",
        "Make more pairs: raise --num-examples.",
    )


def count_too_long(context: Context, tally: Tally, usable: Sequence[Pair]) -> Iterator[Event]:
    """Count the pairs that training will leave out as too long.

    The sets that this stage writes do not depend on it: another --max-length concerns only preflight and training.
    """
    if context.run.results.preflight is None:
        return  # no model has been loaded yet
    from engine.dpo.training.dataset import measure_lengths
    from engine.models.loading import load_tokenizer

    config = context.config
    train, _ = hold_out(usable, config.eval_fraction, config.min_eval_pairs)
    rows = (preference_row(pair) for pair in train)
    try:
        tokenizer = load_tokenizer(config, context.token_text)
        lengths = measure_lengths(rows, tokenizer)  # type: ignore[arg-type]
    except Stage3Error as error:
        yield Message("warning", f"Could not measure the pairs' lengths; training will measure them. {error.what}")
        return
    tally.lengths_measured, tally.too_long = len(lengths), sum(length > config.max_length for length in lengths)


def _why_unjudged(tally: Tally, examined: ExaminedJudge, unfixable: list[str]) -> Message:
    """unfixable   figures that fail whatever a judge would find"""
    if unfixable:
        return Message("info", f"The judge was skipped: no score would improve the {' and the '.join(unfixable)}.")
    own = f" {tally.scored} scores come from the pairs file." if tally.scored else ""
    return Message("info", f"No judge scored these pairs. {examined.why_no_judge}{own}")


def _examine_judge(context: Context) -> Generator[Event, None, ExaminedJudge]:
    return examined_judge(context.config, context.run, judge_loader(context), context.stop)


def _score(
    context: Context, examined: ExaminedJudge, usable: Sequence[Pair]
) -> Generator[Event, None, tuple[ScoreCache, JudgeSummary]]:
    """Score the pairs that would train with a judge that passed its exam, report the summary, and warn of doubtful scores."""
    workers = partial(scoring_workers, context) if judge_process_count(examined.config) > 1 else None
    scores = yield from examined.score(context.run, usable, judge_loader(context), context.stop, workers)
    remove_shares(context.run, SCORES)
    judgement = JudgeSummary.of(judge_name(examined.config) or "", scores)
    unscored = len(usable) - judgement.scored
    yield Check("judge", "warning" if unscored else "ok", judgement.sentence)
    for reason, count in judgement.not_scored.items():
        yield Check(f"not scored: {reason}", "skipped", str(count))
    letters = judgement.on_the_letters
    if letters is not None and letters < MIN_LETTER_PROBABILITY:
        yield Message(
            "warning",
            f"For these pairs, the judge gives A and B a joint probability of only {letters:.1%}, less than in its exam: its "
            "scores mean little.",
        )
    return {key_of(comparison_of(pair)): given for pair, given in zip(usable, scores, strict=True)}, judgement


def assess_run(
    run: Run,
    decisions: Edits | None = None,
    scores: ScoreCache | None = None,
    measures: KnownMeasures | None = None,
    min_gain: float | None = None,
) -> tuple[Tally, Sequence[Pair]]:
    """Tally and usable pairs of a run, after edits; each pair is read when needed. Raises DamagedState for an invalid line.

    decisions    people's decisions; None: those in the file
    scores       a judge's scores of these texts, instead of those in the file
    measures     the measured relevance of the revisions; a missing one was not measured
    min_gain     a pair trains only if its gain by these scores is larger
    """
    pairs_path, edits_path = run / layout.PAIRS_JSONL, run / layout.EDITS_JSONL
    decisions = read_edits(edits_path) if decisions is None else decisions
    if decisions.damaged:
        raise damaged_line(edits_path, decisions.damaged[0], "It may have held a decision about a pair.")

    def scored(pair: Pair) -> Pair:
        pair = with_measures(pair, measures or {})
        if scores is None:
            return pair
        given = scores.get(key_of(comparison_of(pair)), NOT_SCORED)
        return replace(pair, base_score=given.first, revised_score=given.second)

    tally = Tally(min_gain=min_gain)
    made = ((line, with_measures(pair, measures or {})) for line, pair in run_pairs(pairs_path))
    judged = assessed_pairs(made, decisions, tally, scored)
    usable = array("Q", (each.verdict.line for each in judged if each.verdict.usable))

    def as_trained(made: Pair) -> Pair:
        return scored(apply_decision(with_measures(made, measures or {}), decisions.get(made.id)))

    return tally, IndexedPairs(pairs_path, usable, as_trained) if usable else []


def figure_check(figure: Figure) -> Check:
    """A gate figure as a line of the stage's table."""
    status = {True: "ok", None: "skipped", False: "failed" if figure.refuses else "warning"}[figure.passes]
    return Check(figure.title, status, figure.sentence)  # type: ignore[arg-type]


def _write_rows(path: Path, pairs: Iterable[Pair]) -> None:
    write_atomically(path, (f"{dumps(preference_row(pair))}\n".encode("ascii") for pair in pairs))
