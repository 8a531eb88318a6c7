"""Stage 7: make a pair from each prompt with `--method`. Each record is on disk before it is counted."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace

from engine.core import layout
from engine.core.events import Event, Message, StageStale
from engine.machine.memory import free_memory
from engine.models.adapters.source import adapter_folder
from engine.models.backend import load_backend
from engine.models.templates.option import template_key
from engine.pairs.assessment.outlook import Outlook, require_reachable
from engine.pairs.formats.folders import hash_of_files
from engine.pairs.formats.run_pairs import require_whole_lines
from engine.pairs.generation.generate import (
    RUN_SET,
    GenerationInputs,
    InterimCheck,
    OpenSet,
    RecordIndex,
    generate_pairs,
    generate_until,
    is_complete,
    require_acknowledged,
    reuse_records,
    set_aside_outdated,
    torn_line_warning,
)
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.in_processes import KIND, reuse_earlier_records
from engine.pairs.generation.methods import check_method, needs_judge, record_maker, sequentially
from engine.pairs.generation.prompts import Prompt, read_prompts
from engine.pairs.generation.settings import GenerationSettings
from engine.pairs.generation.superseded import carry_decisions
from engine.pairs.judges.base import judge_name
from engine.pairs.judges.examined_judge import ExaminedJudge
from engine.pairs.principles.constitution import DEFAULT_PATH
from engine.run.results import PairsResult
from engine.stages.base import Context, StageEnd, StageRun
from engine.stages.import_pairs import import_pairs
from engine.stages.load_judge import judge_loader, ordering_judge, policy_of
from engine.stages.pair_processes import pair_process_count, pair_workers
from engine.storage.files import sha256_of_file
from engine.storage.jsonl import JsonlAppender
from engine.workers.rows import remove_shares

IDS_SHOWN = 5


READ_AS = {
    "chat_template": template_key,
    "constitution": lambda config: sha256_of_file(config.constitution or DEFAULT_PATH),
    "few_shot": lambda config: sha256_of_file(config.few_shot) if config.few_shot else None,
    "pairs": lambda config: hash_of_files(config.pairs),
    "server_url": lambda config: config.server_url is not None,
    "server_model": lambda config: config.server_model if config.server_url else None,
    "critic_url": lambda config: config.critic_url is not None,
    "critic_model": lambda config: config.critic_model if config.critic_url else None,
    "num_drafts": lambda config: config.num_drafts if config.method == "best-of-n" else None,
    "judge": lambda config: judge_name(config) if needs_judge(config) else None,
}


def run(context: Context) -> StageRun:
    config = context.config
    if config.pairs is not None:
        imported = yield from import_pairs(context, config.pairs.expanduser())
        yield from _carry_decisions(context)
        return imported
    check_method(config)
    examined = yield from ordering_judge(context)
    settings = GenerationSettings.of(config if examined is None else examined.config)
    found = read_prompts(config, context.token_text)
    prompts = found.prompts
    yield from found.bad.messages(config.dataset)
    if config.target_pairs is None and len(prompts) < config.num_examples:
        yield Message(
            "warning",
            f"{config.dataset} ({found.split}) has {len(prompts)} distinct prompts, not "
            f"{config.num_examples}: making pairs from those.",
        )
    identity = RecordIdentity.of(config, settings, context.run.results)
    require_whole_lines(context.run / layout.PAIRS_JSONL)
    why = set_aside_outdated(context.run, RUN_SET, prompts, identity, config.max_failed_share)
    if why:
        yield StageStale("pairs", why.partition(";")[0])
        yield Message("info", f"{why[0].upper()}{why[1:]}.")
    with JsonlAppender(context.run / layout.PAIRS_JSONL) as appender:
        yield from torn_line_warning(appender)
        open_set = OpenSet(context.run, RUN_SET, appender, RecordIndex.read(context.run / layout.PAIRS_JSONL))
        recorded = open_set.recorded
        taken_over = yield from reuse_records(open_set, prompts, identity, context.stop)
        if recorded.total:
            yield Message("info", f"Reusing {recorded.total} of {len(prompts)} records.")
        tokens = 0
        if not is_complete(prompts, recorded, config.target_pairs):
            tokens = yield from _generate_missing(context, prompts, settings, examined, identity, open_set)
    require_acknowledged(context.run / layout.PAIRS_JSONL, prompts, recorded, config.target_pairs)
    remove_shares(context.run, KIND)
    yield from _carry_decisions(context)
    if config.target_pairs and recorded.ok < config.target_pairs:
        yield Message(
            "warning",
            f"All {len(prompts)} prompts of {config.dataset} ({found.split}) are used up, and gave {recorded.ok} usable pairs, "
            f"not {config.target_pairs}: the run continues with those.",
        )
    return StageEnd(
        f"{recorded.ok} usable of {recorded.total} prompts ({recorded.ok / max(recorded.total, 1):.0%})",
        PairsResult(
            pairs_sha256=sha256_of_file(context.run / layout.PAIRS_JSONL),
            records=recorded.total,
            ok=recorded.ok,
            taken_over=taken_over,
            split=found.split,
            generated_tokens=tokens,
        ),
    )


def _interim_check(context: Context, prompts: int | None) -> InterimCheck:
    """A check after each batch: continue only while the gate can still open, or if a person accepts that it cannot."""
    outlook = Outlook(context.config, prompts)

    def check(recorded: RecordIndex) -> None:
        require_reachable(
            outlook.estimates(recorded.ok, recorded.attempted, recorded.too_long, recorded.left_out()),
            context.config,
            what=f"After {recorded.total} prompts, the gate can no longer open",
            why="The remaining pairs would be like these, and the gate would refuse them. Nothing that was made is lost.",
            pairs_path=str(context.run / layout.PAIRS_JSONL),
        )

    return check


def _generate_missing(
    context: Context,
    prompts: list[Prompt],
    settings: GenerationSettings,
    examined: ExaminedJudge | None,
    identity: RecordIdentity,
    open_set: OpenSet,
) -> Generator[Event, None, int]:
    """Make the missing records; returns the number of generated tokens."""
    judging = context if examined is None else replace(context, config=examined.config)
    processes = pair_process_count(context.config, "none" if examined is None else judging.config.judge)
    if processes > 1:
        return (yield from _generate_in_processes(context, judging, prompts, settings, identity, open_set, processes))
    yield Message("info", _source_of_texts(context))
    backend = load_backend(
        context.config,
        adapter_folder(context.config, context.run, context.token_text),
        context.stop,
        context.token_text,
        context.emit,
    )
    for note in backend.check(settings.sampling):
        yield Message("warning", note)
    judge = None if examined is None else examined.judge(judge_loader(context), policy_of(backend))
    make = sequentially(record_maker(backend, settings, judge, context.stop))
    make = reuse_earlier_records(make, context.run, identity)
    yield from _generate(
        context, prompts, GenerationInputs(context.config, backend, settings, make, identity, context.stop), open_set
    )
    for note in backend.warnings():
        yield Message("warning", note)
    tokens = backend.tokens
    del backend, judge, make
    free_memory()
    return tokens


def _generate_in_processes(
    context: Context,
    judging: Context,
    prompts: list[Prompt],
    settings: GenerationSettings,
    identity: RecordIdentity,
    open_set: OpenSet,
    processes: int,
) -> Generator[Event, None, int]:
    yield Message(
        "info",
        f"Loading {context.config.base_model_id} with the Stage 2 adapter in {processes} processes; the log of each is in "
        f"{layout.PROCESSES_DIR}/.",
    )
    missing = sum(prompt.id not in open_set.recorded.ids for prompt in prompts)
    with pair_workers(context, judging, identity, processes, missing) as make:
        inputs = GenerationInputs(context.config, make.models, settings, make, identity, context.stop)
        yield from _generate(context, prompts, inputs, open_set)
    return make.models.tokens


def _generate(context: Context, prompts: list[Prompt], inputs: GenerationInputs, open_set: OpenSet) -> Iterator[Event]:
    target = context.config.target_pairs
    if target:
        return generate_until(prompts, inputs, open_set, target, _interim_check(context, None))
    return generate_pairs(prompts, inputs, open_set, _interim_check(context, len(prompts)))


def _carry_decisions(context: Context) -> Iterator[Event]:
    found = carry_decisions(context.run)
    if found is None:
        return
    if found.carried:
        yield Message("info", f"Kept the decisions about {found.carried} pairs: their texts are unchanged.")
    if found.lost:
        shown = ", ".join(found.lost[:IDS_SHOWN]) + (", …" if len(found.lost) > IDS_SHOWN else "")
        yield Message(
            "warning",
            f"Dropped the decisions about {len(found.lost)} pairs: their texts changed, or they left the set ({shown}). "
            "They are still with the old set in superseded/.",
        )


def _source_of_texts(context: Context) -> str:
    """A sentence about which models write the texts."""
    config = context.config
    critic = (
        f" {config.critic_model} on {' and '.join(config.critic_url)} writes critiques and revisions."
        if config.critic_url
        else ""
    )
    if config.server_url:
        servers, what = " and ".join(config.server_url), "drafts" if critic else "pairs"
        return f"{config.server_model} on {servers} generates the {what}.{critic}"
    return f"Loading {config.base_model_id} with the Stage 2 adapter.{critic}"
