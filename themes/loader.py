"""Themes as data: one TOML file per theme, in this package or in $XDG_CONFIG_HOME/stage3-tui/themes.

name = "midnight"
dark = true
ansi = false          whether to use only the terminal's sixteen colours

[colours]             only primary is required; the others have defaults
[meanings]            what the wizard uses a colour for; each falls back to one of the colours
[textual]             Textual's own variables, for full control
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.core.errors import UnsafeError
from engine.core.reading import read_toml

if TYPE_CHECKING:
    from textual.theme import Theme

DEFAULT = "midnight"
BUILT_IN = Path(__file__).parent

COLOURS = (
    "primary",
    "secondary",
    "accent",
    "foreground",
    "background",
    "surface",
    "panel",
    "success",
    "warning",
    "error",
)

MEANINGS: dict[str, tuple[str, float]] = {
    "heading": ("primary", 1.0),
    "muted": ("foreground", 0.6),
    "rule": ("foreground", 0.25),
    "key": ("accent", 1.0),
    "stage-waiting": ("foreground", 0.55),
    "stage-running": ("accent", 1.0),
    "stage-done": ("success", 1.0),
    "stage-skipped": ("foreground", 0.7),
    "stage-failed": ("error", 1.0),
    "stage-refused": ("warning", 1.0),
    "stage-stopped": ("warning", 1.0),
    "check-ok": ("success", 1.0),
    "check-warning": ("warning", 1.0),
    "check-failed": ("error", 1.0),
    "check-skipped": ("foreground", 0.6),
    "pair-ok": ("success", 1.0),
    "pair-bad": ("error", 1.0),
    "pair-cursor": ("primary", 0.35),
    "rail-background": ("surface", 1.0),
    "rail-selected": ("primary", 0.2),
    "rail-selected-edge": ("primary", 1.0),
    "bar-background": ("surface", 1.0),
    "gauge-used": ("primary", 1.0),
    "gauge-high": ("error", 1.0),
    "gauge-free": ("foreground", 0.15),
    "gauge-peak": ("foreground", 1.0),
    "gauge-forecast": ("warning", 1.0),
    "chart-loss": ("accent", 1.0),
    "chart-loss-raw": ("accent", 0.4),
    "chart-margin": ("success", 1.0),
    "chart-margin-raw": ("success", 0.4),
    "chart-mark": ("warning", 0.7),
    "chart-axis": ("foreground", 0.45),
    "diff-added": ("success", 1.0),
    "diff-removed": ("error", 1.0),
}
"""Each meaning with its fallback: a colour, and its opacity over the background."""

ANSI_FAINT = {"muted", "rule", "stage-waiting", "gauge-free", "chart-loss-raw", "chart-margin-raw", "chart-axis"}
ANSI_SELECTED = {"rail-selected", "pair-cursor"}
ANSI_SELECTED_BACKGROUND = "ansi_bright_magenta"
"""The background of the selection in an ANSI theme, and of nothing else. The screen shows it in reverse video, because each
of the sixteen colours, as a background, makes some text unreadable.
"""


class ThemeError(Exception):
    """A theme file cannot be used; the message is the reason."""


@dataclass(frozen=True)
class ThemeFile:
    name: str
    dark: bool = True
    ansi: bool = False
    colours: Mapping[str, str] = field(default_factory=dict)
    meanings: Mapping[str, str] = field(default_factory=dict)
    textual: Mapping[str, str] = field(default_factory=dict)


def user_folder() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "stage3-tui" / "themes"


def find_themes(folder: Path | None = None) -> tuple[dict[str, ThemeFile], list[str]]:
    """All themes by name, the default one first, and a message about the files that cannot be used."""
    found: dict[str, ThemeFile] = {}
    broken = []
    for path in (*sorted(BUILT_IN.glob("*.toml")), *sorted((folder or user_folder()).glob("*.toml"))):
        try:
            theme = load_theme(path)
            as_textual(theme)
        except ThemeError as error:
            broken.append(f"{path.name}: {error}")
        else:
            found[theme.name] = theme
    ordered = {name: found[name] for name in sorted(found, key=lambda name: (name != DEFAULT, name))}
    return ordered, [f"Some themes cannot be used: {'; '.join(broken)}"] if broken else []


def load_theme(path: Path) -> ThemeFile:
    """Read one file. Raises ThemeError."""
    try:
        data = read_toml(path)
    except (OSError, ValueError, UnsafeError) as error:
        raise ThemeError(str(error)) from error
    unknown = set(data) - {"name", "dark", "ansi", "colours", "meanings", "textual"}
    if unknown:
        raise ThemeError(f"unknown entry {', '.join(sorted(unknown))}")
    colours, meanings = _strings(data, "colours", COLOURS), _strings(data, "meanings", MEANINGS)
    if "primary" not in colours:
        raise ThemeError("[colours] has no primary")
    name = data.get("name", path.stem)
    if not isinstance(name, str) or not name:
        raise ThemeError("name is not a string")
    return ThemeFile(
        name,
        bool(data.get("dark", True)),
        bool(data.get("ansi", False)),
        colours,
        meanings,
        _strings(data, "textual", None),
    )


def as_textual(theme: ThemeFile) -> Theme:
    """A Textual theme with every meaning filled in. Raises ThemeError for an invalid colour."""
    from textual.theme import Theme

    for key, value in {**theme.colours, **theme.meanings}.items():
        _colour(key, value)
    colours = dict(theme.colours)
    primary = colours.pop("primary")
    if theme.ansi:
        colours = {
            **dict.fromkeys(("foreground", "background", "surface", "panel", "boost"), "ansi_default"),
            **colours,  # type: ignore[arg-type]
        }
    return Theme(
        theme.name,
        primary,
        **colours,  # type: ignore[arg-type]
        dark=theme.dark,
        ansi=theme.ansi,
        variables={**(_ANSI_TEXTUAL if theme.ansi else {}), **theme.textual, **meanings_of(theme)},
    )


def meanings_of(theme: ThemeFile) -> dict[str, str]:
    """The colour of every meaning: the theme's own, or the fallback."""
    return {name: theme.meanings.get(name) or _fallback(theme, name) for name in MEANINGS}


