"""The options of one stage as a form: a row each, and below them the selected one with its meaning, its allowed values, and a
field that validates as you type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input

from engine.core.config import ENV_PREFIX, with_changes
from engine.core.options import Option
from tui.formatting import one_line
from tui.keys import bindings
from tui.widgets.layout import EMPTY, fit, paragraph
from tui.widgets.row_list import RowList
from tui.widgets.text_view import TextView

if TYPE_CHECKING:
    from engine.core.config import Stage3Config

WIDE = 100
"""Width from which each row has its option's sentence."""
NAME_CELLS, VALUE_CELLS = 29, 30
EDITS, KEEPS = "Enter edits, ← → choose, d resets to the default", "Enter saves, Esc discards"


class OptionRows(RowList):
    """A row per option: whether it differs from its default, its name, its value."""

    BINDINGS = bindings("options")
    PLACE = "options"

    def __init__(self, options: Sequence[Option], *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.options = tuple(options)
        self.values: dict[str, Any] = {}

    @property
    def shown(self) -> int:
        return len(self.options)

    @property
    def option(self) -> Option:
        return self.options[self.cursor]

    def go_to(self, name: str) -> None:
        """Put the cursor on an option."""
        self.cursor = [option.name for option in self.options].index(name)

    def put(self, values: dict[str, Any]) -> None:
        if values != self.values:
            self.values = values
            self.rows_changed()

    def nothing(self) -> str:
        return "This stage has no options."

    def row_content(self, index: int, width: int) -> Content:
        option = self.options[index]
        value = value_text(self.values.get(option.name))
        changed = differs(option, self.values.get(option.name))
        cells = [
            Content.styled("● " if changed else "  ", "$accent"),
            fit(Content.styled(option.name, "$foreground"), NAME_CELLS),
            fit(
                one_line(value or "none", "bold $heading" if changed else "$foreground" if value else "$muted"),
                VALUE_CELLS,
            ),
        ]
        rest = option.sentence if width >= WIDE else f"  default {option.default or 'none'}" if changed else ""
        return EMPTY.join([*cells, Content.styled(f"  {rest}", "$muted")]).truncate(width, ellipsis=True)

    # -- what the keys ask for ----------------------------------------------------------------------------------------

    class Wanted(Message):
        """A new value, as text or typed; the editor validates it with the configuration class."""

        def __init__(self, value: Any) -> None:
            super().__init__()
            self.value = value

    def action_choose(self, by: int) -> None:
        choices = choices_of(self.option)
        if choices:
            now = self.values.get(self.option.name)
            self.post_message(self.Wanted(choices[(choices.index(now) + by) % len(choices) if now in choices else 0]))

    def action_default(self) -> None:
        self.post_message(self.Wanted(self.option.default or ("" if not self.option.may_be_none else None)))


class OptionsEditor(Vertical):
    """Posts `Changed` with the new configuration after each change."""

    DEFAULT_CSS = """
    OptionsEditor { height: 1fr; }
    OptionsEditor #option-panel { height: auto; border-top: solid $rule; }
    OptionsEditor #option-field { display: none; border: none; height: 1; padding: 0 1; background: $panel; color: $foreground; }
    OptionsEditor.-editing #option-field { display: block; }
    """

    class Changed(Message):
        def __init__(self, config: Stage3Config) -> None:
            super().__init__()
            self.config = config

    def __init__(self, options: Sequence[Option], *, fixed: Sequence[str] = (), id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._options = tuple(options)
        self._fixed = frozenset(fixed)
        """Names that are shown but not editable here."""
        self._config: Stage3Config | None = None
        self._why_not = ""
        """Why nothing can be edited."""
        self._told = ""
        """Why the typed value is invalid."""

    def compose(self) -> ComposeResult:
        yield OptionRows(self._options, id="option-rows")
        with Vertical(id="option-panel"):
            yield TextView(id="option-words")
            field = Input(id="option-field", select_on_focus=True)
            field.cursor_blink = False
            yield field

    @property
    def rows(self) -> OptionRows:
        return self.query_one(OptionRows)

    @property
    def editing(self) -> bool:
        return self.has_class("-editing")

    def put(self, config: Stage3Config, why_not: str = "") -> None:
        """Show `config`. `why_not`: why it cannot be edited now; empty if it can."""
        self._config, self._why_not = config, why_not
        self.rows.put({option.name: getattr(config, option.name) for option in self._options})
        self._draw()

    # -- editing ------------------------------------------------------------------------------------------------------

    @on(RowList.Opened)
    def _open(self, event: RowList.Opened) -> None:
        event.stop()
        option = self.rows.option
        if self._refuses(option):
            return
        if choices_of(option):
            self.rows.action_choose(1)
            return
        field = self.query_one("#option-field", Input)
        self.add_class("-editing")
        field.placeholder = "empty: chosen by the program" if option.may_be_none else option.default
        field.value = value_text(self.rows.values.get(option.name))
        field.focus()
        self._check(field.value)

    @on(OptionRows.Wanted)
    def _wanted(self, event: OptionRows.Wanted) -> None:
        event.stop()
        if not self._refuses(self.rows.option):
            self._keep(event.value)

    @on(RowList.Moved)
    def _moved(self, event: RowList.Moved) -> None:
        event.stop()
        self.leave()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        if self.editing:
            self._check(event.value)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self._keep(given(self.rows.option, event.value)):
            self.leave()

    @on(events.DescendantBlur)
    def _left(self, event: events.DescendantBlur) -> None:
        if isinstance(event.widget, Input):
            self.leave(refocus=False)

    def leave(self, *, refocus: bool = True) -> bool:
        """Stop editing and discard the input. False if nothing was being edited."""
        was_editing, self._told = self.editing, ""
        self.remove_class("-editing")
        if was_editing and refocus:
            self.rows.focus()
        self._draw()
        return was_editing

    def _refuses(self, option: Option) -> bool:
        self._told = self._why_not or ("Set it on the command line." if option.name in self._fixed else "")
        self._draw()
        return bool(self._told)

    def _check(self, text: str) -> None:
        option = self.rows.option
        assert self._config is not None
        _, refused = with_changes(self._config, {option.name: given(option, text)})
        self._told = refused.get(option.name, "")
        self._draw()

    def _keep(self, value: Any) -> bool:
        option = self.rows.option
        assert self._config is not None
        config, refused = with_changes(self._config, {option.name: value})
        self._told = refused.get(option.name, "")
        if config is not None:
            self.put(config, self._why_not)
            self.post_message(self.Changed(config))
        else:
            self._draw()
        return config is not None

    # -- the option under the cursor ----------------------------------------------------------------------------------

    def _draw(self) -> None:
        if not self._options:
            return
        option = self.rows.option
        told, editing, fixed = self._told, self.editing, option.name in self._fixed or bool(self._why_not)
        self.query_one("#option-words", TextView).put(
            (option.name, told, editing, fixed), lambda width: option_words(option, told, editing, fixed, width)
        )


def option_words(option: Option, told: str, editing: bool, fixed: bool, width: int) -> list[Content]:
    """The option's meaning, its allowed values, and whether the input is valid."""
    variable = ENV_PREFIX + option.name.upper()
    lines = [*paragraph(Content.styled(option.sentence, "$foreground"), width)]
    facts = f"{option.allowed} · default {option.default or 'none'} · {option.flag} · {variable}"
    lines += paragraph(Content.styled(facts, "$muted"), width)
    if told:
        lines += paragraph(Content.assemble(("✗ ", "bold $check-failed"), one_line(told, "$check-failed", 300)), width)
    elif editing:
        lines.append(Content.assemble(("✓ ", "bold $check-ok"), (KEEPS, "$muted")))
    elif not fixed:
        lines.append(Content.styled(EDITS, "$muted"))
    return lines


def choices_of(option: Option) -> tuple[Any, ...]:
    """The choices for ← and →; empty for typed values."""
    if option.is_switch:
        return (False, True)
    if option.is_flag:
        return (None, True, False)
    return option.choices


def given(option: Option, text: str) -> Any:
    """The value of the input: empty is None if the program may choose the value."""
    return None if not text.strip() and option.may_be_none else text.strip()


def value_text(value: object) -> str:
    return {True: "yes", False: "no", None: ""}.get(value) if isinstance(value, bool) or value is None else str(value)  # type: ignore[arg-type, return-value]


def differs(option: Option, value: object) -> bool:
    """Whether a value differs from the default."""
    text = "" if value is None else str(value)
    if text == option.default:
        return False
    try:
        return float(text) != float(option.default)
    except ValueError:
        return True
