"""Unwraps values that tools nest: messages stored as a string, a text in a one-element list or an object, bytes instead
of text.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from engine.pairs.formats.values import NAMES_OF_ROLES
from engine.storage.jsonl import loads

_MESSAGES = re.compile(r"""\s*(?:\[\s*)?\{\s*["'](?:role|from|content|value)["']\s*:""")
"""The beginning of messages that were written as JSON, or printed by Python, numpy or DuckDB."""
_NUMPY_GAP = re.compile(r"\}\s*\n\s*\{")
"""numpy prints no commas. A line break between two objects cannot be part of a text, where it is printed as `\\n`."""
MAX_LITERAL_CHARACTERS = 1 << 20
"""Longest text that is parsed as a Python literal."""


def unwrapped(value: Any, key: str) -> Any:
    """The text or the messages inside a value. Other values are returned unchanged.

    Raises ValueError for a text that begins like messages but cannot be parsed, because it would train as it is.
    """
    if isinstance(value, str):
        return _parsed(value, key) if _MESSAGES.match(value) else value
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return unwrapped(value[0], key)
    if isinstance(value, dict) and not any(isinstance(value.get(name), str) for name in NAMES_OF_ROLES):
        texts = [value[name] for name in ("text", "content", "value") if isinstance(value.get(name), str)]
        return texts[0] if texts else value
    return value


def _parsed(text: str, key: str) -> Any:
    for read in (loads, _python, _numpy):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError(f"{key} is a text that begins like a list of messages, but is neither JSON nor Python")


def _python(text: str) -> Any:
    if len(text) > MAX_LITERAL_CHARACTERS:
        raise ValueError("too long")
    return ast.literal_eval(text.strip())


def _numpy(text: str) -> Any:
    return _python(_NUMPY_GAP.sub("}, {", text))


def as_text(value: Any) -> Any:
    """The value with UTF-8 bytes decoded, also inside lists and objects: Spark and Impala write texts as bytes to Parquet.

    Other bytes, such as pictures, are kept.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, list):
        return [as_text(each) for each in value]
    if isinstance(value, dict):
        return {name: as_text(each) for name, each in value.items()}
    return value
