"""The wizard: one application over one run. It polls a snapshot and draws; the engine never waits for it."""

from __future__ import annotations

from tui import before_textual  # noqa: F401

# isort: split

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import on
from textual.app import App, SystemCommand
from textual.css.query import NoMatches
from textual.screen import Screen

from engine.errors import ExitCode, Stage3Error
from engine.names import RUN_LOG, STAGE, STAGES
from engine.state import RunState
from engine.text import visible_line
from themes.loader import DEFAULT, as_textual, default_variables, find_themes
from tui import terminal
from tui.commands import WizardCommands
from tui.keys import Key, bindings, footer_keys
from tui.screens.main import MainScreen
from tui.source import RunDriver, RunSource, WizardEnd
from tui.widgets.pair_browser import PairBrowser
from tui.widgets.rail import Rail, share_done
from tui.widgets.words import duration

if TYPE_CHECKING:
    from textual.types import CSSPathType

    from engine.config import Stage3Config
    from engine.secrets import Secret
    from tui.screens.quality import QualityView

POLL_SECONDS = 0.15
TERMINAL_SECONDS = 2.0
PLAIN_THEME = "ansi"

log = logging.getLogger(__name__)


def run_wizard(source: RunSource, *, theme: str = DEFAULT, mouse: bool = True) -> tuple[WizardEnd, int]:
    """Draw `source` on this terminal until somebody, or the terminal, ends it: how it ended, and the screen's exit code.
    What runs may go on: see WizardEnd.
    """
    wizard = Wizard(source, theme=theme)
    source.open()
    try:
        wizard.run(mouse=mouse)
    except Exception:
        log.exception("the screen could not be drawn")
        wizard.crashed = wizard.crashed or "The screen could not be drawn."
    finally:
        source.close()
    if wizard.crashed:
        on_its_own = "The run goes on without it." if source.running and not source.read_only else "Nothing is lost."
        print(f"{wizard.crashed} {on_its_own} The traceback is in {source.run / RUN_LOG}.", file=sys.__stderr__)
        end = WizardEnd.LEFT_RUNNING if source.running and not source.read_only else WizardEnd.CRASHED
        return end, int(ExitCode.BUG)
    return wizard.return_value or WizardEnd.FINISHED, wizard.return_code or 0


