"""Push a finished run, or repeat a failed push, with events and records like those of the stage."""

from __future__ import annotations

from collections.abc import Generator

from engine.core.errors import Stage3Error, Stopped
from engine.core.events import Event, Message, StageFinished, with_stage
from engine.core.stage_table import STAGES
from engine.push.push import PushResult, push
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.security.secrets import Secret

STAGE = STAGES[-1]


def push_finished_run(
    run: Run, repo_id: str, *, token: Secret | None, public: bool, accept_lookalikes: bool, stop: StopToken
) -> Generator[Event, None, PushResult]:
    """Push, and record the result. The caller must hold the run's lock. Raises as `engine.push.push.push`."""
    try:
        pushing = push(run, repo_id, token=token, public=public, accept_lookalikes=accept_lookalikes, stop=stop)
        pushed = yield from with_stage(pushing, STAGE)
    except Stage3Error as error:
        if not isinstance(error, Stopped):
            run.manifest["error"] = {"stage": STAGE, **error.as_dict()}
            run.save()
        yield Message("error", error.what)
        raise
    run.record_stage(STAGE, result={**run.result(STAGE), "pushed": pushed.as_dict()})
    if (run.manifest.get("error") or {}).get("stage") == STAGE:
        run.manifest["error"] = None
    run.save()
    if _only_push_was_missing(run, repo_id):
        run.record_stage(STAGE, status="done", summary=pushed.in_words, error=None)
        yield StageFinished(STAGE, "done", pushed.in_words)
    return pushed


def _only_push_was_missing(run: Run, repo_id: str) -> bool:
    """Whether the stage made its archive and then failed to push to this repository."""
    recorded = run.stage(STAGE)
    same_repo = (recorded.get("depends_on") or {}).get("push_to_hub") == repo_id
    return recorded.get("status") not in (None, "done") and same_repo and "sha256" in recorded.get("result", {})
