"""What a run would do, without doing it: which stages are reused, which are done again and why, and how long it takes.

Reads the run folder and writes nothing. It decides as the pipeline does (`engine.pipeline.graph`), from what an earlier
start recorded; if a stage's inputs will be made again, it names what the decision depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from engine.core.errors import Stage3Error
from engine.core.stage_table import STAGE, STAGES
from engine.dpo.planning.forecast import Forecast, Measurements, forecast
from engine.dpo.planning.plan import TrainingPlan, plan_as_configured
from engine.dpo.planning.process_count import local_processes
from engine.dpo.planning.workload import Workload
from engine.hub.run_requirements import at_recorded_commits
from engine.pairs.generation.cost import expected_prompts
from engine.pairs.generation.methods import is_generated_locally
from engine.pipeline.graph import changes, evidence_of, load_stage
from engine.run.context import Context

REDONE = "--from"
UNFINISHED = {
    "running": "it was interrupted",
    "stopped": "it stopped",
    "failed": "it failed",
    "refused": "it was refused",
}
Action = Literal["every time", "reused", "new", "goes on", "again", "open", "unknown"]


@dataclass(frozen=True)
class PlannedStage:
    name: str
    action: Action
    """`open`: reused if the stages before it give the same results. `unknown`: depends on what running it finds."""
    why: str = ""
    seconds: float | None = None
    """From preflight's forecast, else from the last time it ran; None if unknown."""

    @property
    def action_text(self) -> str:
        """The action as people read it."""
        return "continues" if self.action == "goes on" else self.action

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def planned_stages(context: Context, *, until: str = STAGES[-1], redo_from: str | None = None) -> list[PlannedStage]:
    """The stages up to `until`, as `run_pipeline` with the same arguments would treat them."""
    context = replace(context, config=at_recorded_commits(context.config, context.run))
    names = STAGES[: STAGES.index(until) + 1]
    redone = set() if redo_from is None else set(STAGES[STAGES.index(redo_from) :])
    planned: list[PlannedStage] = []
    open_results: dict[str, str] = {}
    for name in names:
        stage = _plan_stage(context, name, name in redone, open_results)
        open_results |= _results_left_open(stage, context)
        planned.append(stage)
    return [_with_forecast(context, stage) for stage in planned]


def _plan_stage(context: Context, name: str, redone: bool, open_results: Mapping[str, str]) -> PlannedStage:
    recorded = context.run.stage(name)
    if STAGE[name].always_runs:
        return PlannedStage(name, "every time", "checks this machine")
    if redone and recorded:
        return PlannedStage(name, "again", REDONE)
    try:
        evidence = evidence_of(context, name)
    except (Stage3Error, OSError) as error:
        return PlannedStage(name, "unknown", str(error))
    if evidence is None:
        return PlannedStage(name, "every time", "the token is in memory only")
    if not recorded:
        return PlannedStage(name, "new")
    found = changes(name, recorded.get("depends_on") or {}, evidence)
    awaited = list(dict.fromkeys(open_results[key] for key in STAGE[name].inputs if key in open_results))
    own = [change for change in found if change.key not in open_results]
    if own:
        return PlannedStage(name, "again", "; ".join(map(str, own)))
    if recorded.get("status") not in ("done", "skipped"):
        return PlannedStage(name, "goes on", UNFINISHED.get(str(recorded.get("status")), "it did not finish"))
    if awaited:
        return PlannedStage(name, "open", f"reused if unchanged: {_listed(awaited)}")
    return PlannedStage(name, "reused", str(recorded.get("summary", "")))


def _results_left_open(stage: PlannedStage, context: Context) -> dict[str, str]:
    """Names and titles of the stage's results that later stages depend on and that are unknown until it has run."""
    if stage.action in ("reused", "every time"):
        return {}
    inputs = {key: called for spec in STAGE.values() for key, called in spec.inputs.items()}
    mine = {key: called for key, called in inputs.items() if key.partition(".")[0] == stage.name}
    settled = _settled_results(stage.name, context)
    return {key: called for key, called in mine.items() if key.partition(".")[2] not in settled}


def _settled_results(name: str, context: Context) -> set[str]:
    """The fields of a stage's result that stay the same, whatever it finds this time."""
    stage, recorded = load_stage(name), context.run.stage(name)
    evidence = evidence_of(context, name) if recorded.get("result") else None
    if evidence is None:
        return set()
    changed = {change.key for change in changes(name, recorded.get("depends_on") or {}, evidence)}
    depends = getattr(stage, "FIELDS_DEPEND_ON", {})
    return {field for field, keys in depends.items() if not changed & set(keys)}


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# -- how long it takes -------------------------------------------------------------------------------------------------


def _with_forecast(context: Context, stage: PlannedStage) -> PlannedStage:
    if stage.action == "reused":
        return replace(stage, seconds=0.0)
    if stage.name == "pairs":
        return _pairs_counted(context, stage)
    if stage.name == "training" and (expected := run_forecast(context, _pairs_in_the_run(context))):
        return replace(stage, seconds=expected.seconds_training + expected.seconds_evaluation)
    last = context.run.stage(stage.name).get("seconds")
    return replace(stage, seconds=last if isinstance(last, (int, float)) else None)


def _pairs_counted(context: Context, stage: PlannedStage) -> PlannedStage:
    """How many records exist, how many an earlier set has, and how many must be made."""
    from engine.pairs.generation.inventory import take_inventory

    if context.config.pairs is not None:
        imported = f"imports {context.config.pairs.name}; nothing is generated"
        return replace(stage, why="; ".join(part for part in (stage.why, imported) if part), seconds=0.0)
    try:
        found = take_inventory(context.config, context.run, context.token_text, from_scratch=stage.why == REDONE)
    except (Stage3Error, OSError):
        return stage  # the prompts or the adapter cannot be read yet
    why = ", ".join(part for part in (stage.why if stage.action == "again" else "", found.summary) if part)
    if not found.missing:
        return replace(stage, why=why, seconds=0.0)
    expected = run_forecast(context, found.missing)
    return replace(stage, why=why, seconds=None if expected is None else expected.seconds_pairs)


def _pairs_in_the_run(context: Context) -> int:
    """The imported pairs, if any; else as many as will be made."""
    pairs = context.run.results.pairs
    imported = context.config.pairs is not None and pairs is not None and pairs.imported is not None
    return pairs.records if imported and pairs is not None else expected_prompts(context.config)


def run_forecast(context: Context, pairs: int) -> Forecast | None:
    """The forecast for this configuration from preflight's measurements; None before a preflight, or after another version's."""
    preflight, config = context.run.results.preflight, context.config
    if preflight is None or not preflight.measured:
        return None
    known = {f.name for f in fields(Measurements)}
    try:
        measured = Measurements(**{key: value for key, value in preflight.measured.items() if key in known})
    except TypeError:
        return None
    plan = TrainingPlan.from_dict(preflight.plan) or plan_as_configured(config, preflight.dtype)
    here = local_processes(config, plan.processes)
    return forecast(
        measured,
        Workload.of(config, pairs, measured.usable_share, _split(context)),
        plan,
        pair_processes=here if is_generated_locally(config) else 1,
        evaluation_processes=here,
        share_device=preflight.machine.get("device_type") != "cuda",
    )


def _split(context: Context) -> tuple[int, int] | None:
    """The sizes of the training set and the held-out one, once stage quality has written them."""
    quality = context.run.results.quality
    return None if quality is None else (quality.train, quality.held_out)
