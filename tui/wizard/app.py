"""The wizard: one application for one run. It polls a snapshot and draws it; the engine never waits for the screen."""

from __future__ import annotations

from tui.terminal import textual_env  # noqa: F401

# isort: split

import logging
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.app import SystemCommand
from textual.screen import Screen

from engine.core.errors import ExitCode
from engine.core.layout import RUN_LOG
from engine.core.stage_table import STAGE, STAGES
from engine.run.state import RunState
from engine.security.sanitize import visible_line
from themes.saved import save_theme
from tui.keys import Key, bindings
from tui.runs.run_source import RunDriver, RunSource, WizardEnd
from tui.screens.main import MainScreen
from tui.terminal import sequences
from tui.terminal.driver import WizardDriver
from tui.wizard.notifications import Notifications
from tui.wizard.palette import commands
from tui.wizard.shutdown import REQUESTED_HERE, Shutdown
from tui.wizard.suspend import Suspend
from tui.wizard.themed_app import ThemedApp

if TYPE_CHECKING:
    from textual.types import CSSPathType

    from engine.core.config import Stage3Config
    from engine.security.secrets import Secret
    from tui.app_protocol import WizardApp

PRODUCING_STAGES = STAGES[STAGES.index("adapter") :]
"""The stages that produce something; the earlier ones only check this machine."""
POLL_SECONDS = 0.15
MIN_ROWS_FOR_NOTICES = 30
"""With fewer rows, only the newest notice is shown."""
SCREENS = Path(__file__).parents[1] / "screens"

log = logging.getLogger(__name__)


def run_wizard(source: RunSource) -> tuple[WizardEnd, int]:
    """Show `source` on this terminal until the user or the terminal ends it; returns how it ended, and the exit code.
    The run may continue: see WizardEnd.
    """
    return run_until_exit(Wizard(source))


def run_until_exit(wizard: Wizard) -> tuple[WizardEnd, int]:
    """`run_wizard` for an existing application."""
    source = wizard.source
    source.open()
    try:
        wizard.run(mouse=source.config.mouse)
    except Exception:
        log.exception("the screen failed")
        wizard.crashed = wizard.crashed or "The screen failed."
    finally:
        source.close()
    if wizard.crashed:
        outcome = "The run continues without it." if source.running and not source.read_only else "Nothing is lost."
        print(f"{wizard.crashed} {outcome} The traceback is in {source.run / RUN_LOG}.", file=sys.__stderr__)
        end = WizardEnd.LEFT_RUNNING if source.running and not source.read_only else WizardEnd.CRASHED
        return end, int(ExitCode.BUG)
    return wizard.return_value or WizardEnd.FINISHED, wizard.return_code or 0


