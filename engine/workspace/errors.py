"""Classify git's failures by its messages: an exit code and a next step for each."""

from __future__ import annotations

import re

from engine.core.errors import AccessError, NetworkError, PreconditionError, Stage3Error
from engine.core.system_errors import PERMISSION_ERRNOS, errno_in, error_of_errno
from engine.process.children import ChildResult
from engine.security.sanitize import visible_line

# The first match counts: a rejected login, for example, also closes the connection.
_PATTERNS: tuple[tuple[str, type[Stage3Error], str], ...] = (
    (
        r"dubious ownership|safe\.directory",
        PreconditionError,
        "It belongs to another user, so git does not trust it. Clone it yourself and pass its folder with --repo-root.",
    ),
    (
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        AccessError,
        "ssh does not trust that host yet. Connect to it once (`ssh HOST`), check its key, then run the same command again.",
    ),
    (
        r"could not read (Username|Password)|Authentication failed|terminal prompts disabled|error: 40[13]|access denied"
        r"|Permission denied \((publickey|password|keyboard)",
        AccessError,
        "It is private or does not exist. Clone it yourself, with your own login, and pass its folder with --repo-root.",
    ),
    (
        r"repository .*(not found|does not exist)|does not appear to be a git repository",
        PreconditionError,
        "Correct --repo-url, or clone it yourself and pass --repo-root.",
    ),
    (
        r"transport '\S+' not allowed",
        PreconditionError,
        "It redirects to another protocol. Pass that address directly.",
    ),
    (
        r"Could not resolve|Failed to connect|Connection|timed out|early EOF|hung up unexpectedly|unexpected disconnect"
        r"|invalid index-pack|bad pack header|transfer closed|unable to access|RPC failed|SSL|TLS|too slow|bytes/sec"
        r"|expected flush|protocol error|Could not read from remote repository",
        NetworkError,
        "Check the network and the proxy (https_proxy; git's own configuration is not used), then run the same command "
        "again. No partial clone is left.",
    ),
)


def git_failure(what: str, result: ChildResult) -> Stage3Error:
    """The error for a failed git command. `what`: what failed, as a sentence without its full stop."""
    why = f"git: {visible_line(result.ending, 600)}"
    if result.timed_out:
        return NetworkError(f"{what}.", why, "Check the network, then run the same command again.")
    if result.killed_by:
        why = f"It was killed, or memory ran out. {why}"
        return NetworkError(f"{what}.", why, "Run the same command again. No partial clone is left.")
    output = " ".join(result.tail)
    number = errno_in(output)
    if number is not None and number not in PERMISSION_ERRNOS:  # comes first: it also ends a transfer
        return error_of_errno(number, f"{what}.", why)
    for pattern, kind, what_to_do in _PATTERNS:
        if re.search(pattern, output, re.IGNORECASE):
            return kind(f"{what}.", why, what_to_do)
    return PreconditionError(f"{what}.", why, "Fix what git reports, or clone it yourself and pass --repo-root.")
