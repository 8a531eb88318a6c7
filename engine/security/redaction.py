"""Tokens are taken out of every text that leaves this process: by their value, and by what a Hub token looks like.

Every `Secret` makes its value known here. The log, the events, `run.json` and the texts of failures go through `redact`; so a
library that puts a token into an exception's text puts it into no file.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from dataclasses import fields, is_dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

from engine.security.sanitize import visible

MASK = "***"
SHORTEST = 8
"""A known value of fewer characters is not looked for: it would be found inside of words."""

# What follows `hf_` in a user's token is letters and digits alone; `hf_hub_download_to_cache_dir` is a function.
_LOOKS_LIKE_A_TOKEN = re.compile(r"hf_(?:oauth_[\w.-]{20,}|[A-Za-z0-9]{20,})")
_BEGINS_A_RECORD = re.compile(r"\d{4}-\d\d-\d\d")
_known: set[str] = set()

Value = TypeVar("Value")


def register_secret(value: str) -> None:
    """Mask `value` from now on, whatever it looks like."""
    if len(value) >= SHORTEST:
        _known.add(value)


def redact(text: str) -> str:
    for value in sorted(_known, key=len, reverse=True):  # a longer one may hold a shorter one
        if value in text:
            text = text.replace(value, MASK)
    return _LOOKS_LIKE_A_TOKEN.sub(MASK, text) if "hf_" in text else text


def redacted(value: Value) -> Value:
    """The same plain data, or dataclass of plain data, with every text in it redacted."""
    return _redacted(value)  # type: ignore[no-any-return]


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {_redacted(key): _redacted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_redacted(item) for item in value]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)  # a named tuple takes them apart
    if is_dataclass(value) and not isinstance(value, type):
        return _redacted_fields(value)
    return value


def _redacted_fields(value: Any) -> Any:
    before = {field.name: getattr(value, field.name) for field in fields(value)}
    after = {name: _redacted(item) for name, item in before.items()}
    return value if after == before else replace(value, **after)


class RedactedRecord(logging.LogRecord):
    """A log record that shows no token, whichever handler writes it: libraries have handlers of their own."""

    def getMessage(self) -> str:
        return redact(super().getMessage())


class LogFormatter(logging.Formatter):
    """Redacts the traceback too, which a record holds apart from its message. What would drive the terminal of whoever prints
    the log is spelt out, and no line of a message looks like the beginning of another record.
    """

    def format(self, record: logging.LogRecord) -> str:
        first, *more = visible(redact(super().format(record))).split("\n")
        return "\n".join([first, *(f" {line}" if _BEGINS_A_RECORD.match(line) else line for line in more)])


def redact_this_process() -> None:
    """From now on no log record, and no traceback of an exception that nobody caught, shows a token: neither one that is a
    `Secret` here, nor one in a variable.
    """
    for name, value in os.environ.items():
        if name.endswith("_TOKEN"):
            register_secret(value.strip())
    logging.setLogRecordFactory(RedactedRecord)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if sys.stderr is not None:
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
