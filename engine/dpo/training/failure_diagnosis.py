"""Why training workers failed: which one failed first, and the last lines of its log."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import Stage3Error, error_from_exit_code
from engine.core.reading import open_file
from engine.dpo.planning.plan import TrainingPlan, reduce_after_oom
from engine.dpo.training.checkpoints import by_step, step_of
from engine.dpo.training.launcher import launcher_log
from engine.dpo.training.worker_messages import Failure, rank_log
from engine.process.kill import describe_exit
from engine.run.folder import Run
from engine.security.sanitize import visible_line
from engine.workers.pool import LOG_CHARACTERS, LOG_LINES

LAST_BYTES = 1 << 14
_EXIT = re.compile(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s*:\s*(-?\d+)")
"""A worker's exit code in the launcher's report."""
_TIMED_OUT = re.compile(r"collective operation timeout|timed out waiting", re.IGNORECASE)


@dataclass(frozen=True)
class FailureDiagnosis:
    """Finds the worker whose failure brought down the others."""

    run: Run
    config: Stage3Config
    plan: TrainingPlan
    failures: Sequence[Failure]
    report: str
    """The launcher's output."""
    step: int
    """The last step that any worker reported."""

    def error(self) -> Stage3Error:
        """The error that a worker reported, a restart with a smaller plan if memory ran out, else one that names the worker."""
        for failure in self.failures:
            if failure.reason == "memory":
                return reduce_after_oom(self.run, self.config, self.plan, step=self.step, error=failure.what)
            if failure.reason == "error":
                return error_from_exit_code(failure.exit_code, failure.what, failure.why, failure.what_to_do)
        exits = {int(rank): int(code) for rank, code in _EXIT.findall(self.report)}
        lost = {failure.rank for failure in self.failures if failure.reason == "lost"}
        timed_out = {failure.rank for failure in self.failures if _TIMED_OUT.search(failure.what)}
        timed_out |= {rank for rank in exits if _TIMED_OUT.search("\n".join(self._last_lines(rank)))}
        suspects = sorted(set(range(self.plan.processes)) - timed_out - lost)
        if timed_out and suspects:
            return self._error(suspects[0], "did not respond, and the others timed out")
        exited = sorted((_order(exits[rank]), rank) for rank in suspects if rank in exits)
        bug = next((failure for failure in self.failures if failure.reason == "bug"), None)
        if bug is not None and (not exited or exited[0][0]):
            return self._error(bug.rank, f"failed: {visible_line(bug.what, LOG_CHARACTERS)}")
        if exited:
            rank = exited[0][1]
            return self._error(rank, f"ended {describe_exit(exits[rank])}")
        on_other_machines = [rank for rank in suspects if rank not in exits]
        if lost and on_other_machines:
            return self._error(on_other_machines[0], "ended, or its machine went down")
        if self.failures:
            failure = self.failures[0]
            return self._error(
                failure.rank, f"lost the connection to the others: {visible_line(failure.what, LOG_CHARACTERS)}"
            )
        return self._error(None, "ended before training was complete")

    def _error(self, rank: int | None, what: str) -> Stage3Error:
        processes = f"the {self.plan.processes} training processes"
        who = processes if rank is None else f"rank {rank} of {processes}"
        log = launcher_log(0) if rank is None else f"{layout.PROCESSES_DIR}/{rank_log(self.run, rank).name}"
        end = " / ".join(self._last_lines(rank)) or "(empty)"
        saved = max(map(step_of, by_step(self.run / layout.CHECKPOINTS_DIR)), default=None)
        resumes = "starts from the beginning" if saved is None else f"continues from the checkpoint of step {saved}"
        return Stage3Error(
            f"After step {self.step}, {who} {what}.",
            f"The last lines of {log}: {end}",
            f"Run the same command again: training {resumes}. It may use another --num-processes.",
        )

    def _last_lines(self, rank: int | None) -> list[str]:
        """The end of a worker's log; of the launcher's output if the worker has none."""
        log = None if rank is None else rank_log(self.run, rank)
        text = _end_of(log) if log is not None and log.is_file() else self.report
        return [visible_line(line, LOG_CHARACTERS) for line in text.splitlines() if line.strip()][-LOG_LINES:]


def _order(code: int) -> int:
    """Deaths by signal come first; SIGTERM comes last, because the launcher sends it to the other workers."""
    return 2 if code in (-signal.SIGTERM, 0) else int(code > 0)


def _end_of(log: Path) -> str:
    with open_file(log) as file:
        file.seek(max(log.stat().st_size - LAST_BYTES, 0))
        return file.read().decode("utf-8", errors="replace")
