"""Examine a judge before trusting it. Results are cached under everything that affects the judge. The scores of a judge that
failed are never used.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
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
from engine.models.templates.option import template_key
from engine.pairs.data.record import Pair
from engine.pairs.judges.base import Judge, LoadedPolicy, LoadJudge, ScorePair, judge_name
from engine.pairs.judges.exam import BringsOwnExam, ExamResult, shipped_exam, take_exam
from engine.pairs.judges.question import QUESTION
from engine.pairs.judges.scores import ScoreBatches, in_this_process, score_pairs
from engine.run.folder import Run
from engine.run.results import Results
from engine.run.stop import StopToken
from engine.storage.files import sha256_of_file, sha256_of_json
from engine.storage.keyed_cache import KeyedCache


@dataclass
class ExaminedJudge:
    """The judge of a run, after its exam."""

    config: Stage3Config
    """The run's configuration, with `--judge` set to the judge that passed, or to "none"."""
    exams: tuple[ExamResult, ...] = ()
    """All exams taken; the last is that of the judge that passed."""
    unavailable: tuple[str, ...] = ()
    """With --judge auto: the candidates that could not be examined, each with the reason."""
    _loaded: Judge | None = None

    @property
    def trusted(self) -> ExamResult | None:
        """The exam of the judge that passed; None if none did."""
        return self.exams[-1] if self.exams and self.exams[-1].passed else None

    @property
    def why_no_judge(self) -> str:
        """Why no judge is used, in one sentence; empty if one passed."""
        if self.trusted is not None:
            return ""
        reasons = [*self.unavailable, *(f"{exam.judge} {exam.sentence}" for exam in self.exams)]
        return f"No judge passed its exam: {'; '.join(reasons)}." if reasons else "No judge is set (--judge)."

    def judge(self, load_judge: LoadJudge, policy: LoadedPolicy | None = None) -> Judge | None:
        """The judge that passed, loaded if necessary; None if none passed. The caller owns it and must free its memory."""
        if self.trusted is None:
            return None
        loaded, self._loaded = self._loaded, None
        return loaded or load_judge(self.config, policy)

    def score(
        self,
        run: Run,
        pairs: Sequence[Pair],
        load_judge: LoadJudge,
        stop: StopToken,
        load_in_workers: Callable[[Stage3Config], AbstractContextManager[ScoreBatches]] | None = None,
    ) -> Generator[Event, None, list[ScorePair]]:
        """The scores of the pairs by the judge that passed, cached in the run folder. Raises what `score_pairs` raises.

        load_in_workers   loads the judge of a configuration into worker processes
        """
        name = judge_name(self.config) or ""

        def load() -> Judge:
            judge = self.judge(load_judge)
            assert judge is not None  # one passed
            return judge

        def loaded() -> AbstractContextManager[ScoreBatches]:
            if load_in_workers is None:
                return in_this_process(load, stop)
            self.release()
            return load_in_workers(self.config)

        scores = yield from score_pairs(run / layout.SCORES_JSONL, pairs, name, loaded)
        self.release()
        return scores

    def release(self) -> None:
        """Free the memory of a judge that was loaded and not taken with `judge`."""
        self._loaded = None
        free_memory()

    def as_dict(self) -> list[dict[str, Any]]:
        """The exams, for the report."""
        return [exam.as_dict() for exam in self.exams]


def examined_judge(
    config: Stage3Config, run: Run, load_judge: LoadJudge, stop: StopToken, policy: LoadedPolicy | None = None
) -> Generator[Event, None, ExaminedJudge]:
    """Examine the judge of `--judge`, or read its result from the run's cache. With --judge auto, take the first candidate that
    passes.

    policy   the Stage 2 policy, if it is already in memory

    Raises Stopped, and what loading and asking the judge raise.
    """
    examined = ExaminedJudge(with_judge(config, "none"))
    for candidate in candidates(config, run):
        candidate_config = with_judge(config, candidate)
        try:
            result, judge = yield from _exam(candidate_config, run, load_judge, stop, policy)
        except UNAVAILABLE_ERRORS as error:
            if config.judge != "auto" or candidate == "server":  # the user configured this judge
                raise
            reason = f"{judge_name(candidate_config)} is not available ({error.what})"
            examined = replace(examined, unavailable=(*examined.unavailable, reason))
            yield Message("warning", f"{reason}.")
            continue
        yield from exam_events(result)
        examined = replace(examined, exams=(*examined.exams, result))
        if result.passed:
            return replace(examined, config=candidate_config, _loaded=judge)
        del judge
        free_memory()
    return examined


