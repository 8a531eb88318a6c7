"""Read the Hub's responses: its message, how long to wait, and whether it is a web page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from engine.core.nesting import parse_untrusted_json
from engine.security.redaction import redact
from engine.security.sanitize import visible_line

if TYPE_CHECKING:
    from httpx2 import Response

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses worth a retry."""


def message_of(response: Response) -> str:
    """The server's message in one line, with the token redacted."""
    text = response.headers.get("X-Error-Message") or _error_in(response)
    return redact(visible_line(str(text), 300))


def _error_in(response: Response) -> object:
    try:
        payload = parse_untrusted_json(response.content)
    except Exception:  # unread, missing or not JSON: no message
        return ""
    return (payload.get("error") if isinstance(payload, dict) else None) or ""


def retry_after(response: Response) -> float:
    """Seconds that the Hub asks to wait, from `Retry-After` or `RateLimit`; 0 if both are missing, or for a date."""
    value = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,6}(\.\d+)?", value):
        return float(value)
    window = re.search(r"\br=0\s*;\s*t=(\d{1,6})", response.headers.get("RateLimit", ""))
    return float(window[1]) if window else 0.0


def is_html(response: Response) -> bool:
    """Whether it is a web page, which the Hub's API never returns."""
    from_the_hub = "X-Error-Code" in response.headers or "X-Error-Message" in response.headers
    return "html" in response.headers.get("Content-Type", "").lower() and not from_the_hub
