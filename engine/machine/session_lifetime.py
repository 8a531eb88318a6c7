"""Whether a run survives a logout. It always survives its terminal, but systemd's login manager may kill it at logout, even in
tmux.

KillUserProcesses, KillOnlyUsers and KillExcludeUsers: https://www.freedesktop.org/software/systemd/man/logind.conf.html
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.core.errors import PreconditionError
from engine.process.children import run_child

LOGINCTL_SECONDS = 5.0
CGROUP = Path("/proc/self/cgroup")
"""The file in which the kernel lists the control groups of this process."""

_SESSION = re.compile(r"/session-[\w.-]+\.scope")
_USER_MANAGER = re.compile(r"/user@\d+\.service")


@dataclass(frozen=True)
class LogoutBehaviour:
    ends_the_run: bool
    detail: str
    """The effect of a logout and, if it ends the run, how to prevent that."""


def in_multiplexer() -> bool:
    """Whether the terminal belongs to tmux or screen, so that a dropped connection ends nothing."""
    return bool(os.environ.get("TMUX") or os.environ.get("STY"))


def logout_behaviour() -> LogoutBehaviour | None:
    """The effect of a logout on this process. None outside a login (a scheduler's job, a container), or if unknown."""
    try:
        groups = CGROUP.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    in_session, in_manager = _SESSION.search(groups), _USER_MANAGER.search(groups)
    loginctl = shutil.which("loginctl")
    if loginctl is None or not (in_session or in_manager):
        return None
    manager, user = _properties(loginctl), _properties(loginctl, str(os.getuid()))
    if "KillUserProcesses" not in manager or "Linger" not in user:
        return None
    if in_session and _kills(manager, user.get("Name", "")):
        remedy = "`loginctl enable-linger`, then start it in `systemd-run --user --scope tmux`"
        return LogoutBehaviour(True, f"ends this run, even in tmux (KillUserProcesses=yes); to prevent it: {remedy}")
    if not in_session and user["Linger"] != "yes":
        return LogoutBehaviour(
            True,
            "your last logout ends this run with your user manager (Linger=no); to prevent it: `loginctl enable-linger`",
        )
    return LogoutBehaviour(False, "does not end this run")


def _kills(manager: Mapping[str, str], name: str) -> bool:
    only, exempt = manager.get("KillOnlyUsers", "").split(), manager.get("KillExcludeUsers", "").split()
    return manager["KillUserProcesses"] == "yes" and name not in exempt and (not only or name in only)


def _properties(loginctl: str, *user: str) -> dict[str, str]:
    """The properties of a user or, without one, of the login manager itself; empty if loginctl fails."""
    try:
        result = run_child([loginctl, "show-user", *user], limit_seconds=LOGINCTL_SECONDS)
    except PreconditionError:
        return {}
    return dict(line.split("=", 1) for line in result.output if "=" in line) if result.ok else {}
