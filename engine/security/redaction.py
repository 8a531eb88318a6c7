"""Mask tokens in all text that leaves this process, by their values and by the pattern of Hub tokens.

Every `Secret` registers its value here. The log, the events, `run.json` and error messages go through `redact`, so that a
token in the message of a library's exception is never written to a file.
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
MIN_SECRET_CHARACTERS = 8
"""Shorter values are not masked, because they would match inside ordinary words."""

# In a user token, only letters and digits follow `hf_`; `hf_hub_download_to_cache_dir` is a function.
_LOOKS_LIKE_A_TOKEN = re.compile(r"hf_(?:oauth_[\w.-]{20,}|[A-Za-z0-9]{20,})")
_BEGINS_A_RECORD = re.compile(r"\d{4}-\d\d-\d\d")
_known: set[str] = set()

Value = TypeVar("Value")


def register_secret(value: str) -> None:
    """Mask `value` from now on, even if it does not look like a token."""
    if len(value) >= MIN_SECRET_CHARACTERS:
        _known.add(value)


def redact(text: str) -> str:
    for value in sorted(_known, key=len, reverse=True):  # a longer one may contain a shorter one
        if value in text:
            text = text.replace(value, MASK)
    return _LOOKS_LIKE_A_TOKEN.sub(MASK, text) if "hf_" in text else text


def redacted(value: Value) -> Value:
    """A copy of plain data, or of a dataclass with plain data, in which every string is redacted."""
    return _redacted(value)  # type: ignore[no-any-return]


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {_redacted(key): _redacted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_redacted(item) for item in value]
        return (
            value._make(items) if hasattr(value, "_make") else type(value)(items)
        )  # a named tuple takes its items as separate arguments
    if is_dataclass(value) and not isinstance(value, type):
        return _redacted_fields(value)
    return value


def _redacted_fields(value: Any) -> Any:
    before = {field.name: getattr(value, field.name) for field in fields(value)}
    after = {name: _redacted(item) for name, item in before.items()}
    return value if after == before else replace(value, **after)


class RedactedRecord(logging.LogRecord):
    """A log record without tokens, whichever handler writes it: libraries may install their own handlers."""

    def getMessage(self) -> str:
        return redact(super().getMessage())


class LogFormatter(logging.Formatter):
    """Also redacts the traceback, which a record stores separately from its message. Makes control characters visible, and
    indents lines that look like the start of another record.
    """

    def format(self, record: logging.LogRecord) -> str:
        first, *more = visible(redact(super().format(record))).split("\n")
        return "\n".join([first, *(f" {line}" if _BEGINS_A_RECORD.match(line) else line for line in more)])


def redact_this_process() -> None:
    """From now on, mask tokens in log records and in tracebacks of uncaught exceptions: the values of `Secret`s and those in
    environment variables.
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
