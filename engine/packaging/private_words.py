"""What an archive does not tell: where this machine keeps things, what it is called, and who worked on it.

Paths that are surely this machine's (the run folder, the home, what the options name) are replaced in every file, in
the text of models and people too. In what the program alone writes, any path from the root is cut to its last part, and
the names of the machine and of the user are replaced. The weights and the tokenizer's vocabulary are packed as they
are: another token would be another model.
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
# Users and machines that everybody has: they tell nothing, and stand in ordinary text.
OF_EVERYBODY = frozenset({"root", "user", "admin", "ubuntu", "debian", "runner", "ec2-user", "jovyan", "nobody"})
OF_EVERY_MACHINE = frozenset({"localhost", "localhost.localdomain"})
SHORTEST_NAME = 4
"""A shorter name of a user or a machine is too likely a word."""

# A path from the root, in free text; not a part of an address (https://…), of a relative path, or of a tag (</a/b>).
_ABSOLUTE = re.compile(r"(?<![\w:/.~<])/(?:[\w.@+~ -]*[\w.@+~-]/)+[\w.@+~-]*")


@dataclass(frozen=True)
class Scrubber:
    """This machine's own words, and how a text is freed of them."""

    paths: Mapping[str, str]
    """Paths from the root, and what stands in their place; longer ones first."""
    names: Mapping[str, str]
    """Of the user and the machine, the same way."""
    logins: tuple[str, ...]
    """`user@machine`."""

    @classmethod
    def of(cls, run: Run) -> Scrubber:
        host, user = socket.gethostname(), _user()
        hosts = {host, host.partition(".")[0]} - OF_EVERY_MACHINE
        names = dict.fromkeys(hosts, SOMEWHERE) | ({} if user in OF_EVERYBODY else {user: SOMEBODY})
        return cls(
            paths=_private_paths(run),
            names=_longest_first({name: names[name] for name in names if len(name) >= SHORTEST_NAME}),
            logins=tuple(f"{user}@{host}" for host in sorted(hosts, key=len, reverse=True) if user),
        )

    def stands_in(self, text: str) -> bool:
        """Whether a file holds a path or a login of this machine, as it is or as JSON spells it."""
        return any(word in text or json.dumps(word)[1:-1] in text for word in (*self.paths, *self.logins))

    def out_of_text(self, text: str) -> str:
        """For what people and models wrote: only what is surely this machine's is replaced."""
        for path, instead in self.paths.items():
            if path in text:
                text = re.sub(rf"(?<!\w){re.escape(path)}(?![\w-])", lambda _, word=instead: word, text)  # type: ignore[misc]
        for login in self.logins:
            if login in text:
                text = re.sub(rf"(?<![\w.]){re.escape(login)}(?![\w-])", f"{SOMEBODY}@{SOMEWHERE}", text)
        return text

    def out_of_settings(self, text: str) -> str:
        """For a setting: no path from the root at all."""
        return _ABSOLUTE.sub(lambda match: PurePosixPath(match[0]).name, self.out_of_text(text))

    def out_of_records(self, text: str) -> str:
        """For what the program tells about its work: no name of the machine or the user either."""
        text = self.out_of_settings(text)
        for name, instead in self.names.items():
            if name in text:
                text = re.sub(rf"(?<![\w/-]){re.escape(name)}(?![\w/-])", instead, text)
        return text


def each_text(value: Any, clean: Callable[[str], str], *, but: tuple[str, ...] = ()) -> Any:
    """Plain data with `clean` done to every string and every key in it; what stands under the keys `but` stays."""
    if isinstance(value, dict):
        return {clean(key): inner if key in but else each_text(inner, clean, but=but) for key, inner in value.items()}
    if isinstance(value, list):
        return [each_text(inner, clean, but=but) for inner in value]
    return clean(value) if isinstance(value, str) else value


def _private_paths(run: Run) -> dict[str, str]:
    paths = dict(_named_paths(run))
    paths |= {str(run.folder.parent): ".", _home(): "~", str(run.folder): run.folder.name}
    # "/root" and "/data" are on every machine, and tell nothing of this one.
    return _longest_first({p: paths[p] for p in paths if p.startswith("/") and len(PurePosixPath(p).parts) > 2})


def _longest_first(words: Mapping[str, str]) -> dict[str, str]:
    return {word: words[word] for word in sorted(words, key=len, reverse=True)}


def _named_paths(run: Run) -> Iterator[tuple[str, str]]:
    """What options, variables and earlier stages name, as given and as resolved; the last part stands for it."""
    config = run.manifest.get("config", {})
    given = [str(config[option]) for option in PATH_OPTIONS if config.get(option)]
    given += [os.environ[variable] for variable in PATH_VARIABLES if os.environ.get(variable)]
    given += [str(run.result(stage).get("folder", "")) for stage in ("workspace", "adapter")]
    given.append(str(config.get("output_dir", "")))
    for path in given:
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
