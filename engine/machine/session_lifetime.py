"""What a run survives: always its terminal; a logout, unless systemd's login manager kills remaining processes, even in tmux.

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

"""The field in stage toolchain's result: whether a logout ends the run."""
ASK_SECONDS = 5.0
CGROUP = Path("/proc/self/cgroup")
"""Where the kernel lists the control groups of this process."""

_SESSION = re.compile(r"/session-[\w.-]+\.scope")
_USER_MANAGER = re.compile(r"/user@\d+\.service")


@dataclass(frozen=True)
class LogoutBehaviour:
    ends_the_run: bool
    detail: str
    """Why, and how to prevent it."""


def in_multiplexer() -> bool:
    """Whether tmux or screen holds the terminal, so that a dropped connection ends nothing."""
    return bool(os.environ.get("TMUX") or os.environ.get("STY"))


def logout_behaviour() -> LogoutBehaviour | None:
    """What a logout does to this process. None outside a login (a scheduler's job, a container), or if unknown."""
    try:
        belongs = CGROUP.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    in_session, in_manager = _SESSION.search(belongs), _USER_MANAGER.search(belongs)
    loginctl = shutil.which("loginctl")
    if loginctl is None or not (in_session or in_manager):
        return None
    manager, user = _properties(loginctl), _properties(loginctl, str(os.getuid()))
    if "KillUserProcesses" not in manager or "Linger" not in user:
        return None
    if in_session and _kills(manager, user.get("Name", "")):
        mend = "`loginctl enable-linger`, then start it in `systemd-run --user --scope tmux`"
        return LogoutBehaviour(True, f"ends this run, even in tmux (KillUserProcesses=yes); to prevent it: {mend}")
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
    """Properties of a user or, without one, of the login manager itself; empty without a response."""
    try:
        answer = run_child([loginctl, "show-user", *user], limit_seconds=ASK_SECONDS)
    except PreconditionError:
        return {}
    return dict(line.split("=", 1) for line in answer.output if "=" in line) if answer.ok else {}
