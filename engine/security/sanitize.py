"""Sanitize untrusted text before it reaches a terminal, a log or a title.

Untrusted text is model output, dataset text, file names, output of child processes and error messages. Characters that could
control a terminal are made visible, and the rest is kept. Screens must also never parse untrusted text as markup.
"""

from __future__ import annotations

import re

_ZERO_WIDTH_AND_BIDI = "\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_UNSAFE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029{_ZERO_WIDTH_AND_BIDI}]")


def visible(text: str) -> str:
    """`text` with control characters, escape sequences, bidi and zero-width characters and lone surrogates made visible;
    newline and tab stay. CRLF and a lone CR become newlines.
    """
    return _UNSAFE.sub(_escaped, text.replace("\r\n", "\n").replace("\r", "\n"))


def visible_line(text: str, limit: int | None = None) -> str:
    """The same on one line: whitespace becomes single spaces. Text longer than `limit` characters is cut and ends in "…"."""
    line = _UNSAFE.sub(_escaped, re.sub(r"\s+", " ", text).strip())
    if limit is not None and len(line) > limit:
        return f"{line[: max(limit - 1, 0)]}…"
    return line


def lone_surrogate(text: str) -> str:
    """The first lone surrogate in a text, escaped; empty if there is none. JSON allows it, but no file or tokenizer does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return ""


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)  # ␀ to ␟, the pictures of the control characters
    if code == 0x7F:
        return "␡"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
