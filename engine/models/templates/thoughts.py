"""The tags around a thought: `<think>`, `[THINK]`, `<|channel>thought` and others, and their closing tags."""

from __future__ import annotations

import re

_NAME = r"(?:think|thinking|thought|thoughts|reasoning)"
_OPENS = (
    rf"<[|｜]?(?:[a-z]+:)?(?:start_|begin_of_)?{_NAME}(?:_start)?[|｜]?>"
    rf"|\[{_NAME}\]|◁{_NAME}▷|<\|inner_prefix\|>"
    r"|<\|channel\|?>\s*(?:thought|analysis)\s*(?:<\|message\|>)?"
)
_CLOSES = (
    rf"</[|｜]?(?:[a-z]+:)?{_NAME}[|｜]?>|<[|｜]?(?:end_|end_of_){_NAME}[|｜]?>|<[|｜]?{_NAME}_end[|｜]?>"
    rf"|\[/{_NAME}\]|◁/{_NAME}▷|<\|inner_suffix\|>|<channel\|>"
)
_TAG = re.compile(rf"(?P<opens>{_OPENS})|(?P<closes>{_CLOSES})", re.IGNORECASE)
_THOUGHT = re.compile(rf"\A\s*(?:(?:{_OPENS}).*?|[^<\[◁]*)(?:{_CLOSES})\s*", re.IGNORECASE | re.DOTALL)


def opens_thought(text: str) -> bool:
    """Whether a thought starts in `text` and is still open at its end."""
    tags = list(_TAG.finditer(text))
    return bool(tags) and tags[-1].lastgroup == "opens"


def closes_thought(text: str) -> bool:
    """Whether a thought ends in `text` and none is open at its end."""
    return has_thought(text) and not opens_thought(text)


def has_thought(text: str) -> bool:
    return _TAG.search(text) is not None


def without_thought(text: str) -> str:
    """Remove a thought from the start of a reply, even if it was opened before the reply."""
    return _THOUGHT.sub("", text, count=1)
