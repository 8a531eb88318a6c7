"""The wizard's source of state: a run of this process (`tui.runs.runner`) or of another (`tui.runs.watcher`)."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from engine.core.errors import ExitCode
from engine.run.state import RunState, StageState

if TYPE_CHECKING:
    from engine.core.config import Stage3Config
    from engine.pipeline.plan import PlannedStage
    from engine.run.folder import Run
    from engine.security.secrets import Secret


class WizardEnd(Enum):
    """How the screen ended."""

    FINISHED = "finished"
    """The user quit, and nothing was running."""
    LEFT_RUNNING = "left running"
    """The run continues: the user chose that, the terminal is gone, or the screen crashed."""
    STOPPED = "stopped"
    """A stop was requested. The engine may still be saving: join it, unless `at_once` was requested."""
    HUNG_UP = "hung up"
    """The terminal is gone, and nothing was running."""
    CRASHED = "crashed"
    """The screen crashed, and nothing was running; the error was printed."""
    RESTARTS = "restarts"
    """The run and the screen continue in a fresh process."""


class RunSource(Protocol):
    """A run, for the screen. Nothing here blocks."""

    read_only: bool
    """This process does not own the run: it can watch it, and ask it to stop."""
    hands_off: bool
    """This process may not even ask the run to stop, and writes nothing: another person watches, in a browser."""
    allows_decisions: bool
    """Whether decisions about pairs can be made here."""
    run: Run
    config: Stage3Config

    @property
    def token(self) -> Secret | None:
        """The token in use, if this process has one."""

    @property
    def may_query_hub(self) -> bool:
        """Whether the screen may ask the Hub about the names in the options before a run starts."""

    @property
    def running(self) -> bool: ...

    @property
    def exit_code(self) -> ExitCode | None: ...

    def open(self) -> None:
        """The screen is ready and will poll."""

    def close(self) -> None:
        """The screen is gone. The run continues."""

    def snapshot(self) -> RunState:
        """The newest state; the same object while nothing changes."""

    def now(self) -> float:
        """The time on the clock of the run's process, to compare with the times in the state."""

    def stop(self, reason: str, exit_code: ExitCode = ExitCode.TERMINATED) -> None:
        """Ask the run to finish its step, save and stop. Returns at once."""


class RunDriver(RunSource, Protocol):
    """A run that this process owns; `read_only` is False."""

    @property
    def restart_until(self) -> str | None:
        """The last stage for a fresh process to run, if the run must continue in one; else None."""

    def start(self, *, until: str = ..., redo_from: str | None = None) -> None: ...

    def plan(self, until: str) -> list[PlannedStage]:
        """What `start` with the same argument would do. Reads files and perhaps the Hub, so not for the screen's thread."""

    def set_token(self, token: Secret) -> None: ...

    def set_config(self, config: Stage3Config) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...


def as_idle(state: RunState) -> RunState:
    """`state` of a run without a process: a stage that was running is waiting again."""
    if not state.running and state.current is None:
        return state
    stages = {name: _interrupted(stage, state.last_time) for name, stage in state.stages.items()}
    return replace(state, running=False, stages=stages)


def _interrupted(stage: StageState, when: float) -> StageState:
    if stage.status != "running":
        return stage
    return replace(
        stage,
        status="waiting",
        finished=when,
        summary="Interrupted: its process ended. The next start continues from what is on disk.",
    )
