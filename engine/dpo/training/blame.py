"""Why processes that train together ended: which one went first, and the end of its log."""

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
from engine.dpo.training.voice import Failure, rank_log
from engine.process.kill import describe_exit
from engine.run.folder import Run
from engine.security.sanitize import visible_line
from engine.workers.pool import LOG_CHARACTERS, LOG_LINES

LAST_BYTES = 1 << 14
_DEATH = re.compile(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s*:\s*(-?\d+)")
"""In the launcher's report."""
_WAITED_IN_VAIN = re.compile(r"collective operation timeout|timed out waiting", re.IGNORECASE)


@dataclass(frozen=True)
class Blame:
    """Finds the process whose end made the others end, too."""

    run: Run
    config: Stage3Config
    plan: TrainingPlan
    failures: Sequence[Failure]
    report: str
    """What the launcher wrote."""
    step: int
    """The last one that was told of."""

    def error(self) -> Stage3Error:
        """The error that a process told, of memory a smaller plan, else one that names the process."""
        for failure in self.failures:
            if failure.reason == "memory":
                return reduce_after_oom(self.run, self.config, self.plan, step=self.step, error=failure.what)
            if failure.reason == "error":
                return error_from_exit_code(failure.exit_code, failure.what, failure.why, failure.what_to_do)
        deaths = {int(rank): int(code) for rank, code in _DEATH.findall(self.report)}
        lost = {failure.rank for failure in self.failures if failure.reason == "lost"}
        waited = {failure.rank for failure in self.failures if _WAITED_IN_VAIN.search(failure.what)}
        waited |= {rank for rank in deaths if _WAITED_IN_VAIN.search("\n".join(self._log_end(rank)))}
        silent = sorted(set(range(self.plan.processes)) - waited - lost)
        if waited and silent:
            return self._error(silent[0], "did not answer, and the others waited for it in vain")
        ended = sorted((_order(deaths[rank]), rank) for rank in silent if rank in deaths)
        bug = next((failure for failure in self.failures if failure.reason == "bug"), None)
        if bug is not None and (not ended or ended[0][0]):
            return self._error(bug.rank, f"broke: {visible_line(bug.what, LOG_CHARACTERS)}")
        if ended:
            rank = ended[0][1]
            return self._error(rank, f"ended {describe_exit(deaths[rank])}")
        elsewhere = [rank for rank in silent if rank not in deaths]
        if lost and elsewhere:
            return self._error(elsewhere[0], "ended, or its machine did")
        if self.failures:
            failure = self.failures[0]
            return self._error(failure.rank, f"lost the others: {visible_line(failure.what, LOG_CHARACTERS)}")
        return self._error(None, "did not come to the end")

    def _error(self, rank: int | None, what: str) -> Stage3Error:
        who = (
            f"Process {rank} of the {self.plan.processes}"
            if rank is not None
            else f"The {self.plan.processes} processes"
        )
        log = launcher_log(0) if rank is None else f"{layout.PROCESSES_DIR}/{rank_log(self.run, rank).name}"
        end = " / ".join(self._log_end(rank)) or "nothing"
        saved = max(map(step_of, by_step(self.run / layout.CHECKPOINTS_DIR)), default=None)
        goes_on = "starts the training again" if saved is None else f"continues from the checkpoint of step {saved}"
        return Stage3Error(
            f"{who} that train {what}, after step {self.step}.",
            f"The end of {log}: {end}",
            f"The same command {goes_on}, also with another --num-processes.",
        )

    def _log_end(self, rank: int | None) -> list[str]:
        """Of a process that came to no log, what the launcher wrote."""
        log = None if rank is None else rank_log(self.run, rank)
        text = _end_of(log) if log is not None and log.is_file() else self.report
        return [visible_line(line, LOG_CHARACTERS) for line in text.splitlines() if line.strip()][-LOG_LINES:]


def _order(code: int) -> int:
    """A signal comes first; the launcher ends the others with SIGTERM."""
    return 2 if code in (-signal.SIGTERM, 0) else int(code > 0)


def _end_of(log: Path) -> str:
    with open_file(log) as file:
        file.seek(max(log.stat().st_size - LAST_BYTES, 0))
        return file.read().decode("utf-8", errors="replace")
