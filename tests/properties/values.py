"""Strategies that several property tests share."""

from __future__ import annotations

from hypothesis import strategies as st

UNUSUAL = st.sampled_from(
    [
        "\0",
        "\n",
        "\r\n",
        "\u2028",
        "\x85",
        "\ud800",
        "\ufeff",
        "\u202e",
        "\x1b[2J",
        "\x9b",
        '"',
        "\\",
        "é",
        "漢",
        "👩‍👩‍👧",
    ]
)
TEXT = st.lists(st.one_of(st.text(max_size=6), UNUSUAL), max_size=4).map("".join)
PRINTABLE_TEXT = TEXT.map(lambda text: "".join(filter(str.isprintable, text)))
"""Text without characters that a person cannot type."""
NUMBER = st.one_of(st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False))
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBER, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
RECORD = st.dictionaries(TEXT, PLAIN, max_size=4)
