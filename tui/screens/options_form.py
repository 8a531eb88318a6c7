"""The options of one stage as a form; what is typed is checked by the configuration class itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Select, Static, Switch

from engine.errors import ConfigError
from engine.options import Option
from engine.text import visible_line
from tui.keys import bindings
from tui.widgets.parts import value_text

if TYPE_CHECKING:
    from engine.config import Stage3Config


class OptionsForm(ModalScreen["Stage3Config | None"]):
    """Gives the new configuration, or None when nothing was changed."""

    BINDINGS = bindings("choice")

    def __init__(self, title: str, chosen: Sequence[Option], config: Stage3Config) -> None:
        super().__init__()
        self._title, self._options, self._config = title, chosen, config

    def compose(self) -> ComposeResult:
        with Vertical(classes="window -large") as window:
            window.border_title = Content(f"Options of {self._title}")  # type: ignore[assignment]
            window.border_subtitle = Content("Tab moves   Enter saves   Esc leaves all as it was")  # type: ignore[assignment]
            with VerticalScroll(id="form", can_focus=False):
                for option in self._options:
                    yield from self._row(option)
            yield Static(id="refused", markup=False)
            with Horizontal(id="form-buttons"):
                yield Button(Content("Save"), id="save", variant="primary", compact=True)
                yield Button(Content("Leave"), id="leave", compact=True)

    def _row(self, option: Option) -> ComposeResult:
        value = getattr(self._config, option.name)
        with Horizontal(classes="form-row"):
            yield Static(Content(option.name), classes="form-name")
            if option.is_switch:
                yield Switch(bool(value), id=_id(option), classes="form-field")
            elif option.choices:
                choices = [(choice, choice) for choice in option.choices]
                yield Select(
                    choices, value=str(value), allow_blank=False, id=_id(option), classes="form-field", compact=True
                )
            else:
                given = Input(
                    value_text(value),
                    placeholder=option.default or "none",
                    id=_id(option),
                    classes="form-field",
                    compact=True,
                )
                given.cursor_blink = False
                yield given
        yield Static(Content.styled(option.sentence, "$muted"), classes="form-sentence")

    @on(Input.Submitted)
    @on(Button.Pressed, "#save")
    def _save(self) -> None:
        self.run_worker(self._check(), exclusive=True, description="checks the options")

    @on(Button.Pressed, "#leave")
    def action_dismiss_window(self) -> None:
        self.dismiss(None)

    async def _check(self) -> None:
        changes = {option.name: given for option in self._options if (given := self._given(option)) is not _SAME}
        if not changes:
            self.dismiss(None)
            return
        config, refusals = changed_config(self._config, changes)
        if config is not None:
            self.dismiss(config)
            return
        for option in self._options:
            self.query_one(f"#{_id(option)}").set_class(option.name in refusals, "-refused")
        told = "\n".join(visible_line(f"{name}: {why}", 300) for name, why in refusals.items())
        self.query_one("#refused", Static).update(Content.styled(told, "$check-failed"))
        self.query_one(f"#{next(_id(option) for option in self._options if option.name in refusals)}").focus()

    def _given(self, option: Option) -> Any:
        """What the field says now, or `_SAME` where it says what it said."""
        before = getattr(self._config, option.name)
        field = self.query_one(f"#{_id(option)}")
        if isinstance(field, Switch):
            return _SAME if field.value == before else field.value
        if isinstance(field, Select):
            return _SAME if field.value == before else field.value
        text = field.value.strip() if isinstance(field, Input) else ""
        if text == value_text(before):
            return _SAME
        return None if not text and "None" in option.annotation else text


_SAME = object()


def changed_config(config: Stage3Config, changes: dict[str, Any]) -> tuple[Stage3Config | None, dict[str, str]]:
    """The configuration with all `changes`, or None and why each of the bad ones cannot be."""
    from engine.config import load_config

    before = {name: getattr(config, name) for name in type(config).model_fields}
    refusals = {}
    for name, value in changes.items():
        try:
            load_config({**before, name: value}, environment={})
        except ConfigError as error:
            refusals[name] = error.why
    if refusals:
        return None, refusals
    try:
        return load_config({**before, **changes}, environment={}), {}
    except ConfigError as error:  # each alone is good, together they are not
        return None, {next(iter(changes)): str(error)}


def _id(option: Option) -> str:
    return f"option-{option.name}"
