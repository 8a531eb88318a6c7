"""Scan files before they are shared: for the values of known secrets, and for text that looks like a secret.

Known secrets are always refused. A lookalike in the text of models and people is refused with its file and line until a person
decides: reject the pair, whose record is then left out, or accept all findings with a reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from engine.core import layout
from engine.core.errors import UnsafeError
from engine.core.layout import ADAPTER_WEIGHTS
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret
from engine.storage.jsonl import loads

FREE_TEXT_FILES = frozenset(
    {
        layout.PAIRS_JSONL,
        layout.EDITS_JSONL,
        layout.TRAIN_JSONL,
        layout.EVAL_JSONL,
        layout.PAIRS_REPORT,
        layout.EVALUATION_REPORT,
    }
)
"""Files with texts of models and people, in which a lookalike may be accepted."""
SHORTEST_SECRET = 12
"""Shorter values of variables are not secrets, or may be ordinary words."""
MAX_LISTED = 5
"""Findings listed in an error; the others are counted."""

_NAMED_LIKE_A_SECRET = re.compile(r".*(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY)", re.IGNORECASE)
# (description, prefixes, full pattern). Searching for the prefixes first is fast, even in tens of megabytes.
_SHAPES: tuple[tuple[str, tuple[bytes, ...], bytes], ...] = (
    ("a Hugging Face token", (b"hf_",), rb"(?<![A-Za-z0-9])hf_(?:[A-Za-z0-9]{20,}|oauth_[\w.-]{20,})"),
    ("a Hugging Face token", (b"api_org_",), rb"(?<![A-Za-z0-9])api_org_[A-Za-z0-9]{20,}"),
    ("a private key", (b"-----BEGIN ",), rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    (
        "an AWS access key",
        (b"AKIA", b"ASIA", b"ABIA", b"ACCA"),
        rb"(?<![A-Za-z0-9])[A-Z]{4}[A-Z0-9]{16}(?![A-Za-z0-9])",
    ),
    (
        "an AWS secret key",
        (b"aws", b"AWS"),
        rb"(?i:aws_?secret_?access_?key)[\"'\\]*\s*[=:]\s*[\"'\\]*[A-Za-z0-9/+=]{40}(?![A-Za-z0-9/+=])",
    ),
    ("a GitHub token", (b"gh",), rb"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{30,}"),
    ("a GitHub token", (b"github_pat_",), rb"(?<![A-Za-z0-9])github_pat_\w{22,}"),
    ("a GitLab token", (b"glpat-",), rb"(?<![A-Za-z0-9])glpat-[\w-]{20,}"),
    ("a Google key", (b"AIza",), rb"(?<![A-Za-z0-9])AIza[\w-]{35}(?![\w-])"),
    ("a Slack token", (b"xox",), rb"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,}"),
    ("a key of OpenAI's or Anthropic's kind", (b"sk-",), rb"(?<![\w-])sk-(?=[\w-]*[0-9])[\w-]{20,}"),
)


@dataclass(frozen=True)
class Finding:
    """The place and kind of a secret, never the secret itself."""

    file: str
    line: int
    """Counted from 1; 0 in a file without lines."""
    what: str
    known: bool
    """Whether it is the value of a known secret rather than a lookalike."""
    record: str = ""
    """The id of the record that contains it, if any."""

    @property
    def may_be_accepted(self) -> bool:
        return not self.known and self.file in FREE_TEXT_FILES

    def __str__(self) -> str:
        line = f", line {self.line}" if self.line else ""
        record = f" (pair {visible_line(self.record, 40)})" if self.record else ""
        return f"{self.what} in {self.file}{line}{record}"


def known_secrets(token: Secret | None) -> dict[str, Secret]:
    """The secrets of this process by description: the run's token, and variables named like a secret."""
    known = {
        f"the value of {name}": Secret(value)
        for name, value in sorted(os.environ.items())
        if _NAMED_LIKE_A_SECRET.fullmatch(name) and len(value.strip()) >= SHORTEST_SECRET and "/" not in value[:1]
    }
    return {**({"the token of this run": token} if token else {}), **known}


def find_secrets(files: Mapping[str, bytes], known: Mapping[str, Secret]) -> list[Finding]:
    """All findings, by file and line. Weights are searched only for known values."""
    found: dict[tuple[str, int], Finding] = {}
    for name, data in files.items():
        for what, secret in known.items():
            value = secret.reveal().strip().encode()
            for start in _places(data, value) if len(value) >= SHORTEST_SECRET else ():
                finding = _finding(name, data, start, what, known=True)
                found.setdefault((name, finding.line), finding)
        for what, start in () if PurePosixPath(name).name == ADAPTER_WEIGHTS else _lookalikes(data):
            finding = _finding(name, data, start, f"what looks like {what}", known=False)
            found.setdefault((name, finding.line), finding)
    return sorted(found.values(), key=lambda finding: (finding.file, finding.line))


def refuse_secrets(findings: Sequence[Finding], *, accepted: bool) -> None:
    """Raise UnsafeError if there are findings; `accepted` allows lookalikes in texts of models and people."""
    refused = [finding for finding in findings if not (accepted and finding.may_be_accepted)]
    if not refused:
        return
    listed = "; ".join(str(finding) for finding in refused[:MAX_LISTED])
    more = f"; and {len(refused) - MAX_LISTED} more" if len(refused) > MAX_LISTED else ""
    raise UnsafeError(
        f"Found {listed}{more}.",
        "An archive is made to be shared, and everyone who gets it would get the secret, too.",
        _what_to_do(refused),
    )


def _what_to_do(refused: Sequence[Finding]) -> str:
    check = "Check it. If it is a real secret, revoke it at its provider"
    if all(finding.may_be_accepted for finding in refused):
        return (
            f"{check}, reject that pair in stage quality, and start again: the adapter is then trained without it. "
            'If it is not a secret, start again with --accept-lookalikes "why".'
        )
    return f"{check}, find out how it got there, remove it, and start again."


def _lookalikes(data: bytes) -> Iterator[tuple[str, int]]:
    for what, prefixes, pattern in _SHAPES:
        shape = re.compile(pattern)
        for prefix in prefixes:
            yield from ((what, start) for start in _places(data, prefix) if shape.match(data, start))


def _places(data: bytes, value: bytes) -> Iterator[int]:
    start = data.find(value)
    while start >= 0:
        yield start
        start = data.find(value, start + 1)


def _finding(name: str, data: bytes, start: int, what: str, *, known: bool) -> Finding:
    if PurePosixPath(name).suffix in (".safetensors", ".model"):
        return Finding(name, 0, what, known)
    begin = data.rfind(b"\n", 0, start) + 1
    end = data.find(b"\n", start)
    line = data[begin : end if end >= 0 else len(data)]
    return Finding(name, data.count(b"\n", 0, start) + 1, what, known, _record_of(name, line))


def _record_of(name: str, line: bytes) -> str:
    if name not in (layout.PAIRS_JSONL, layout.EDITS_JSONL):
        return ""
    try:
        return str(loads(line).get("id", ""))
    except (ValueError, AttributeError):
        return ""
