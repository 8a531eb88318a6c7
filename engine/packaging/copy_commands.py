"""The commands to copy an archive to another machine, check it and unpack it."""

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


def scp_command(files: Sequence[Path], *, connection: str, user: str, host: str) -> str:
    """The `scp` command, to be run on another machine, that copies `files` from this machine to its current folder.

    connection   SSH_CONNECTION: client address and port, then server address and port; empty or malformed without SSH
    user         the login name on this machine; if empty, scp uses the name on the other one
    host         this machine's name, in case `connection` has no usable address
    """
    address, port = _server_of(connection)
    login = f"{user}@" if user else ""
    option = [] if port == SSH_PORT else ["-P", port]
    sources = [f"{login}{address or host}:{_for_remote_shell(str(file))}" for file in files]
    return shlex.join(["scp", *option, *sources, "."])


def scp_command_of_this_machine(files: Sequence[Path]) -> str:
    return scp_command(
        files, connection=os.environ.get("SSH_CONNECTION", ""), user=_login_name(), host=socket.gethostname()
    )


def check_command(hash_file: Path) -> str:
    return shlex.join(["sha256sum", "-c", _as_operand(hash_file.name)])


def unzip_command(archive: Path) -> str:
    return shlex.join(["unzip", _as_operand(archive.name)])


def _server_of(connection: str) -> tuple[str, str]:
    """(server address in scp's syntax, port). The address is empty if it is missing, or only valid on this machine."""
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
    """Escape special characters with backslashes, and replace unprintable ones by question marks, which match them.

    The remote shell removes the backslashes (scp -O, and scp before OpenSSH 9), and so does the name matching of newer
    versions, where quotes would be part of the name.
    """
    return "".join(
        "?" if not character.isprintable() else character if _PLAIN.match(character) else f"\\{character}"
        for character in path
    )


def _as_operand(name: str) -> str:
    return f"./{name}" if name.startswith("-") else name


def _login_name() -> str:
    """Read from the system, because the environment may be another user's. Empty if the user has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""