UNAVAILABLE_ERRORS = (AccessError, ConfigError, DiskError, NetworkError, NumbersError, PreconditionError)
"""Errors after which --judge auto tries the next candidate."""


def candidates(config: Stage3Config, run: Run) -> list[str]:
    """The judges to examine, in order. For auto: the configured server, the reward model if it is on this machine or can be
    downloaded, and the policy itself.
    """
    if config.judge != "auto":
        return [] if config.judge == "none" else [config.judge]
    servers = ["server"] if judge_server(config) is not None else []
    return [*servers, *(["reward-model"] if reward_model_available(config, run) else []), "self"]


def reward_model_available(config: Stage3Config, run: Run) -> bool:
    """Whether the reward model is on this machine or may be downloaded. A run that needs nothing else from the Hub does not
    download a judge.
    """
    name = config.reward_model_id
    if is_local(name):
        return local_path(name).is_dir()
    if cached_snapshot(name, "model", "main") is not None:
        return True
    return not is_offline() and bool(hub_requirements(config, run))


def with_judge(config: Stage3Config, judge: str) -> Stage3Config:
    return config.model_copy(update={"judge": judge})


def exam_events(result: ExamResult) -> list[Event]:
    """The events that report an exam result."""
    events: list[Event] = [Check(f"exam of {result.judge}", "ok" if result.passed else "warning", result.sentence)]
    if result.biases:
        events.append(Check("it prefers", "ok", result.biases))
    if not result.passed:
        events.append(
            Message("warning", f"The judge {result.judge} failed its exam: {result.why_not}. Its scores are not used.")
        )
    return events


def _exam(
    config: Stage3Config, run: Run, load_judge: LoadJudge, stop: StopToken, policy: LoadedPolicy | None
) -> Generator[Event, None, tuple[ExamResult, Judge | None]]:
    """(result, the judge if it had to be loaded)."""
    cache, key = KeyedCache(run.cache / layout.EXAMS), exam_key(config, run.results)
    cached = _cached_result(cache.read([key]).get(key))
    if cached is not None:
        return cached, None
    judge = load_judge(config, policy)
    assert judge is not None  # `--judge` is not "none"
    result = None
    for item in take_exam(judge, stop):
        if isinstance(item, ExamResult):
            result = item
        else:
            yield item
    assert result is not None  # take_exam yields it last
    if not isinstance(
        judge, BringsOwnExam
    ):  # such an exam is short, and its key is not known before the judge is loaded
        cache.append({key: result.as_dict()})
    return result, judge


def _cached_result(entry: Any) -> ExamResult | None:
    try:
        return None if entry is None else ExamResult.from_dict(entry)
    except TypeError:
        return None  # written by another version


# -- cache keys ---------------------------------------------------------------------------------------------------------


def exam_key(config: Stage3Config, results: Results) -> str:
    """The cache key of `--judge`'s exam: a hash of the judge and of what it is asked."""
    return sha256_of_json([judge_name(config), shipped_exam().key, QUESTION, *_judge_identity(config, results)])


def _judge_identity(config: Stage3Config, results: Results) -> list[Any]:
    match config.judge:
        case "self":
            return _policy_identity(config, results)
        case "server":
            server = judge_server(config)
            return [] if server is None else list(server.urls)
        case "reward-model":
            return _file_hashes(config.reward_model_id)
        case _:
            return []


def _policy_identity(config: Stage3Config, results: Results) -> list[Any]:
    adapter, preflight = results.adapter, results.preflight
    # Preflight's pilot examines the judge before preflight has a result. Stage quality must compute the same key.
    dtype = dtype_name(resolve_dtype(config)) if preflight is None else preflight.dtype
    tensors = config.adapter_path if adapter is None else adapter.tensors_sha256
    commit = config.base_model_revision if adapter is None else adapter.base_model_commit
    return [config.base_model_id, commit, tensors, dtype, config.load_in_4bit, template_key(config)]


def _file_hashes(model_id: str) -> list[Any]:
    """The hashes of a local folder's files; empty for a Hub id, which is part of the key already."""
    if not is_local(model_id):
        return []
    folder: Path = local_path(model_id)
    return [[path.name, sha256_of_file(path)] for path in sorted(folder.glob("*")) if path.is_file()]
