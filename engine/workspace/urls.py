"""Which URLs may be cloned: https addresses, local paths, and with --allow-ssh also ssh. All others are refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from engine.core.errors import PreconditionError, UnsafeError
from engine.security.sanitize import visible, visible_line

Kind = Literal["https", "path", "ssh"]

PASS_ANOTHER = (
    "Pass an https:// address without credentials, or a local path; or clone it yourself and pass --repo-root."
)
_HELPER = re.compile(r"[\w+.-]*::")
_SCP_LIKE = re.compile(r"(?:(?P<user>[^@/:]*)@)?(?P<host>\[[^\]/]*\]|[^@/:\[]+):(?P<path>.*)")
_USER = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A repository that may be cloned."""

    url: str
    kind: Kind

    @property
    def name(self) -> str:
        last = re.split(r"[/:]", self.url.rstrip("/"))[-1]
        return re.sub(r"[^\w.-]", "_", last.removesuffix(".git")).strip(".") or "repository"

    @property
    def shown(self) -> str:
        return visible_line(self.url, 200)


def check_url(url: str, *, allow_ssh: bool = False) -> Source:
    """The repository at `url`. Raises UnsafeError if it could execute code, contains a password, or would use ssh keys without
    permission; PreconditionError for a path that is not a folder.
    """
    if not url or url.startswith("-") or visible(url) != url or re.search(r"[\n\t\\]", url):
        raise _unsafe(url, "It is empty, starts with a dash or contains invalid characters.")
    if _HELPER.match(url):
        raise _unsafe(url, "name:: starts a remote helper, and ext:: can run any command.")
    if "://" in url:
        return _of_address(url, allow_ssh)
    if not Path(url).expanduser().exists() and (scp := _SCP_LIKE.fullmatch(url)):
        return _of_scp(url, scp, allow_ssh)
    return Source(str(_source_folder(url)), "path")


def check_ref(ref: str) -> str:
    """`ref` itself. Raises UnsafeError if it is not a valid name of a branch, tag or commit."""
    if not ref or ref.startswith("-") or visible(ref) != ref or re.search(r"[\s~^:?*\[\\]|\.\.|@\{", ref):
        raise UnsafeError(
            f"--repo-ref {visible_line(ref, 100)!r} is refused.",
            "It is not a valid name of a branch, tag or commit.",
            "Pass a branch, a tag or a commit, such as main.",
        )
    return ref


def _of_address(url: str, allow_ssh: bool) -> Source:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if the port is not a number
    except ValueError as error:
        raise _unsafe(url, f"It is invalid: {visible_line(str(error), 100)}.") from None
    is_ssh = parts.scheme == "ssh"
    if parts.password is not None or (parts.username is not None and not is_ssh):
        raise _unsafe(url, "It contains a name or password, which any process could read.")
    if parts.query or parts.fragment:
        raise _unsafe(url.partition("?")[0].partition("#")[0], "A repository's address has no ? or # part.")
    if is_ssh:
        _check_ssh(url, parts.username, _host_of(parts), allow_ssh)
        return Source(url, "ssh")
    if parts.scheme != "https" or not parts.hostname:
        raise _unsafe(url, f"Only https:// and ssh:// addresses are allowed, not {visible_line(parts.scheme, 20)}://.")
    if not _HOST.fullmatch(_host_of(parts)) or " " in url:
        raise _unsafe(url, "A host name may only contain letters, digits, dots and dashes; others can imitate these.")
    return Source(url, "https")


def _of_scp(url: str, scp: re.Match[str], allow_ssh: bool) -> Source:
    if "@" in scp["path"].partition("/")[0]:  # user:password@host
        raise _unsafe(url, "It contains a name or password, which any process could read.")
    _check_ssh(url, scp["user"], scp["host"], allow_ssh)
    if not scp["path"] or scp["path"].startswith("-"):
        raise _unsafe(url, "It has no path after the colon.")
    return Source(url, "ssh")


def _check_ssh(url: str, user: str | None, host: str, allow_ssh: bool) -> None:
    if not allow_ssh:
        why = "It is an ssh address, for which ssh would use your keys."
        raise _unsafe(url, why, f"Add --allow-ssh to allow that. {PASS_ANOTHER}")
    if (user is not None and not _USER.fullmatch(user)) or not _HOST.fullmatch(host):
        raise _unsafe(url, "ssh could mistake this user or host for an option.")


def _host_of(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return f"[{host}]" if ":" in host else host


def _unsafe(url: str, why: str, what_to_do: str = PASS_ANOTHER) -> UnsafeError:
    # Anything before an @ may be a password, wherever it is.
    masked = re.sub(r"(^|//).*@", r"\1***@", url, flags=re.DOTALL)
    return UnsafeError(f"--repo-url {visible_line(masked, 200)!r} is refused.", why, what_to_do)


def _source_folder(url: str) -> Path:
    path = Path(url).expanduser().resolve()
    if not path.is_dir():
        raise PreconditionError(
            f"--repo-url {visible_line(url, 200)} is not a folder.",
            "It has no scheme, so it is a path.",
            "Pass an https:// address or the path of a git repository.",
        )
    return path