class Wizard(App[WizardEnd], inherit_bindings=False):
    TITLE = "stage3-tui"
    CSS_PATH: ClassVar[CSSPathType | None] = [
        "screens/base.tcss",
        "screens/main.tcss",
        "screens/credentials.tcss",
        "screens/pairs.tcss",
        "screens/training.tcss",
        "screens/windows.tcss",
    ]
    BINDINGS = bindings("app")
    # Textual's own ctrl+p and ctrl+q are the two keys with which Docker detaches.
    COMMAND_PALETTE_BINDING = "ctrl+k"
    COMMANDS: ClassVar[set[Any]] = {WizardCommands}
    ENABLE_COMMAND_PALETTE = True
    NOTIFICATION_TIMEOUT = 6

    def __init__(self, source: RunSource, *, theme: str = DEFAULT) -> None:
        # Textual chooses its filter here, before the theme: without native colours NO_COLOR came out black on black.
        plain = bool(os.environ.get("NO_COLOR"))
        super().__init__(ansi_color=True if plain else None)
        self.source = source
        self.crashed = ""
        """A plain sentence about what broke the screen; empty as long as it stands."""
        self.following = True
        self._leaving: WizardEnd | None = None
        self._stopping = ""
        self._signalled = False
        self._drawn: tuple[object, ...] | None = None
        """What the last drawing depended on."""
        self._seen = source.snapshot()
        self._told_title = ""
        self._started_from = os.getppid()
        self._themes, self._theme_problems = find_themes()
        self._first_theme = PLAIN_THEME if plain else theme

    # -- life ---------------------------------------------------------------------------------------------------------

    def get_default_screen(self) -> Screen[None]:
        return MainScreen(self.source, first_stage(self._seen))

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return default_variables()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        return ()

    def on_mount(self) -> None:
        for found in self._themes.values():
            self.register_theme(as_textual(found))
        self.use_theme(self._first_theme)
        for problem in self._theme_problems:
            self.say(problem, "warning")
        self.app_resume_signal.subscribe(self, lambda _: self.refresh(layout=True))
        self._hear_signals()
        self.call_after_refresh(self.tick)
        self.set_interval(POLL_SECONDS, self.tick)
        if not self.is_headless:
            self.set_interval(TERMINAL_SECONDS, self._look_at_terminal)

    @property
    def main(self) -> MainScreen:
        return cast(MainScreen, self.screen_stack[0])

    @property
    def driver_of_run(self) -> RunDriver | None:
        """The run as something that can be started; None where it is only watched."""
        return None if self.source.read_only else cast(RunDriver, self.source)

    def tick(self) -> None:
        """Look at the run, and draw what has changed."""
        state, now = self.source.snapshot(), time.time()
        running = self.source.running
        if not running and self._leaving is None and getattr(self.source, "restart_until", None) is not None:
            self.exit(WizardEnd.RESTARTS)
            return
        if self._leaving is not None and not running:
            self.exit(self._leaving, return_code=self.return_code or 0)
            return
        if not running:
            self._stopping = ""
        current = state.current
        if self.following and current is not None and current.name != self.main.selected:
            self.call_later(self.main.show_stage, current.name)
        self._draw(state, running, now)
        self._tell_the_terminal(state)
        self._seen = state

    def _draw(self, state: RunState, running: bool, now: float) -> None:
        """Draw, unless nothing has changed: on most ticks nothing has."""
        main, view = self.main, self.main.view
        second = int(now) if running else int(now / 5)
        depends_on = (
            state,
            second,
            main.selected,
            view,
            view and view.page,
            self.following,
            self._standing(),
            self.size,
        )
        key = (*depends_on, self.source.config)
        if self._drawn is not None and all(old is new or old == new for old, new in zip(self._drawn, key, strict=True)):
            return
        try:
            with self.batch_update():
                main.draw(state, self._standing(), tuple(k for k in footer_keys() if self.possible(k)), now)
        except NoMatches:
            if main.is_whole:
                raise
            return  # it is being put together, or taken apart
        self._drawn = key if view is not None else None

    def _standing(self) -> str:
        if self._stopping:
            return f"■ {self._stopping}"
        if self.source.read_only:
            return "watching, read-only"
        return ""

    def possible(self, key: Key) -> bool:
        """Whether a key does something now; the footer shows those."""
        action, running, mine = key.action, self.source.running, not self.source.read_only
        if action in ("run_stage", "run_all", "edit"):
            return mine and not running
        if action == "redo":
            return mine and not running and self._seen.stages[self.main.selected].status != "waiting"
        if action == "stop":
            return running and not self._stopping
        if action == "follow":
            return running and not self.following
        if action == "next_page":
            return self.main.view is not None and len(self.main.view.PAGES) > 1
        if action.startswith("decide"):
            return mine and not running and self.main.selected == "quality" and self._browser_in_sight() is not None
        return True

    # -- what the keys do ---------------------------------------------------------------------------------------------

    def action_run_stage(self) -> None:
        self._start(until=self.main.selected)

    def action_run_all(self) -> None:
        self._start()

    def action_redo(self) -> None:
        from tui.screens.windows import Answer, Question

        if self._may_start():
            stage = self.main.selected
            title = f"Do {STAGE[stage].title} again?"
            text = (
                "This stage and what follows are done again. What they made is put aside in superseded/, not deleted."
            )
            answers = (
                Answer("y", "do it again", "only this stage now; a runs the rest"),
                Answer("b", "leave it", "as it is"),
            )

            def answered(answer: str | None) -> None:
                if answer == "y":
                    self._start(until=stage, redo_from=stage)

            self.push_screen(Question(title, text, answers), answered)

    def action_stop(self) -> None:
        if not self.source.running:
            self.say("Nothing runs.")
        else:
            self._stop("asked in the wizard")

    def action_leave(self) -> None:
        """Quit; ask first where that would be about the engine as well."""
        from tui.screens.windows import Answer, Question

        if self.source.read_only or not self.source.running:
            self.exit(WizardEnd.FINISHED)
            return
        answers = (
            Answer("l", "leave it running", "the run goes on; stage3-tui attach shows it again"),
            Answer("s", "stop and save", "finish the step, write everything, then quit"),
            Answer("b", "stay", "back to the screen"),
        )

        def answered(answer: str | None) -> None:
            if answer == "l":
                self.exit(WizardEnd.LEFT_RUNNING)
            elif answer == "s":
                self._leaving = WizardEnd.STOPPED
                self._stop("asked in the wizard")

        self.push_screen(Question("The engine is running", "What becomes of the run?", answers), answered)

    async def action_quit(self) -> None:
        self.action_leave()

    def action_move(self, by: int) -> None:
        number = STAGES.index(self.main.selected) + by
        if 0 <= number < len(STAGES):
            self.look_at(STAGES[number])

    def action_go(self, number: int) -> None:
        self.look_at(STAGES[number - 1])

    def action_follow(self) -> None:
        self.following = True
        self.tick()

    def action_scroll(self, pages: int) -> None:
        browser = self._browser_in_sight()
        if browser is not None:
            browser.scroll_detail(pages)
        elif self.main.view is not None:
            self.main.view.scroll_page(pages)

    def action_next_page(self) -> None:
        if self.main.view is not None:
            self.main.view.next_page()
            self.tick()

    def action_log(self) -> None:
        from tui.screens.log import LogScreen

        self.push_screen(LogScreen(self.source))

    def action_help(self) -> None:
        from tui.screens.windows import Help

        self.push_screen(Help())

    def action_edit(self) -> None:
        """The form of this stage's options; what it gives is used from the next start on."""
        from tui.screens.base import NOT_EDITED, options_of
        from tui.screens.options_form import OptionsForm

        driver = self.driver_of_run
        if driver is None or driver.running:
            self.say(
                "This run is another process's."
                if driver is None
                else "Options are edited while nothing runs: s stops."
            )
            return
        stage = self.main.selected
        chosen = [option for option in options_of(stage) if option.name not in NOT_EDITED]
        if not chosen:
            self.say("This stage has no option to edit here.")
            return

        def edited(config: Stage3Config | None) -> None:
            if config is not None:
                driver.set_config(config)
                self.say("Used from the next start on. Stages that depend on it are done again.")
                self.tick()

        self.push_screen(OptionsForm(STAGE[stage].title, chosen, driver.config), edited)

    def action_filter(self) -> None:
        browser = self._show_browser()
        if browser is None:
            self.say("There is something to filter on the screens of Pairs and Quality.")
        else:
            browser.open_filter()

    def action_decide(self, action: str) -> None:
        if self.main.selected != "quality" or self._browser_in_sight() is None or self.source.read_only:
            self.say("Decisions about pairs are made in Quality, on the view Pairs.")
        elif self.source.running:
            self.say("Decisions about pairs are made while nothing runs: s stops.")
        else:
            try:
                self.say(cast("QualityView", self.main.view).decide(action))
            except (OSError, ValueError, Stage3Error) as error:
                self.say(f"The decision could not be kept: {error}", "error")

    def action_copy(self) -> None:
        if self.main.view is not None:
            self._copy(*self.main.view.copy_text(self._seen))

    def action_next_theme(self) -> None:
        names = self.theme_names
        self.use_theme(names[(names.index(self.theme) + 1) % len(names)] if self.theme in names else names[0])
        self.say(f"Theme {self.theme}")

    async def action_back(self) -> None:
        browser = self._browser_in_sight()
        if browser is None or not browser.back():
            self.screen.set_focus(None)

    # -- what others ask for ------------------------------------------------------------------------------------------

    def look_at(self, stage: str) -> None:
        """Show a stage because a person wants to see it."""
        current = self._seen.current
        self.following = current is not None and current.name == stage
        self.call_later(self._show, stage)

    async def _show(self, stage: str) -> None:
        if not self.main.is_whole:  # a key that was pressed before the first screen was put together
            self.set_timer(POLL_SECONDS, partial(self._show, stage))
            return
        await self.main.show_stage(stage)
        self.tick()

    def use_token(self, token: Secret) -> None:
        """Give the token to the engine, and check it."""
        driver = self.driver_of_run
        if driver is not None:
            driver.set_token(token)
            if driver.running:
                self.say("The token is used from the next start on.")
            else:
                self._start(until="credentials")

    @property
    def theme_names(self) -> list[str]:
        return list(self._themes)

    def use_theme(self, name: str) -> None:
        if name not in self._themes:
            self.say(f"There is no theme {name!r}; there are {', '.join(self._themes)}.", "warning")
            name = DEFAULT
        self.theme = name

    def copy_folder(self) -> None:
        self._copy(str(self.source.run.folder), "the run folder's path")

    def save_screenshot_file(self) -> None:
        folder = self.source.run / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = self.save_screenshot(f"screen-{time.strftime('%Y%m%d-%H%M%S')}.svg", str(folder))
        except OSError as error:
            self.say(f"The screenshot could not be saved: {error}", "error")
        else:
            self.say(f"Saved as {path}")

    def say(self, text: str, severity: Any = "information") -> None:
        """A notice for a few seconds; whatever is in it is text."""
        self.notify(visible_line(text, 400), severity=severity, markup=False)

    @on(Rail.Chosen)
    def _rail_chosen(self, event: Rail.Chosen) -> None:
        self.look_at(event.stage)

    # -- the engine ---------------------------------------------------------------------------------------------------

    def _may_start(self) -> bool:
        driver = self.driver_of_run
        if driver is None:
            self.say("This run is another process's: it can be watched, and asked to stop.")
        elif driver.running:
            self.say("The engine runs already; s stops it.")
        return driver is not None and not driver.running

    def _start(self, *, until: str = STAGES[-1], redo_from: str | None = None) -> None:
        if self._may_start():
            cast(RunDriver, self.source).start(until=until, redo_from=redo_from)
            self.following = True
            self.tick()

    def _stop(self, reason: str, exit_code: ExitCode = ExitCode.TERMINATED) -> None:
        try:
            self.source.stop(reason, exit_code)
        except (OSError, Stage3Error) as error:
            self.say(f"The run could not be asked to stop: {error}", "error")
            return
        self._stopping = "stopping: finishing the step, saving"
        self.tick()

    # -- the terminal -------------------------------------------------------------------------------------------------

    def _hear_signals(self) -> None:
        if self.is_headless:
            return
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.hang_up)
        for number, code in ((signal.SIGTERM, ExitCode.TERMINATED), (signal.SIGINT, ExitCode.INTERRUPTED)):
            loop.add_signal_handler(number, self.end_by_signal, signal.Signals(number).name, code)

    def hang_up(self) -> None:
        """The terminal is gone: the screen ends, the engine goes on."""
        if self.source.running and not self.source.read_only and self._leaving is None:
            self.exit(WizardEnd.LEFT_RUNNING)
        else:
            self.exit(self._leaving or WizardEnd.HUNG_UP, return_code=int(ExitCode.HANGUP))

    def end_by_signal(self, name: str, code: ExitCode) -> None:
        """Stop, save and leave; the second time at once."""
        if self._signalled or self.source.read_only or not self.source.running:
            self.exit(WizardEnd.STOPPED, return_code=int(code))
            return
        self._signalled = True
        self._leaving = WizardEnd.STOPPED
        self._stop(name, code)

    def _look_at_terminal(self) -> None:
        input_file = terminal.standard_input()
        if input_file is None or terminal.terminal_is_gone(input_file, self._started_from):
            self.hang_up()

    def _tell_the_terminal(self, state: RunState) -> None:
        current = state.current
        if current is not None:
            share = share_done(current)
            title = f"{STAGES.index(current.name) + 1}/10 {STAGE[current.name].title} {share}".strip() + " · stage3-tui"
        else:
            title = "stage3-tui"
        if title != self._told_title:
            self._told_title = title
            terminal.set_title(self, title)
        finished = state.finished
        if finished is not None and finished is not self._seen.finished:
            how = "finished" if finished.exit_code == 0 else f"ended with exit code {finished.exit_code}"
            began = state.stages[STAGES[0]].started
            took = f"after {duration(state.last_time - began)}" if began is not None else ""
            terminal.notify(self, f"stage3-tui {how} {took}".strip())
            self.say(f"The run {how}. {finished.summary}", "information" if finished.exit_code == 0 else "error")

    def _copy(self, text: str, what: str) -> None:
        terminal.copy(self, text)
        where = ""
        if not self.source.read_only:
            with suppress(OSError):  # the clipboard has it all the same
                where = f" It also stands in {terminal.saved_copy(self.source.run.folder, text)}."
        self.say(f"Sent {what} to the terminal's clipboard.{where}")

    def _browser_in_sight(self) -> PairBrowser | None:
        view = self.main.view
        if view is None or view.PAGES[view.page] != "Pairs":
            return None
        return view.query_one(PairBrowser)

    def _show_browser(self) -> PairBrowser | None:
        view = self.main.view
        if view is None or "Pairs" not in view.PAGES:
            return None
        view.show_page(view.PAGES.index("Pairs"))
        browser = view.query_one(PairBrowser)
        browser.look()
        return browser

    # -- when the screen itself breaks --------------------------------------------------------------------------------

    def _fatal_error(self) -> None:
        """Textual would print the traceback with the values of all local variables, and so perhaps a token."""
        error = sys.exc_info()[1] or self._exception
        log.error("the screen broke", exc_info=error)
        self.crashed = f"The screen broke: {type(error).__name__}."
        self._close_messages_no_wait()


def first_stage(state: RunState) -> str:
    """What to look at first: what runs, else what has not been done, else the end."""
    if state.current is not None:
        return state.current.name
    undone = (stage.name for stage in state.stages.values() if stage.status not in ("done", "skipped"))
    return next(undone, STAGES[-1])


__all__ = ["Wizard", "WizardEnd", "run_wizard"]
