"""The lines that bring an archive home from another machine, check it and unpack it there."""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
import shlex
import socket
from collections.abc import Sequence
from pathlib import Path

SSH_PORT = "22"
_PLAIN = re.compile(r"[\w@%+=:,./-]")


def scp_line(files: Sequence[Path], *, connection: str, user: str, host: str) -> str:
    """One line that copies `files` from this machine into the current folder of the one where it is typed.

    connection   SSH_CONNECTION: client address and port, then the server address and port that the person connected to;
                 empty, or of another shape, if nobody came by SSH
    user         empty: who types the line is called the same over there
    host         this machine's name, for where `connection` tells no address
    """
    address, port = _server_of(connection)
    at = f"{user}@" if user else ""
    option = [] if port == SSH_PORT else ["-P", port]
    sources = [f"{at}{address or host}:{_for_remote_shell(str(file))}" for file in files]
    return shlex.join(["scp", *option, *sources, "."])


def scp_line_of_this_machine(files: Sequence[Path]) -> str:
    return scp_line(
        files, connection=os.environ.get("SSH_CONNECTION", ""), user=_login_name(), host=socket.gethostname()
    )


def check_line(hash_file: Path) -> str:
    return shlex.join(["sha256sum", "-c", _as_operand(hash_file.name)])


def unzip_line(archive: Path) -> str:
    return shlex.join(["unzip", _as_operand(archive.name)])


def _server_of(connection: str) -> tuple[str, str]:
    """(server address, as scp takes it; port). An address that means something on this machine only is none."""
    parts = connection.split()
    try:
        address = ipaddress.ip_address(parts[2])
    except (IndexError, ValueError):
        return "", SSH_PORT
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            return "", SSH_PORT
        address = address.ipv4_mapped or address
    port = parts[3] if len(parts) > 3 and parts[3].isdigit() else SSH_PORT
    return f"[{address}]" if address.version == 6 else str(address), port


def _for_remote_shell(path: str) -> str:
    """Backslashes before what is special: the remote shell, through which scp -O and scp before OpenSSH 9 go, takes them
    away, and so does the matching of names in scp since. Quotes would be part of the name there. A character that would
    break the line is matched by a question mark.
    """
    return "".join(
        "?" if not character.isprintable() else character if _PLAIN.match(character) else f"\\{character}"
        for character in path
    )


def _as_operand(name: str) -> str:
    return f"./{name}" if name.startswith("-") else name


def _login_name() -> str:
    """As the system has it: what the environment says may be another's. Empty if the user has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""
