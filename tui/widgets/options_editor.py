"""The options of one stage as a form: rows under headings and, below them, the selected option with its meaning, its allowed
values, what a change does again, and a field that validates as you type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input

from engine.core.config import with_changes
from engine.core.options import Option
from tui.widgets.option_help import DoneStages, choices_of, option_help_lines, parse_input, value_text
from tui.widgets.option_rows import MAX_SHOWN_AT_ONCE, OptionRows, rest_line
from tui.widgets.row_list import RowList
from tui.widgets.text_view import TextView

if TYPE_CHECKING:
    from engine.core.config import Stage3Config


class OptionsEditor(Vertical):
    """Posts `Changed` with the new configuration after each change."""

    DEFAULT_CSS = """
    OptionsEditor { height: 1fr; }
    OptionsEditor #option-panel { height: auto; border-top: solid $rule; }
    OptionsEditor Input { display: none; padding: 0 1; background: $panel; color: $foreground; }
    OptionsEditor.-editing #option-field { display: block; }
    OptionsEditor.-finding #option-find { display: block; }
    OptionsEditor #option-rest { padding: 0 0 0 3; }
    """

    class Changed(Message):
        def __init__(self, config: Stage3Config) -> None:
            super().__init__()
            self.config = config

    def __init__(self, options: Sequence[Option], *, fixed: Sequence[str] = (), id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._options = tuple(options)
        self._fixed = frozenset(fixed)
        """Names of options that are shown but cannot be edited here."""
        self._config: Stage3Config | None = None
        self._read_only_reason = ""
        """Why nothing can be edited; empty if it can."""
        self._problem = ""
        """Why the value was not accepted; empty if it was."""
        self._done: DoneStages = {}
        self._opened: Option | None = None
        """The option whose value is being typed."""

    def compose(self) -> ComposeResult:
        yield _field(
            "option-find", placeholder="search labels, names and descriptions; Enter goes to the list, Esc shows all"
        )
        yield OptionRows(self._options, id="option-rows")
        yield TextView(id="option-rest")
        yield from self.panel()

    def panel(self) -> ComposeResult:
        """The description of the option under the cursor, and the field for its value."""
        with Vertical(id="option-panel"):
            yield TextView(id="option-help")
            yield _field("option-field")

    @property
    def rows(self) -> OptionRows:
        return self.query_one(OptionRows)

    @property
    def editing(self) -> bool:
        return self.has_class("-editing")

    def update(self, config: Stage3Config, read_only_reason: str = "", done: DoneStages | None = None) -> None:
        """Show `config`.

        read_only_reason   why it cannot be edited now; empty if it can
        done               the stages that are done; by default those of the last call
        """
        self._config, self._read_only_reason, self._done = (
            config,
            read_only_reason,
            self._done if done is None else done,
        )
        self.rows.update({option.name: getattr(config, option.name) for option in self._options})
        self.show_option()

    # -- editing ------------------------------------------------------------------------------------------------------

    @on(RowList.Opened)
    def _open(self, event: RowList.Opened) -> None:
        event.stop()
        option = self.rows.option
        if option is None or not self._can_edit(option):
            return
        if choices_of(option):
            self.rows.action_choose(1)
            return
        field = self.query_one("#option-field", Input)
        self._opened = option
        self.add_class("-editing")
        field.placeholder = "empty: chosen by the program" if option.is_optional else option.default
        field.value = value_text(self.rows.values.get(option.name))
        field.focus()
        self._check(field.value)

    @on(OptionRows.ValueChosen)
    def _wanted(self, event: OptionRows.ValueChosen) -> None:
        event.stop()
        if self.rows.option is not None and self._can_edit(self.rows.option):
            self._keep(event.value)

    @on(RowList.Moved)
    def _moved(self, event: RowList.Moved) -> None:
        event.stop()
        if not self.editing or self.rows.option is not self._opened:
            self.leave()  # but a row may also move while its value is being typed

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        if event.input.id == "option-find":
            self.rows.find(event.value)
        elif self.editing:
            self._check(event.value)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        option = self.rows.option
        if event.input.id == "option-find":
            self.rows.focus()
        elif option is not None and self._keep(parse_input(option, event.value)):
            self.leave()

    @on(OptionRows.SearchRequested)
    def _search(self, event: OptionRows.SearchRequested) -> None:
        event.stop()
        self.add_class("-finding")
        self.query_one("#option-find", Input).focus()

    @on(events.DescendantBlur)
    def _left(self, event: events.DescendantBlur) -> None:
        if isinstance(event.widget, Input) and event.widget.id == "option-field":
            self.leave(refocus=False)

    def leave(self, *, refocus: bool = True) -> bool:
        """Stop editing and discard the input. False if nothing was being edited."""
        was_editing, self._problem = self.editing, ""
        self.remove_class("-editing")
        if was_editing and refocus:
            self.rows.focus()
        self.show_option()
        return was_editing

    def step_back(self) -> bool:
        """Esc: leave the value's field, then the search. False if there is nothing to leave."""
        if self.leave():
            return True
        if not self.has_class("-finding"):
            return False
        self.remove_class("-finding")
        self.query_one("#option-find", Input).value = ""
        self.rows.find("")
        self.rows.focus()
        return True

    def _can_edit(self, option: Option) -> bool:
        """Whether the option can be edited; if not, the reason is shown."""
        fixed = "Set this option on the command line." if option.name in self._fixed else ""
        self._problem = self._read_only_reason or fixed
        self.show_option()
        return not self._problem

    def _check(self, text: str) -> None:
        option = self.rows.option
        assert self._config is not None and option is not None
        _, problems = with_changes(self._config, {option.name: parse_input(option, text)})
        self._problem = problems.get(option.name, "")
        self.show_option()

    def _keep(self, value: Any) -> bool:
        option = self.rows.option
        assert self._config is not None and option is not None
        config, problems = with_changes(self._config, {option.name: value})
        self._problem = problems.get(option.name, "")
        if config is not None:
            self.update(config, self._read_only_reason)
            self.post_message(self.Changed(config))
        else:
            self.show_option()
        return config is not None

    def advice(self) -> str:
        """What the user should do about the row under the cursor; empty if nothing."""
        return ""

    # -- the option under the cursor ----------------------------------------------------------------------------------

    def show_option(self) -> None:
        """Show the description of the option under the cursor."""
        option, compact = self.rows.option, self.screen.has_class("-short")
        description = self.query_one("#option-help", TextView)
        self._draw_rest()
        if option is None:
            description.update(None, None)
            return
        problem, editing = self._problem or ("" if self.editing else self.advice()), self.editing
        fixed, done = option.name in self._fixed or bool(self._read_only_reason), self._done
        description.update(
            (option.name, problem, editing, fixed, tuple(done.items()), compact),
            lambda width: option_help_lines(option, problem, editing, fixed, width, done, compact=compact),
        )

    def _draw_rest(self) -> None:
        """Show how many options are hidden."""
        found = self.query("#option-rest")
        if found:
            hidden, few, shows_all = self.rows.hidden, len(self._options) <= MAX_SHOWN_AT_ONCE, self.rows.shows_all
            found.first(TextView).update(
                (hidden, few, shows_all), lambda width: [rest_line(hidden, shows_all and not few, width)]
            )


def _field(id: str, placeholder: str = "") -> Input:  # noqa: A002
    # Compact, because otherwise a focused field draws a border over its only row.
    field = Input(id=id, placeholder=placeholder, select_on_focus=id == "option-field", compact=True)
    field.cursor_blink = False
    return field
