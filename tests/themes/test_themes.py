"""Themes: the shipped ones are complete, and a broken custom theme gives one notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from themes.loader import BUILT_IN, DEFAULT, MEANINGS, ThemeError, as_textual, find_themes, load_theme

SHIPPED = sorted(BUILT_IN.glob("*.toml"))


def test_at_least_six_themes_are_shipped_and_the_default_is_the_first():
    found, problems = find_themes(Path("/nowhere"))
    assert len(found) >= 6 and not problems
    assert next(iter(found)) == DEFAULT


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_theme_has_every_meaning(path: Path):
    from textual.color import Color

    theme = as_textual(load_theme(path))
    assert theme.name == path.stem
    for meaning in MEANINGS:
        Color.parse(theme.variables[meaning])


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem != "ansi"], ids=lambda path: path.stem)
def test_text_is_readable_on_the_background(path: Path):
    """4.5 to 1 (WCAG 2.2, 1.4.3); the theme `contrast` has 7 to 1."""
    from textual.color import Color

    theme = as_textual(load_theme(path))
    ground = Color.parse(theme.background or "black")
    for meaning, least in (("heading", 4.5), ("check-failed", 4.5), ("stage-done", 4.5), ("muted", 4.5)):
        ratio = _contrast(Color.parse(theme.variables[meaning]), ground)
        assert ratio >= (7.0 if path.stem == "contrast" else least), f"{meaning} has {ratio:.1f} to 1"


TEXTS = (
    *("foreground", "accent", "heading", "muted", "key"),
    *(f"stage-{state}" for state in ("waiting", "running", "done", "skipped", "failed", "refused", "stopped")),
    *(f"check-{status}" for status in ("ok", "warning", "failed", "skipped")),
    *("pair-ok", "pair-bad", "diff-added", "diff-removed"),
)
GROUNDS = ("background", "surface", "panel", "rail-background", "bar-background", "rail-selected", "pair-cursor")


@pytest.mark.parametrize("depth", ["truecolor", "256"])
@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem != "ansi"], ids=lambda path: path.stem)
def test_every_text_is_readable_on_every_background_in_true_colour_and_with_256(path: Path, depth: str):
    """3 to 1, WCAG's minimum; tmux without RGB shows the nearest of 256 colours, which can differ a lot."""
    theme = as_textual(load_theme(path))
    colours = {**vars(theme), **theme.variables}
    for ground in GROUNDS:
        for text in TEXTS:
            ratio = _contrast(_shown(colours[text], depth), _shown(colours[ground], depth))
            assert ratio >= 3.0, f"{text} on {ground} has {ratio:.1f} to 1"


def _shown(value: str, depth: str) -> object:
    """A colour on a terminal with this many colours."""
    from rich._palettes import EIGHT_BIT_PALETTE
    from rich.color import Color as RichColor
    from rich.color import ColorSystem
    from textual.color import Color

    colour = Color.parse(value)
    if depth == "truecolor":
        return colour
    number = RichColor.from_rgb(*colour.rgb).downgrade(ColorSystem.EIGHT_BIT).number
    assert number is not None
    return Color(*EIGHT_BIT_PALETTE[number])


def test_a_theme_with_only_a_primary_colour_is_completed(tmp_path: Path):
    (tmp_path / "mine.toml").write_text('[colours]\nprimary = "#336699"\n')
    found, problems = find_themes(tmp_path)
    assert "mine" in found and not problems
    assert set(MEANINGS) <= set(as_textual(found["mine"]).variables)


@pytest.mark.parametrize(
    "text",
    [
        "not toml at all [",
        '[colours]\naccent = "#ffffff"\n',
        '[colours]\nprimary = "bluish"\n',
        '[colours]\nprimary = "#336699"\n[meanings]\nstage-runing = "#ffffff"\n',
        "[colours]\nprimary = 3\n",
        'colours = "blue"\n',
        'unknown = 1\n[colours]\nprimary = "#336699"\n',
        "\xff\xfe",
    ],
)
def test_broken_themes_are_one_notice_and_the_others_still_load(tmp_path: Path, text: str):
    (tmp_path / "broken.toml").write_text(text, encoding="latin-1")
    (tmp_path / "broken2.toml").write_text(text, encoding="latin-1")
    (tmp_path / "good.toml").write_text('[colours]\nprimary = "#336699"\n')
    found, problems = find_themes(tmp_path)
    assert {"good", DEFAULT} <= set(found)
    assert len(problems) == 1 and "broken.toml" in problems[0] and "broken2.toml" in problems[0]


def test_an_error_names_the_entry(tmp_path: Path):
    path = tmp_path / "broken.toml"
    path.write_text('[colours]\nprimary = "bluish"\n')
    with pytest.raises(ThemeError, match="bluish"):
        as_textual(load_theme(path))


def _contrast(one: object, other: object) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: object) -> float:
    channels = [value / 255 for value in colour.rgb]  # type: ignore[attr-defined]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
