from __future__ import annotations

import pytest

from engine.security.sanitize import visible, visible_line


@pytest.mark.fault("G1", "G4", "G6")
@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b]52;c;QUFB\x07",
        "\x1b[2J",
        "\x1bc",
        "\x9b31m",
        "a\x08b",
        "\u202eevil",
        "\u200bzero",
        "\ud800",
        "\x7f",
        "\u2028",
    ],
)
def test_nothing_that_controls_a_terminal_is_left(hostile: str):
    for shown in (visible(hostile), visible_line(hostile)):
        assert not any(ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F or 0xD800 <= ord(c) <= 0xDFFF for c in shown)
        assert not set(shown) & {"\u202e", "\u200b", "\u2028"}


@pytest.mark.fault("G1")
def test_an_escape_is_shown_as_a_symbol_and_the_rest_is_kept():
    assert visible("red\x1b[31m text\n\tnext") == "red␛[31m text\n\tnext"


def test_markup_is_text():
    assert visible_line("[/] [@click=app.quit]x[/]") == "[/] [@click=app.quit]x[/]"


def test_a_line_has_no_newline_and_shows_where_it_was_cut():
    assert visible_line("one\n  two\tthree") == "one two three"
    assert visible_line("abcdef", 4) == "abc…"


def test_crlf_and_a_lone_cr_become_newlines():
    assert visible("a\r\nb\rc") == "a\nb\nc"
