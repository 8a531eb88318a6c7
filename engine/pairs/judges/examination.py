"""Every judge is examined before it is believed: the exam is taken once, kept by what judges, and if it is not passed the
judge's scores count nowhere.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import AccessError, ConfigError, DiskError, NetworkError, NumbersError, PreconditionError
from engine.core.events import Check, Event, Message
from engine.hub import cached_snapshot, is_offline
from engine.hub.references import is_local, local_path
from engine.hub.run_requirements import hub_requirements
from engine.machine.memory import free_memory
from engine.models.loading import dtype_name, resolve_dtype
from engine.models.server.roles import judge_server
from engine.models.templates.given import template_key
from engine.pairs.judges.base import Judge, LoadedPolicy, LoadJudge, judge_name
from engine.pairs.judges.exam import BringsOwnExam, ExamResult, shipped_exam, take_exam
from engine.pairs.judges.question import QUESTION
from engine.run.context import Context
from engine.run.results import Results
from engine.storage.files import sha256_of_file, sha256_of_json
from engine.storage.keyed_cache import KeyedCache


@dataclass
class ExaminedJudge:
    """Who judges a run, after the exam."""

    context: Context
    """The run's, with the judge that is believed as its `--judge`; with "none" if none is."""
    exams: tuple[ExamResult, ...] = ()
    """All that were taken, the believed judge's last."""
    absent: tuple[str, ...] = ()
    """Of --judge auto: candidates that could not be examined, each with its reason."""
    _loaded: Judge | None = None

    @property
    def believed(self) -> ExamResult | None:
        """The exam of the judge whose scores count."""
        return self.exams[-1] if self.exams and self.exams[-1].passed else None

    @property
    def why_none(self) -> str:
        """Why no judge's scores count, in one sentence; empty if one's do."""
        if self.believed is not None:
            return ""
        why = [*self.absent, *(f"{exam.judge} {exam.sentence}" for exam in self.exams)]
        return f"No judge that can judge: {'; '.join(why)}." if why else "No judge is set (--judge)."

    def judge(self, load_judge: LoadJudge, policy: LoadedPolicy | None = None) -> Judge | None:
        """The believed judge, loaded if it is not yet; None if there is none. It is handed over once: who takes it
        lets go of its memory."""
        if self.believed is None:
            return None
        loaded, self._loaded = self._loaded, None
        return loaded or load_judge(self.context, policy)

    def release(self) -> None:
        """Let go of a judge that nobody took."""
        self._loaded = None
        free_memory()

    def as_dict(self) -> list[dict[str, Any]]:
        """The exams, for a report."""
        return [exam.as_dict() for exam in self.exams]


def examined_judge(
    context: Context, load_judge: LoadJudge, policy: LoadedPolicy | None = None
) -> Generator[Event, None, ExaminedJudge]:
    """The judge of `--judge` after its exam, which is read from the cache of the run if this judge took it before; of
    --judge auto the first candidate that passes.

    policy   the Stage 2 policy, if it is in memory

    Raises Stopped, and what loading and asking the judge raise.
    """
    found = ExaminedJudge(with_judge(context, "none"))
    for candidate in candidates(context):
        asked = with_judge(context, candidate)
        try:
            result, judge = yield from _exam(asked, load_judge, policy)
        except MAY_BE_ABSENT as error:
            if context.config.judge != "auto" or candidate == "server":  # somebody asked for that one
                raise
            found = replace(found, absent=(*found.absent, f"{judge_name(asked.config)} cannot be asked ({error.what})"))
            yield Message("warning", f"{found.absent[-1]}.")
            continue
        yield from told_of(result)
        found = replace(found, exams=(*found.exams, result))
        if result.passed:
            return replace(found, context=asked, _loaded=judge)
        del judge
        free_memory()
    return found


MAY_BE_ABSENT = (AccessError, ConfigError, DiskError, NetworkError, NumbersError, PreconditionError)
"""Errors of a candidate that nobody asked for by name, after which the next one is tried."""


