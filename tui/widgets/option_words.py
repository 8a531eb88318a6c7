"""Options in words: their values with units, what is allowed, and what a change would do again. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textual.content import Content

from engine.core.config import ENV_PREFIX
from engine.core.options import Option
from engine.core.stage_table import STAGE
from engine.pipeline.consequences import EVALUATION, Consequence, consequence_of
from tui.formatting import approx_duration, one_line
from tui.widgets.layout import as_fits, paragraph

AUTOMATIC = "automatic"
EDITS, KEEPS = "Enter edits   ← → choose   d resets", "Enter saves, Esc discards"
Done = Mapping[str, float | None]
"""The stages that are done, each with the seconds that it took."""


def value_text(value: object) -> str:
    """As it is typed."""
    if isinstance(value, tuple):
        return ", ".join(value)
    return {True: "yes", False: "no", None: ""}.get(value) if isinstance(value, bool) or value is None else str(value)  # type: ignore[arg-type, return-value]


def shown_value(option: Option, value: object) -> str:
    """As it is shown: with its unit, a share in percent."""
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


def option_words(
    option: Option,
    told: str,
    editing: bool,
    fixed: bool,
    width: int,
    done: Done | None = None,
    *,
    compact: bool = False,
) -> list[Content]:
    """What the option means, what is allowed, what a change does again, and whether the input is valid."""
    lines = [*paragraph(Content.styled(option.sentence, "$foreground"), width)]
    facts = [option.allowed, f"default {option.default or 'none'}", option.flag, ENV_PREFIX + option.name.upper()]
    if option.unit == "share":
        facts[0] += " (a share)"
    if compact:  # a long default is left out
        allowed, default, flag, _ = facts
        lines.append(as_fits((Content.styled(fact, "$muted") for fact in (allowed, flag, default)), width, gap=3))
    else:
        sweep = (f"several values: `stage3-tui sweep {option.flag} A,B`",) if "training" in option.changes else ()
        lines += paragraph(Content.styled("   ".join((*facts, *sweep)), "$muted"), width)
    again = consequence_words(option, done) if done is not None else ""
    if again:
        lines += paragraph(Content.assemble(("↻ ", "bold $accent"), (again, "$foreground")), width)
    if told:
        lines += paragraph(Content.assemble(("✗ ", "bold $check-failed"), one_line(told, "$check-failed", 300)), width)
    elif editing:
        lines.append(Content.assemble(("✓ ", "bold $check-ok"), (KEEPS, "$muted")))
    elif not fixed:
        lines.append(Content.styled(EDITS, "$muted"))
    return lines


def consequence_words(option: Option, done: Done) -> str:
    """What a change would do again: "A change repeats training (about 4m), then packaging if the results differ; pairs stay."."""
    if not done or not option.changes:
        return "" if not done else "Changes no result."
    found = consequence_of(option.changes, done)
    if not found.again:
        return "Changes nothing that is done already."
    return f"{_again(found)}{_follow(found)}{_stay(found)}."


def _again(found: Consequence) -> str:
    took = approx_duration(found.seconds)
    return f"A change repeats {_listed(found.again)}" + (f" (about {took})" if took else "")


def _follow(found: Consequence) -> str:
    return f", then {_listed(found.possibly_again)} if the results differ" if found.possibly_again else ""


def _stay(found: Consequence) -> str:
    if not found.kept:
        return ""
    return f"; {_listed(found.kept)} {'stay' if len(found.kept) > 1 or found.kept == ('pairs',) else 'stays'}"


def _listed(names: Sequence[str]) -> str:
    titles = ["the evaluation" if name == EVALUATION else STAGE[name].title.lower() for name in names]
    return titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"


def choices_of(option: Option) -> tuple[Any, ...]:
    """The choices for ← and →; empty for typed values."""
    if option.is_switch:
        return (False, True)
    if option.is_flag:
        return (None, True, False)
    return option.choices


def given(option: Option, text: str) -> Any:
    """The value of the input: empty is None if the program may choose the value; percent of a share is a number."""
    text = text.strip()
    if not text and option.is_optional:
        return None
    if option.unit == "share" and text.endswith("%"):
        try:
            return str(float(text.removesuffix("%")) / 100)
        except ValueError:
            return text
    return text