class Wizard(ThemedApp[WizardEnd], inherit_bindings=False):
    TITLE = "stage3-tui"
    CSS_PATH: ClassVar[CSSPathType | None] = [
        SCREENS / f"{name}.tcss" for name in ("base", "main", "credentials", "pairs", "training", "dialogs")
    ]
    BINDINGS = bindings("app")
    COMMAND_PALETTE_BINDING = "ctrl+k"
    ENABLE_COMMAND_PALETTE = True
    NOTIFICATION_TIMEOUT = 6

    def __init__(self, source: RunSource) -> None:
        super().__init__(source.config)
        self.source = source
        self.shown_state = source.snapshot()
        """The state shown on the screen."""
        self.crashed = ""
        """The error that ended the screen, as a sentence; empty if none did."""
        self.shutdown, self.suspension, self.notifications = Shutdown(self), Suspend(self), Notifications(self)
        self._drawn: tuple[object, ...] | None = None
        """The inputs of the last drawing."""

    # -- start and end ------------------------------------------------------------------------------------------------

    def get_default_screen(self) -> Screen[None]:
        return MainScreen(self.source, first_stage(self.shown_state))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The commands of the command palette."""
        return commands(self)

    def on_mount(self) -> None:
        self.apply_first_theme()
        for problem in self.theme_problems:
            self.notify_user(problem, "warning")
        if not self.is_headless:
            self.shutdown.install_signal_handlers()
            self.write_sequence(sequences.PUSH_TITLE)
        self.call_after_refresh(self.tick)
        self.set_interval(POLL_SECONDS, self.tick)

    def on_unmount(self) -> None:
        self.write_sequence(sequences.POP_TITLE)

    @property
    def main(self) -> MainScreen:
        return cast(MainScreen, self.screen_stack[0])

    @property
    def stage_on_screen(self) -> str:
        return self.main.selected

    def write_sequence(self, sequence: str) -> None:
        if self._driver is not None and not self.is_headless:
            self._driver.write(sequence)  # Textual has no public way to send a sequence of one's own

    @property
    def terminal_driver(self) -> WizardDriver | None:
        """The driver of a real terminal; None without one."""
        return self._driver if isinstance(self._driver, WizardDriver) else None

    @property
    def run_driver(self) -> RunDriver | None:
        """The run, if this process can start it; None if it is only watched."""
        return None if self.source.read_only else cast(RunDriver, self.source)

    # -- drawing ------------------------------------------------------------------------------------------------------

    def tick_soon(self) -> None:
        self.call_later(self.tick)

    async def tick(self) -> None:
        """Poll the run, and draw what changed."""
        if not self.screen_stack:  # a last tick while the app ends
            return
        state, now, running = self.source.snapshot(), self.source.now(), self.source.running
        if self.shutdown.exit_if_finished(running):
            return
        self.shown_state = state
        self._repaint_if_outdated()
        await self._draw(state, running, now)
        self.notifications.update(state, running)

    async def _draw(self, state: RunState, running: bool, now: float) -> None:
        """Draw if something changed; on most ticks nothing has."""
        main = self.main
        depends_on = (
            state,
            int(now) if running else int(now / 5),
            main.selected,
            main.view,
            main.view and main.view.page,
            main.following,
            main.places(),
            self.status_note,
            self.size,
            self.source.config,
        )
        if self._drawn is not None and all(
            old is new or old == new for old, new in zip(self._drawn, depends_on, strict=True)
        ):
            return
        with self.batch_update():
            complete = await main.draw(state, self.status_note, now)
        self._drawn = depends_on if complete else None

    def _repaint_if_outdated(self) -> None:
        """Redraw the whole screen after the terminal stalled or belonged to the shell."""
        driver = self.terminal_driver
        if driver is not None and driver.needs_redraw and driver.is_reading:
            driver.needs_redraw = False
            self.refresh(layout=True)

    @property
    def status_note(self) -> str:
        if self.shutdown.stopping:
            return f"■ {self.shutdown.stopping}"
        if not self.source.read_only:
            return ""
        return "watching, decisions allowed" if self.source.allows_decisions else "watching, read-only"

    def is_key_enabled(self, key: Key) -> bool:
        """Whether a key works now; the footer shows those."""
        running, owned, view = self.source.running, not self.source.read_only, self.main.view
        match key.action:
            case "run_stage" | "run_all":
                return owned and not running
            case "redo":
                return owned and not running and self.shown_state.stages[self.main.selected].status != "waiting"
            case "stop":
                return running and not self.shutdown.stopping and not self.source.hands_off
            case "follow":
                return running and not self.main.following
            case "options":
                return view is not None and view.OPTIONS in view.pages and view.page != view.OPTIONS
            case "log_scale" if not self.main.query("#gradient") or not self.main.query_one("#gradient").display:
                return False
            case "zoom" | "smooth" | "log_scale" | "export":
                return (
                    view is not None
                    and view.page == getattr(view, "CURVES", None)
                    and bool(self.shown_state.train_steps)
                )
            case "answer(1)" | "filter_answers":
                return (
                    view is not None
                    and view.page == getattr(view, "VERDICT", None)
                    and bool(self.shown_state.evaluation)
                )
            case "rest" | "search":
                return view is not None and view.page == view.OPTIONS
            case "presets":
                return owned and not running and view is not None and view.page == getattr(view, "START", None)
            case "log_in":
                return owned and not running and self.main.selected == "credentials"
            case "browse":
                return self.shown_state.pairs_made > 0 and (view is None or view.page != getattr(view, "PAIRS", None))
            case "default":
                return owned
        return (
            self.source.allows_decisions
            if key.place == "pairs" and key.label not in ("filter", "sort", "next ✗")
            else True
        )

    # -- the engine ---------------------------------------------------------------------------------------------------

    def action_run_stage(self) -> None:
        self._show_plan_then_start(self.main.selected)

    def action_run_all(self) -> None:
        self._show_plan_then_start(STAGES[-1])

    def action_plan(self) -> None:
        if self._may_start():
            self._open_plan(STAGES[-1])

    def _show_plan_then_start(self, until: str) -> None:
        """Start a new run at once; for an existing one, first show what will be reused and what will be done again."""
        names = PRODUCING_STAGES[: max(STAGES.index(until) - STAGES.index(PRODUCING_STAGES[0]) + 1, 0)]
        if any(self.shown_state.stages[name].status in ("done", "skipped") for name in names) and self._may_start():
            self._open_plan(until)
        else:
            self._start(until=until)

    def _open_plan(self, until: str) -> None:
        from tui.screens.plan import PlanWindow

        def answered(start: bool | None) -> None:
            if start:
                self._start(until=until)

        self.push_screen(PlanWindow(lambda: cast(RunDriver, self.source).plan(until), may_start=True), answered)

    def action_redo(self) -> None:
        from tui.screens.dialogs import Answer, Question

        stage = self.main.selected
        if not self._may_start():
            return
        text = "This stage and all later ones will be done again. Their files move to superseded/; nothing is deleted."
        answers = (
            Answer("y", "do it again", "only this stage; then press a for the later ones"),
            Answer("b", "cancel", "change nothing"),
        )

        def answered(answer: str | None) -> None:
            if answer == "y":
                self._start(until=stage, redo_from=stage)

        self.push_screen(Question(f"Do {STAGE[stage].title} again?", text, answers), answered)

    def action_stop(self) -> None:
        if not self.source.running:
            self.notify_user("Not running.")
        else:
            self.shutdown.stop(REQUESTED_HERE)

    def _may_start(self) -> bool:
        driver = self.run_driver
        if driver is None:
            self.notify_user("Another process owns this run: you can only watch it or ask it to stop.")
        elif driver.running:
            self.notify_user("The run is already active; s stops it.")
        return driver is not None and not driver.running

    def _start(self, *, until: str = STAGES[-1], redo_from: str | None = None) -> None:
        if self._may_start():
            cast(RunDriver, self.source).start(until=until, redo_from=redo_from)
            self.main.follow()

    def use_config(self, config: Stage3Config) -> None:
        """Change the options from the next start on."""
        driver = self.run_driver
        if driver is not None:
            driver.set_config(config)
            if driver.running:
                self.notify_user("Applies from the next start; the current run keeps its settings.")
            self.tick_soon()

    def choose_preset(self) -> None:
        from engine.pipeline.presets import presets
        from tui.screens.dialogs import Answer, Question

        if not self._may_start():
            return
        offered = {one.key: one for one in presets(self.source.config)}
        answers = tuple(Answer(one.key, one.name, one.sentence) for one in offered.values())

        def answered(key: str | None) -> None:
            if key is not None:
                self.use_config(offered[key].config)

        text = "This sets every option except the run folder."
        self.push_screen(Question("Which settings do you want to start from?", text, answers), answered)

    def use_token(self, token: Secret) -> None:
        """Pass the token to the engine, and check it."""
        driver = self.run_driver
        if driver is not None:
            driver.set_token(token)
            if driver.running:
                self.notify_user("The token applies from the next start.")
            else:
                self._start(until="credentials")

    def log_in(self) -> None:
        """Get a token by browser login: stage credentials shows an address and a code."""
        if self._may_start():
            self.use_config(self.source.config.model_copy(update={"device_login": True}))
            self._start(until="credentials")

    # -- leaving ------------------------------------------------------------------------------------------------------

    def action_leave(self) -> None:
        self.shutdown.confirm_quit()

    async def action_quit(self) -> None:
        self.shutdown.confirm_quit()

    def action_suspend(self) -> None:
        self.suspension.suspend()

    # -- dialogs ------------------------------------------------------------------------------------------------------

    def action_log(self) -> None:
        from tui.screens.log import LogScreen

        def left(stage: str | None) -> None:
            if stage is not None:
                self.call_later(self.main.select_stage, stage)

        self.push_screen(LogScreen(self.source), left)

    def action_help(self) -> None:
        from tui.screens.dialogs import Help

        self.push_screen(Help(self.main.places()))

    def action_themes(self) -> None:
        from tui.screens.themes import ThemePicker

        def chosen(name: str | None) -> None:
            if name is not None:
                self.keep_theme(name)

        self.push_screen(ThemePicker(self.theme_names, self.theme), chosen)

    async def action_back(self) -> None:
        """Esc: leave a field, a part of the page, or a list."""
        view = self.main.view
        if view is None or not view.step_back():
            self.screen.set_focus(None)

    # -- for screens and the command palette --------------------------------------------------------------------------

    @property
    def theme_names(self) -> list[str]:
        return list(self.themes_found)

    def use_theme(self, name: str) -> None:
        if name not in self.themes_found:
            self.notify_user(f"Unknown theme {name!r}. Themes: {', '.join(self.themes_found)}.", "warning")
        super().use_theme(name)

    def keep_theme(self, name: str) -> None:
        """Use a theme now, and save it for the next start."""
        self.use_theme(name)
        if self.source.hands_off:
            return
        try:
            save_theme(name)
        except (OSError, RuntimeError) as error:
            self.notify_user(
                f"Theme {name} applies only now: it could not be saved ({error}). Next time, pass --theme {name}.",
                "warning",
            )
        else:
            self.notify_user(f"Theme {name}, saved for the next start.")

    def copy(self, text: str, what: str) -> None:
        """Copy to the terminal's clipboard (OSC 52). It gives no confirmation, so also write a file."""
        self.copy_to_clipboard(text)
        where = ""
        if not self.source.read_only:
            with suppress(OSError):  # the clipboard has it anyway
                where = f" Also saved in {sequences.saved_copy(self.source.run.folder, text)}."
        self.notify_user(f"Copied {what} to the terminal's clipboard.{where}")

    def copy_folder(self) -> None:
        self.copy(str(self.source.run.folder), "the run folder's path")

    def save_screenshot_file(self) -> None:
        if self.source.hands_off:
            self.notify_user("This screen is read-only and writes no files.")
            return
        folder = self.source.run / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = self.save_screenshot(f"screen-{time.strftime('%Y%m%d-%H%M%S')}.svg", str(folder))
        except OSError as error:
            self.notify_user(f"Cannot save the screenshot: {error}", "error")
        else:
            self.notify_user(f"Saved as {path}.")

    def on_notify(self) -> None:
        """Runs before a notice is shown (Textual's own handler comes after this one)."""
        if self.size.height < MIN_ROWS_FOR_NOTICES:
            self.clear_notifications()  # a second notice would hide the screen that they are about

    def notify_user(self, text: str, severity: Any = "information") -> None:
        """Show a notice for a few seconds; never parsed as markup."""
        self.notify(visible_line(text, 400), severity=severity, markup=False)

    # -- when the screen itself fails ---------------------------------------------------------------------------------

    def _fatal_error(self) -> None:
        """Log the error: Textual would print the traceback with all local variables, which may include a token."""
        error = sys.exc_info()[1] or self._exception
        log.error("the screen failed", exc_info=error)
        self.crashed = f"The screen failed: {type(error).__name__}."
        self._close_messages_no_wait()


def first_stage(state: RunState) -> str:
    """The stage to show first: the running one, else the first unfinished one, else the last."""
    if state.current is not None:
        return state.current.name
    return state.next_stage or STAGES[-1]


if TYPE_CHECKING:

    def _implements_the_protocol(wizard: Wizard) -> WizardApp:
        return wizard


__all__ = ["Wizard", "WizardEnd", "run_wizard"]