def candidates(context: Context) -> list[str]:
    """Whom to examine, in this order. Of auto: the configured server, the reward model if it is on this machine or may be
    fetched, the policy itself.
    """
    config = context.config
    if config.judge != "auto":
        return [] if config.judge == "none" else [config.judge]
    found = ["server"] if judge_server(config) is not None else []
    return [*found, *(["reward-model"] if reward_model_at_hand(context) else []), "self"]


def reward_model_at_hand(context: Context) -> bool:
    """Whether it is on this machine, or may be fetched: a run that reads nothing from the Hub fetches no judge from there."""
    name = context.config.reward_model_id
    if is_local(name):
        return local_path(name).is_dir()
    if cached_snapshot(name, "model", "main") is not None:
        return True
    return not is_offline() and bool(hub_requirements(context.config, context.run))


def with_judge(context: Context, judge: str) -> Context:
    return replace(context, config=context.config.model_copy(update={"judge": judge}))


def told_of(result: ExamResult) -> list[Event]:
    """An exam in the lines of a stage's table."""
    lines: list[Event] = [Check(f"exam of {result.judge}", "ok" if result.passed else "warning", result.sentence)]
    if result.likings:
        lines.append(Check("it chooses", "ok", result.likings))
    if not result.passed:
        lines.append(
            Message("warning", f"The judge {result.judge} is not believed: {result.why_not}. Its scores count nowhere.")
        )
    return lines


def _exam(
    context: Context, load_judge: LoadJudge, policy: LoadedPolicy | None
) -> Generator[Event, None, tuple[ExamResult, Judge | None]]:
    """The result, and the judge if it was loaded for it."""
    cache, key = KeyedCache(context.cache / layout.EXAMS), exam_key(context.config, context.run.results)
    known = _result_of(cache.read([key]).get(key))
    if known is not None:
        return known, None
    judge = load_judge(context, policy)
    assert judge is not None  # it is not "none"
    result = None
    for told in take_exam(judge, context.stop):
        if isinstance(told, ExamResult):
            result = told
        else:
            yield told
    assert result is not None  # the last that it yields
    if not isinstance(
        judge, BringsOwnExam
    ):  # whose key is not known before it is loaded, and which is taken in a moment
        cache.append({key: result.as_dict()})
    return result, judge


def _result_of(kept: Any) -> ExamResult | None:
    try:
        return None if kept is None else ExamResult.from_dict(kept)
    except TypeError:
        return None  # of another version


# -- what judges ---------------------------------------------------------------------------------------------------------


def exam_key(config: Stage3Config, results: Results) -> str:
    """Under which the exam of `--judge` is kept: a hash of what judges, and of what it is asked."""
    return sha256_of_json([judge_name(config), shipped_exam().key, QUESTION, *_what_judges(config, results)])


def _what_judges(config: Stage3Config, results: Results) -> list[Any]:
    match config.judge:
        case "self":
            return _policy(config, results)
        case "server":
            server = judge_server(config)
            return [] if server is None else [server.url]
        case "reward-model":
            return _files(config.reward_model_id)
        case _:
            return []


def _policy(config: Stage3Config, results: Results) -> list[Any]:
    adapter, preflight = results.adapter, results.preflight
    # Preflight's pilot asks before its own result is there, and what it learnt holds for stage quality.
    dtype = dtype_name(resolve_dtype(config)) if preflight is None else preflight.dtype
    tensors = config.adapter_path if adapter is None else adapter.tensors_sha256
    commit = config.base_model_revision if adapter is None else adapter.base_model_commit
    return [config.base_model_id, commit, tensors, dtype, config.load_in_4bit, template_key(config)]


def _files(model_id: str) -> list[Any]:
    """Of a folder, what is in it; a Hub id stands for itself."""
    if not is_local(model_id):
        return []
    folder: Path = local_path(model_id)
    return [[path.name, sha256_of_file(path)] for path in sorted(folder.glob("*")) if path.is_file()]
