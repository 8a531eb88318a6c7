"""Describe options: their values with units, what is allowed, and what a change would do again. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textual.content import Content

from engine.core.config import ENV_PREFIX
from engine.core.options import Option
from engine.core.stage_table import STAGE
from engine.pipeline.consequences import EVALUATION, Consequence, consequence_of
from tui.formatting import approx_duration, one_line
from tui.widgets.layout import join_fitting, paragraph

AUTOMATIC = "automatic"
EDIT_KEYS, SAVE_KEYS = "Enter edits   ← → choose   d resets", "Enter saves, Esc discards"
DoneStages = Mapping[str, float | None]
"""The stages that are done, each with the seconds it took."""


def value_text(value: object) -> str:
    """A value as the user types it."""
    if isinstance(value, tuple):
        return ", ".join(value)
    return {True: "yes", False: "no", None: ""}.get(value) if isinstance(value, bool) or value is None else str(value)  # type: ignore[arg-type, return-value]


def shown_value(option: Option, value: object) -> str:
    """A value as it is shown: with its unit; a share in percent."""
    if value is None:
        return AUTOMATIC if option.default == "" and option.is_flag else ""
    if option.unit == "share" and isinstance(value, float):
        return f"{100 * value:g} %"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value_text(value)
    text = f"{value:g}" if isinstance(value, float) else text
    return f"{text} {option.unit}".rstrip() if option.unit != "share" else text


def differs(option: Option, value: object) -> bool:
    """Whether a value differs from the default."""
    text = "" if value is None else str(value)
    if text == option.default:
        return False
    try:
        return float(text) != float(option.default)
    except ValueError:
        return True


def option_help_lines(
    option: Option,
    problem: str,
    editing: bool,
    fixed: bool,
    width: int,
    done: DoneStages | None = None,
    *,
    compact: bool = False,
) -> list[Content]:
    """The option's meaning, allowed values, what a change does again, and whether the input is valid.

    problem   why the input is invalid, or what the user should do; empty if nothing
    """
    lines = [*paragraph(Content.styled(option.sentence, "$foreground"), width)]
    facts = [option.allowed, f"default {option.default or 'none'}", option.flag, ENV_PREFIX + option.name.upper()]
    if option.unit == "share":
        facts[0] += " (a share)"
    if compact:  # the default comes last, so that a long one is left out
        allowed, default, flag, _ = facts
        lines.append(join_fitting((Content.styled(fact, "$muted") for fact in (allowed, flag, default)), width, gap=3))
    else:
        sweep = (f"several values: `stage3-tui sweep {option.flag} A,B`",) if "training" in option.changes else ()
        lines += paragraph(Content.styled("   ".join((*facts, *sweep)), "$muted"), width)
    again = consequence_sentence(option, done) if done is not None else ""
    if again:
        lines += paragraph(Content.assemble(("↻ ", "bold $accent"), (again, "$foreground")), width)
    if problem:
        text = one_line(problem, "$check-failed", 300)
        lines += paragraph(Content.assemble(("✗ ", "bold $check-failed"), text), width)
    elif editing:
        lines.append(Content.assemble(("✓ ", "bold $check-ok"), (SAVE_KEYS, "$muted")))
    elif not fixed:
        lines.append(Content.styled(EDIT_KEYS, "$muted"))
    return lines


def consequence_sentence(option: Option, done: DoneStages) -> str:
    """What a change would do again: "A change repeats training (about 4m), then packaging; pairs are kept."."""
    if not done or not option.changes:
        return "" if not done else "A change affects no result."
    found = consequence_of(option.changes, done)
    if not found.again:
        return "A change affects nothing that is already done."
    return f"{_again(found)}{_follow(found)}{_kept(found)}."


def _again(found: Consequence) -> str:
    time = approx_duration(found.seconds)
    return f"A change repeats {_listed(found.again)}" + (f" (about {time})" if time else "")


def _follow(found: Consequence) -> str:
    return f", then {_listed(found.possibly_again)} if the results differ" if found.possibly_again else ""


def _kept(found: Consequence) -> str:
    if not found.kept:
        return ""
    return f"; {_listed(found.kept)} {'are' if len(found.kept) > 1 or found.kept == ('pairs',) else 'is'} kept"


def _listed(names: Sequence[str]) -> str:
    titles = ["the evaluation" if name == EVALUATION else STAGE[name].title.lower() for name in names]
    return titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"


def choices_of(option: Option) -> tuple[Any, ...]:
    """The choices for the keys ← and →; empty if the value is typed."""
    if option.is_switch:
        return (False, True)
    if option.is_flag:
        return (None, True, False)
    return option.choices


def parse_input(option: Option, text: str) -> Any:
    """The value of the input. An empty input is None if the program may choose the value; a share may be in percent."""
    text = text.strip()
    if not text and option.is_optional:
        return None
    if option.unit == "share" and text.endswith("%"):
        try:
            return str(float(text.removesuffix("%")) / 100)
        except ValueError:
            return text
    return text