def default_variables() -> dict[str, str]:
    """The meanings to use before a theme is applied."""
    return dict.fromkeys(MEANINGS, "ansi_default")


def _fallback(theme: ThemeFile, name: str) -> str:
    from textual.color import Color

    source, opacity = MEANINGS[name]
    if theme.ansi:
        if name in ANSI_SELECTED:
            return ANSI_SELECTED_BACKGROUND
        return "ansi_bright_black" if name in ANSI_FAINT else theme.colours.get(source, "ansi_default")
    plain = _PLAIN_DARK if theme.dark else _PLAIN_LIGHT
    colour = Color.parse(theme.colours.get(source) or plain.get(source) or theme.colours["primary"])
    background = Color.parse(theme.colours.get("background") or plain["background"])
    return background.blend(colour, opacity).hex


def _colour(key: str, value: str) -> None:
    from textual.color import Color, ColorParseError

    try:
        Color.parse(value)
    except ColorParseError as error:
        raise ThemeError(f"{key} = {value!r} is not a colour") from error


def _strings(data: Mapping[str, Any], table: str, known: Any) -> dict[str, str]:
    values = data.get(table, {})
    if not isinstance(values, dict):
        raise ThemeError(f"[{table}] is not a table")
    for key, value in values.items():
        if known is not None and key not in known:
            raise ThemeError(f"unknown entry {key} in [{table}]")
        if not isinstance(value, str):
            raise ThemeError(f"{key} = {value!r} is not a string")
    return dict(values)


_PLAIN_DARK = {
    "foreground": "#e0e0e0",
    "background": "#121212",
    "surface": "#1e1e1e",
    "success": "#4ebf71",
    "warning": "#ffa62b",
    "error": "#d0506f",
}
_PLAIN_LIGHT = {
    "foreground": "#202020",
    "background": "#e8e8e8",
    "surface": "#d8d8d8",
    "success": "#2f7d46",
    "warning": "#9a5b00",
    "error": "#b02040",
}
_ANSI_TEXTUAL = {
    "ansi-background": "ansi_black",
    "ansi-foreground": "ansi_white",
    "border-blurred": "ansi_bright_black",
    "block-cursor-foreground": "ansi_default",
    "block-cursor-background": ANSI_SELECTED_BACKGROUND,
    "input-cursor-background": ANSI_SELECTED_BACKGROUND,
    "input-cursor-foreground": "ansi_default",
    "input-cursor-text-style": "none",
    "input-selection-background": ANSI_SELECTED_BACKGROUND,
    "input-selection-foreground": "ansi_default",
    "screen-selection-background": ANSI_SELECTED_BACKGROUND,
    "screen-selection-foreground": "ansi_default",
}
