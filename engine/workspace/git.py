"""git, asked so that a repository which others made runs nothing here, and git asks nobody anything.

Two kinds of call: one that fetches (`Source`: nothing of this person's configuration, one protocol), and one that looks at a
folder which is there (`UntrustedRepo`: no protocol at all). What such a folder's own configuration could start is switched off on
the command line, which goes before it.
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

QUERY_SECONDS = 60.0
"""Limit of every call that moves no repository."""
STALL_SECONDS = 60
"""A transfer over https that is slower than STALL_BYTES a second for so long is given up."""
STALL_BYTES = 1000

_QUIET_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.ext.allow=never",
    "credential.helper=",
    "submodule.recurse=false",
    "core.quotePath=false",
    "gc.auto=0",  # these two would go on in the background
    "maintenance.auto=false",
    f"http.lowSpeedLimit={STALL_BYTES}",
    f"http.lowSpeedTime={STALL_SECONDS}",
)
_ASK_NOBODY = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "/bin/false", "SSH_ASKPASS": "/bin/false", "LC_ALL": "C"}
# GIT_CONFIG_GLOBAL is known from git 2.32 on; an older one reads this person's configuration too, which is theirs.
_NO_CONFIG = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_LFS_SKIP_SMUDGE": "1"}
_PROTOCOL = {"https": "https", "path": "file", "ssh": "ssh"}
# No questions, no agent and no ports for the other side. Which host keys are good is for ~/.ssh to say.
_SSH = (
    "ssh -a -x -o BatchMode=yes -o ForwardAgent=no -o ForwardX11=no -o ClearAllForwardings=yes "
    "-o PermitLocalCommand=no -o ConnectTimeout=30"
)
_FILTER_KEY = re.compile(r"filter\.[A-Za-z0-9_.-]+\.[a-z]+")


def git(*arguments: str) -> list[str]:
    """The command line of a call: nothing of the repository's runs, whatever its configuration says."""
    config = [part for setting in _QUIET_CONFIG for part in ("-c", setting)]
    return ["git", *config, *arguments]


def fetch_environment(source: Source) -> dict[str, str]:
    """The environment of a call that may reach `source`, by its one protocol."""
    environment = {**_ASK_NOBODY, **_NO_CONFIG, "GIT_ALLOW_PROTOCOL": _PROTOCOL[source.kind]}
    if source.kind == "ssh":
        environment |= {"GIT_SSH_COMMAND": _SSH, "GIT_SSH_VARIANT": "ssh"}
        # Asked for by --allow-ssh: the agent may prove who this is, it is not passed on.
        environment |= {key: os.environ[key] for key in ("SSH_AUTH_SOCK",) if key in os.environ}
    return environment


def ask(
    folder: Path, environment: Mapping[str, str], *arguments: str, limit_seconds: float = QUERY_SECONDS
) -> ChildResult:
    """What git says about `folder`, without a lock in it. Raises PreconditionError if git cannot be started."""
    argv = git("--no-optional-locks", "-C", str(folder), *arguments)
    return run_child(argv, limit_seconds=limit_seconds, extra=environment)


class UntrustedRepo:
    """A folder that is here, whoever made it. It is looked at, never changed, and nothing of it runs.

    alone   only the folder itself counts, not a repository that it lies in
    """

    def __init__(self, folder: Path, *, alone: bool) -> None:
        self.folder = folder
        # An object that is not there would be fetched from where the folder's configuration says.
        self._environment = {**_ASK_NOBODY, "GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}
        if alone:
            self._environment["GIT_CEILING_DIRECTORIES"] = str(folder.parent)

    def ask(self, *arguments: str) -> ChildResult:
        """Raises PreconditionError if git cannot be started, or if the folder's filters cannot be switched off."""
        if not self._configuration.ok:
            return self._configuration  # git says of this folder why it does not look into it
        return ask(self.folder, self._environment, *self._without_filters, *arguments)

    @cached_property
    def _configuration(self) -> ChildResult:
        return ask(self.folder, self._environment, "config", "--list", "--name-only")

    @cached_property
    def _without_filters(self) -> tuple[str, ...]:
        """`git status` runs the filters of .gitattributes over files whose time has changed, and the commands of those
        are in the folder's configuration: `filter.NAME.clean`. All are emptied, git-lfs too: it runs what `lfs.extension`
        names (so a large file whose time has changed counts as a changed file). What the command line cannot carry to
        the letter is refused.
        """
        keys = self._configuration.output
        filters = {key for key in keys if key.startswith("filter.") and key.count(".") > 1}
        strange = [key for key in sorted(filters) if not _FILTER_KEY.fullmatch(key)]
        if strange or len(keys) >= MAX_LINES:
            raise PreconditionError(
                f"Refusing to run git in {visible_line(str(self.folder))}.",
                f"Its configuration has {visible_line(strange[0], 100) if strange else f'{len(keys)} lines or more'}, "
                "and git would run filters that are named there.",
                "Check its .git/config yourself.",
            )
        names = sorted({key.removeprefix("filter.").rpartition(".")[0] for key in filters})
        empty = ("clean=", "smudge=", "process=", "required=false")
        return tuple(part for name in names for what in empty for part in ("-c", f"filter.{name}.{what}"))
