"""Run git so that nothing in an untrusted repository is executed, and git never prompts.

There are two kinds of commands: those that fetch from a `Source` (without the user's configuration, over one protocol), and
those that inspect an existing folder (`UntrustedRepo`, without any protocol). Whatever the folder's own configuration could
execute is disabled on the command line, which takes precedence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from engine.core.errors import PreconditionError
from engine.process.children import ChildResult, run_child
from engine.process.output import MAX_LINES
from engine.security.sanitize import visible_line
from engine.workspace.urls import Source

COMMAND_SECONDS = 60.0
"""Time limit of every command that transfers no repository."""
STALL_SECONDS = 60
"""A transfer over https that stays below STALL_BYTES per second for this long is aborted."""
STALL_BYTES = 1000

_QUIET_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.ext.allow=never",
    "credential.helper=",
    "submodule.recurse=false",
    "core.quotePath=false",
    "gc.auto=0",  # these two would continue in the background
    "maintenance.auto=false",
    f"http.lowSpeedLimit={STALL_BYTES}",
    f"http.lowSpeedTime={STALL_SECONDS}",
)
_NO_PROMPTS = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "/bin/false", "SSH_ASKPASS": "/bin/false", "LC_ALL": "C"}
# Before 2.32, git ignores GIT_CONFIG_GLOBAL and reads the user's configuration, which is trusted anyway.
_NO_CONFIG = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_LFS_SKIP_SMUDGE": "1"}
_PROTOCOL = {"https": "https", "path": "file", "ssh": "ssh"}
# No prompts, and no forwarding of agent or ports to the server. Host keys are checked as ~/.ssh is configured.
_SSH = (
    "ssh -a -x -o BatchMode=yes -o ForwardAgent=no -o ForwardX11=no -o ClearAllForwardings=yes "
    "-o PermitLocalCommand=no -o ConnectTimeout=30"
)
_FILTER_KEY = re.compile(r"filter\.[A-Za-z0-9_.-]+\.[a-z]+")


def git_command(*arguments: str) -> list[str]:
    """The command line of a git command that executes nothing from the repository, whatever its configuration."""
    config = [part for setting in _QUIET_CONFIG for part in ("-c", setting)]
    return ["git", *config, *arguments]


def fetch_environment(source: Source) -> dict[str, str]:
    """The environment of a command that may connect to `source`, over its protocol only."""
    environment = {**_NO_PROMPTS, **_NO_CONFIG, "GIT_ALLOW_PROTOCOL": _PROTOCOL[source.kind]}
    if source.kind == "ssh":
        environment |= {"GIT_SSH_COMMAND": _SSH, "GIT_SSH_VARIANT": "ssh"}
        # Allowed by --allow-ssh: the local agent may authenticate, but it is not forwarded.
        environment |= {key: os.environ[key] for key in ("SSH_AUTH_SOCK",) if key in os.environ}
    return environment


def run_git(
    folder: Path, environment: Mapping[str, str], *arguments: str, limit_seconds: float = COMMAND_SECONDS
) -> ChildResult:
    """Run git in `folder` without taking optional locks. Raises PreconditionError if git cannot be started."""
    argv = git_command("--no-optional-locks", "-C", str(folder), *arguments)
    return run_child(argv, limit_seconds=limit_seconds, extra=environment)


class UntrustedRepo:
    """An existing folder of unknown origin. It is read, never changed, and nothing in it is executed.

    alone   only the folder itself counts, not a repository that contains it
    """

    def __init__(self, folder: Path, *, alone: bool) -> None:
        self.folder = folder
        # git would fetch a missing object from the address in the folder's configuration.
        self._environment = {**_NO_PROMPTS, "GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}
        if alone:
            self._environment["GIT_CEILING_DIRECTORIES"] = str(folder.parent)

    def query(self, *arguments: str) -> ChildResult:
        """Raises PreconditionError if git cannot be started, or if the folder's filters cannot be disabled."""
        if not self._configuration.ok:
            return self._configuration  # it has git's reason for refusing this folder
        return run_git(self.folder, self._environment, *self._without_filters, *arguments)

    @cached_property
    def _configuration(self) -> ChildResult:
        return run_git(self.folder, self._environment, "config", "--list", "--name-only")

    @cached_property
    def _without_filters(self) -> tuple[str, ...]:
        """Options that disable all filters of the folder's configuration.

        `git status` runs the filters that .gitattributes names on files whose time has changed, with the commands in the
        folder's configuration (`filter.NAME.clean`). git-lfs is disabled, too, because it executes `lfs.extension` (so a
        large file whose time has changed counts as changed). A filter name that cannot be passed literally on the command
        line is refused.
        """
        keys = self._configuration.output
        filters = {key for key in keys if key.startswith("filter.") and key.count(".") > 1}
        unsafe = [key for key in sorted(filters) if not _FILTER_KEY.fullmatch(key)]
        if unsafe or len(keys) >= MAX_LINES:
            raise PreconditionError(
                f"Refusing to run git in {visible_line(str(self.folder))}.",
                f"Its configuration has {visible_line(unsafe[0], 100) if unsafe else f'{len(keys)} lines or more'}, "
                "and git would run the filters that it defines.",
                "Check its .git/config yourself.",
            )
        names = sorted({key.removeprefix("filter.").rpartition(".")[0] for key in filters})
        disabled = ("clean=", "smudge=", "process=", "required=false")
        return tuple(part for name in names for setting in disabled for part in ("-c", f"filter.{name}.{setting}"))
