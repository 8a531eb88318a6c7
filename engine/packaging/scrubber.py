"""Remove local paths and the names of the machine and the user from what is packed.

Paths that certainly belong to this machine (the run folder, the home folder, values of options) are replaced in every file,
including texts of models and people. In files that only the program writes, every absolute path is reduced to its last part,
and the names of machine and user are replaced. Weights and vocabulary are packed unchanged, because another token would be
another model.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from engine.hub.references import is_local, local_path
from engine.run.folder import Run

SOMEBODY, SOMEWHERE = "somebody", "somewhere"
PATH_OPTIONS = (
    "base_model_id",
    "adapter_path",
    "dataset",
    "pairs",
    "repo_root",
    "repo_url",
    "constitution",
    "few_shot",
    "chat_template",
)
PATH_VARIABLES = ("HOME", "PWD", "HF_HOME", "VIRTUAL_ENV")
# Common names of users and machines: they reveal nothing, and occur in ordinary text.
COMMON_USERS = frozenset({"root", "user", "admin", "ubuntu", "debian", "runner", "ec2-user", "jovyan", "nobody"})
COMMON_HOSTS = frozenset({"localhost", "localhost.localdomain"})
SHORTEST_NAME = 4
"""Shorter names of users or machines may be ordinary words."""

# An absolute path in free text; not part of a URL (https://…), a relative path, or a tag (</a/b>).
_ABSOLUTE = re.compile(r"(?<![\w:/.~<])/(?:[\w.@+~ -]*[\w.@+~-]/)+[\w.@+~-]*")


@dataclass(frozen=True)
class Scrubber:
    """This machine's private words and their replacements."""

    paths: Mapping[str, str]
    """Absolute paths and their replacements, longest first."""
    names: Mapping[str, str]
    """Names of user and machine and their replacements, longest first."""
    logins: tuple[str, ...]
    """Each as `user@machine`."""

    @classmethod
    def of(cls, run: Run) -> Scrubber:
        host, user = socket.gethostname(), _user()
        hosts = {host, host.partition(".")[0]} - COMMON_HOSTS
        names = dict.fromkeys(hosts, SOMEWHERE) | ({} if user in COMMON_USERS else {user: SOMEBODY})
        return cls(
            paths=_private_paths(run),
            names=_longest_first({name: names[name] for name in names if len(name) >= SHORTEST_NAME}),
            logins=tuple(f"{user}@{host}" for host in sorted(hosts, key=len, reverse=True) if user),
        )

    def found_in(self, text: str) -> bool:
        """Whether the text contains a path or a login of this machine, plain or JSON-escaped."""
        return any(word in text or json.dumps(word)[1:-1] in text for word in (*self.paths, *self.logins))

    def scrub_text(self, text: str) -> str:
        """For texts of people and models: replaces only what certainly belongs to this machine."""
        for path, replacement in self.paths.items():
            if path in text:
                text = re.sub(rf"(?<!\w){re.escape(path)}(?![\w-])", lambda _, new=replacement: new, text)  # type: ignore[misc]
        for login in self.logins:
            if login in text:
                text = re.sub(rf"(?<![\w.]){re.escape(login)}(?![\w-])", f"{SOMEBODY}@{SOMEWHERE}", text)
        return text

    def scrub_settings(self, text: str) -> str:
        """For settings: also reduces every absolute path to its last part."""
        return _ABSOLUTE.sub(lambda match: PurePosixPath(match[0]).name, self.scrub_text(text))

    def scrub_records(self, text: str) -> str:
        """For the program's own records: also replaces the names of machine and user."""
        text = self.scrub_settings(text)
        for name, replacement in self.names.items():
            if name in text:
                text = re.sub(rf"(?<![\w/-]){re.escape(name)}(?![\w/-])", replacement, text)
        return text


def map_strings(value: Any, clean: Callable[[str], str], *, but: tuple[str, ...] = ()) -> Any:
    """Apply `clean` to every string and key in plain data, except for values under the keys `but`."""
    if isinstance(value, dict):
        return {clean(key): inner if key in but else map_strings(inner, clean, but=but) for key, inner in value.items()}
    if isinstance(value, list):
        return [map_strings(inner, clean, but=but) for inner in value]
    return clean(value) if isinstance(value, str) else value


def _private_paths(run: Run) -> dict[str, str]:
    paths = dict(_named_paths(run))
    paths |= {str(run.folder.parent): ".", _home(): "~", str(run.folder): run.folder.name}
    # "/root" and "/data" exist on every machine, and reveal nothing.
    return _longest_first({p: paths[p] for p in paths if p.startswith("/") and len(PurePosixPath(p).parts) > 2})


def _longest_first(words: Mapping[str, str]) -> dict[str, str]:
    return {word: words[word] for word in sorted(words, key=len, reverse=True)}


def _named_paths(run: Run) -> Iterator[tuple[str, str]]:
    """Paths in options, variables and earlier stages, as written and as resolved, with their last part as replacement."""
    config = run.manifest.get("config", {})
    paths = [str(config[option]) for option in PATH_OPTIONS if config.get(option)]
    paths += [os.environ[variable] for variable in PATH_VARIABLES if os.environ.get(variable)]
    paths += [str(run.result(stage).get("folder", "")) for stage in ("workspace", "adapter")]
    paths.append(str(config.get("output_dir", "")))
    for path in paths:
        if path and is_local(path):
            yield path.rstrip("/"), PurePosixPath(path).name
            yield str(local_path(path)), PurePosixPath(path).name


def _home() -> str:
    try:
        return str(Path.home())
    except RuntimeError:
        return ""  # a user without a name, in an environment without HOME


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""  # a user without a name has none to leak
