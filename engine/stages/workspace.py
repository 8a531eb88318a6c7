"""Stage 1: the folder to work in, its commit, and room on the disk.

A clone is made under a temporary name beside its target, checked, and renamed. A folder that is in the way is moved
aside, never deleted; a clone of ours that is at the wanted commit already is used again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import engine
from engine.children import ChildResult, run_child, stream_child
from engine.config import Stage3Config
from engine.errors import AccessError, ConfigError, DiskError, NetworkError, PreconditionError, Stage3Error, UnsafeError
from engine.events import Check, Event, Message
from engine.files import write_json
from engine.models.loading import is_local
from engine.stages.base import Context, StageResult, StageRun
from engine.text import visible_line

OUTPUTS: tuple[str, ...] = ()
NAME = "workspace"

MARKER = "stage3-tui.json"
"""In the `.git` folder of a clone that we made."""
FLOOR_BYTES_REMOTE = 2 << 30
"""Least free disk where models come from the Hub. Only a floor: preflight forecasts what the run needs."""
FLOOR_BYTES_LOCAL = 200 << 20
"""The same where the base model is here already."""
CLONE_SECONDS = 1800.0
ASK_SECONDS = 60.0
"""Limit of every git call that does not move a repository."""

_QUIET_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.ext.allow=never",
    "credential.helper=",
    "gc.auto=0",
)
_ASK_NOBODY = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "/bin/false", "SSH_ASKPASS": "/bin/false", "LC_ALL": "C"}
_FOREIGN = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_LFS_SKIP_SMUDGE": "1"}


@dataclass(frozen=True)
class Source:
    """A repository that may be cloned."""

    url: str
    is_path: bool

    @property
    def name(self) -> str:
        return (
            re.sub(r"[^\w.-]", "_", self.url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git")).strip(".")
            or "repository"
        )

    @property
    def environment(self) -> dict[str, str]:
        return {**_ASK_NOBODY, **_FOREIGN, "GIT_ALLOW_PROTOCOL": "file" if self.is_path else "https"}


def depends_on(context: Context) -> dict[str, Any] | None:
    """Never reused: free disk changes by itself, and the current folder's next commit must not undo a run's pairs."""
    return None


def run(context: Context) -> StageRun:
    config = context.config
    if config.repo_url is None:
        folder = _existing_folder(config.repo_root)
    else:
        folder = yield from _cloned_folder(context, config.repo_url)
    commit, dirty, remark = _state_of(folder)
    short = visible_line(str(folder))
    yield Check(NAME, "folder", "ok", short)
    yield Check(NAME, "commit", "ok" if commit else "warning", f"{commit}, {remark}" if commit else remark)
    before = context.run.result(NAME)
    if before and (before.get("folder"), before.get("commit")) != (str(folder), commit):
        was = f"{before.get('folder')} at {before.get('commit')}"
        yield Message("info", f"The workspace was {visible_line(was)}; it is {short} at {commit}.", NAME)
    free = yield from _room(context, folder)
    facts = {"folder": str(folder), "commit": commit, "dirty": dirty, "free_bytes": free}
    if config.repo_url is not None:
        facts |= {"url": check_url(config.repo_url).url, "ref": config.repo_ref, "fresh": config.fresh}
    at = f" at {commit[:12]}{', with changes' if dirty else ''}" if commit else ", no git checkout"
    return StageResult(f"{short}{at}; {_gib(free)} free", facts)


# -- what may be cloned, and where to ----------------------------------------------------------------------------------


def check_url(url: str) -> Source:
    """The repository behind `url`. Raises UnsafeError for what could run code or carry a password, PreconditionError
    for a path where no folder is.
    """
    shown = visible_line(url, 200)
    if not url or url.startswith("-") or re.search(r"[\x00-\x20\x7f-\x9f\\]", url):
        raise _unsafe(repr(shown), "It is empty, starts with a dash or holds characters that no address has.")
    if re.match(r"[\w+.-]*::", url):
        raise _unsafe(shown, "name:: starts a remote helper, and ext:: runs any command.")
    if "://" not in url and not Path(url).expanduser().exists() and re.match(r"[^/]+:", url):
        raise _unsafe(shown, "It is an ssh address, and ssh would use keys of yours that a clone does not need.")
    if "://" not in url:
        return Source(str(_source_folder(url)), is_path=True)
    try:
        parts = urlsplit(url)
        secret = parts.username is not None or parts.password is not None
    except ValueError as error:
        raise _unsafe("the address", f"It cannot be read: {visible_line(str(error))}.") from None
    if secret or "@" in parts.netloc:
        host = visible_line(parts.netloc.rpartition("@")[2], 100)
        raise _unsafe(f"{parts.scheme}://***@{host}…", "It carries a name or password, which any process could read.")
    if parts.scheme != "https" or not parts.hostname:
        raise _unsafe(shown, f"{parts.scheme}:// is neither encrypted and checked, nor a path.")
    return Source(url, is_path=False)


def _unsafe(shown: str, why: str) -> UnsafeError:
    return UnsafeError(
        f"--repo-url {shown} is refused.",
        why,
        "Give an https:// address without credentials, or a local path; or clone it yourself and give --repo-root.",
    )


def _source_folder(url: str) -> Path:
    path = Path(url).expanduser().resolve()
    if not path.is_dir():
        raise PreconditionError(
            f"--repo-url {visible_line(url, 200)} is no folder.",
            "It has no scheme, so it is a path.",
            "Give an https:// address or the path of a git repository.",
        )
    return path


def _checked_ref(ref: str) -> str:
    if not ref or ref.startswith("-") or re.search(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{", ref):
        raise UnsafeError(
            f"--repo-ref {visible_line(ref, 100)!r} is refused.",
            "It is no name of a branch, tag or commit.",
            "Give a branch, a tag or a commit, such as main.",
        )
    return ref


def _existing_folder(repo_root: Path | None) -> Path:
    folder = (repo_root or Path.cwd()).expanduser().resolve()
    if not folder.is_dir():
        raise PreconditionError(
            f"--repo-root {visible_line(str(folder))} is no folder.",
            "It is used as it is, and nothing is cloned without --repo-url.",
            "Give the folder of a checkout, or add --repo-url to clone one there.",
        )
    return folder


def _target(config: Stage3Config, source: Source) -> Path:
    """Where the clone goes. Its own name is not resolved: a link in the way is moved aside as a link."""
    path = (config.repo_root or Path.cwd() / source.name).expanduser()
    return path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()


def _refuse_to_move(context: Context, target: Path, source: Source) -> None:
    """Folders that something stands on, so that moving them aside would pull it away."""
    real = target.resolve()
    for what, path in (
        ("the current folder", Path.cwd()),
        ("the run folder", context.run.folder),
        ("your home folder", Path.home()),
        ("the program itself", Path(engine.__file__).resolve().parent),
        ("the repository to clone", Path(source.url) if source.is_path else None),
    ):
        if path is not None and path.resolve().is_relative_to(real):
            raise PreconditionError(
                f"{visible_line(str(target))} is in the way of the clone and holds {what}.",
                "A folder in the way is moved aside, and this one cannot be.",
                "Give another target with --repo-root, or leave --repo-url out to work in the folder as it is.",
            )


# -- cloning -----------------------------------------------------------------------------------------------------------


def _cloned_folder(context: Context, url: str) -> Generator[Event, None, Path]:
    source, ref = check_url(url), _checked_ref(context.config.repo_ref)
    target = _target(context.config, source)
    if _is_reusable(context, source, ref, target):
        yield Check(NAME, "clone", "ok", f"ours, at {visible_line(ref)} already: used again")
        return target
    if os.path.lexists(target):
        _refuse_to_move(context, target, source)
    _make_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.clone-", dir=target.parent) as holder:
        part = Path(holder) / target.name
        yield Message("info", f"Cloning {visible_line(source.url)} at {visible_line(ref)}.", NAME)
        commit = yield from _clone(context, source, ref, part)
        if os.path.lexists(target):
            yield from _move_aside(target)
        part.rename(target)
    yield Check(NAME, "clone", "ok", f"{visible_line(source.url)} at {visible_line(ref)} = {commit}")
    return target


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreconditionError(
            f"{visible_line(str(folder))} cannot be made.", visible_line(str(error)), "Give another --repo-root."
        ) from error


def _clone(context: Context, source: Source, ref: str, part: Path) -> Generator[Event, None, str]:
    """Clone into `part`, which does not exist, and check the commit out. Returns the commit."""
    clone = ["clone", "--quiet", "--no-checkout", "--no-recurse-submodules", "--template=", "--no-local"]
    argv = _git(*clone, "--config", "core.symlinks=false", "--", source.url, str(part))
    lines = stream_child(argv, limit_seconds=CLONE_SECONDS, extra=source.environment, stop=context.stop)
    while True:
        try:
            yield Message("debug", f"git: {next(lines)}", NAME)
        except StopIteration as end:
            result: ChildResult = end.value
            break
    if not result.ok:
        raise _git_failure(f"{visible_line(source.url)} could not be cloned", result)
    commit = _resolve(source, ref, part)
    checkout = _ask(part, source.environment, "checkout", "--quiet", "--detach", commit, limit_seconds=CLONE_SECONDS)
    if not checkout.ok:
        raise _git_failure(f"{commit} could not be checked out", checkout)
    head = _ask(part, source.environment, "rev-parse", "--verify", "HEAD")
    if head.output != (commit,):
        raise _git_failure(f"The clone is at {head.output}, not at {commit}", head)
    marker = {"url": source.url, "ref": ref, "commit": commit, "made": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_json(part / ".git" / MARKER, marker)
    return commit


def _resolve(source: Source, ref: str, clone: Path) -> str:
    """The commit of a branch, a tag or a (shortened) commit, in this order."""
    for name in (f"refs/remotes/origin/{ref}", f"refs/tags/{ref}", ref if re.fullmatch("[0-9a-f]{7,64}", ref) else ""):
        if name:
            found = _ask(
                clone, source.environment, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
            )
            if found.ok and found.output:
                return found.output[0]
    branches = _ask(clone, source.environment, "for-each-ref", "--format=%(refname:lstrip=3)", "refs/remotes/origin")
    there = ", ".join(name for name in branches.output if name != "HEAD")
    raise ConfigError(
        f"--repo-ref {visible_line(ref, 100)} is not in {visible_line(source.url)}.",
        f"It is no branch, tag or commit there. Its branches: {visible_line(there, 300) or 'none'}.",
        "Give one of them, a tag, or a commit.",
    )


def _is_reusable(context: Context, source: Source, ref: str, target: Path) -> bool:
    """Whether the target is a clone of ours at the wanted commit, and --fresh not asked for, or granted before."""
    if target.is_symlink():
        return False
    try:
        marker = json.loads((target / ".git" / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(marker, dict) or marker.get("url") != source.url:
        return False
    head = _ask(target, source.environment, "rev-parse", "--verify", "HEAD").output
    if len(head) != 1:
        return False
    recorded = context.run.result(NAME)
    same = {"folder": str(target), "commit": head[0], "url": source.url, "ref": ref}
    if same.items() <= recorded.items():  # this very run made it: a branch that has moved since does not move the run
        return not context.config.fresh or bool(recorded.get("fresh"))
    return not context.config.fresh and head[0] == _wanted_commit(source, ref)


def _wanted_commit(source: Source, ref: str) -> str | None:
    """What the remote says that `ref` is now; a whole commit is itself, a shortened one nothing that it could say."""
    if re.fullmatch("[0-9a-f]{40}", ref):
        return ref
    names = (f"refs/heads/{ref}", f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}")
    argv = _git("ls-remote", "--", source.url, *names)
    result = run_child(argv, limit_seconds=ASK_SECONDS, extra=source.environment)
    if not result.ok:
        raise _git_failure(f"{visible_line(source.url)} could not be asked for {visible_line(ref)}", result)
    found = {name: commit for commit, _, name in (line.partition(" ") for line in result.output)}
    return next((found[name] for name in names if name in found), None)


# -- folders in the way ------------------------------------------------------------------------------------------------


def _move_aside(folder: Path) -> Generator[Event, None, None]:
    number = 1
    while os.path.lexists(aside := folder.with_name(f"{folder.name}.aside-{number}")):
        number += 1
    work = _uncommitted(folder)
    folder.rename(aside)
    detail = (
        f"{visible_line(str(folder))} was in the way and is now {visible_line(str(aside))}; nothing in it was changed"
    )
    yield Check(NAME, "moved aside", "warning", f"{detail}.{work}")


def _uncommitted(folder: Path) -> str:
    """A sentence that names uncommitted work; empty where there is none."""
    if folder.is_symlink() or not (folder / ".git").exists():
        return ""
    status = _ask(folder, _ASK_NOBODY, "status", "--porcelain", "--ignore-submodules=all")
    if not status.ok:
        return f" Whether it holds uncommitted work is not known ({visible_line(status.ending, 200)})."
    names = [line.split(" ", 1)[-1].strip() for line in status.output]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f" Uncommitted work in it: {', '.join(names[:5])}{more}." if names else ""


# -- facts -------------------------------------------------------------------------------------------------------------


def _state_of(folder: Path) -> tuple[str | None, bool, str]:
    """Commit, whether tracked files differ, and a remark. Untracked files do not count: the run makes some."""
    try:
        head = _ask(folder, _ASK_NOBODY, "rev-parse", "--verify", "HEAD")
    except PreconditionError as error:
        return None, False, f"not known: {error.what}"
    if not head.ok or not head.output:
        said = " ".join(head.tail)
        if "not a git repository" in said:
            return None, False, "not a git checkout: the run cannot say which version of the files it used"
        return None, False, f"not known: {visible_line(said, 200)}"
    status = _ask(folder, _ASK_NOBODY, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    dirty = bool(status.output)
    return head.output[0], dirty, f"{len(status.output)} changed files" if dirty else "no changes"


def _room(context: Context, folder: Path) -> Generator[Event, None, int]:
    """Check the free disk of the workspace and of the run folder; returns the smaller one, in bytes."""
    floor = FLOOR_BYTES_LOCAL if is_local(context.config.base_model_id) else FLOOR_BYTES_REMOTE
    places = {"workspace": folder, "run folder": context.run.folder}
    free = {what: shutil.disk_usage(_nearest_existing(path)).free for what, path in places.items()}
    what, least = min(free.items(), key=lambda item: item[1])
    where = visible_line(str(places[what]))
    enough = least >= floor
    yield Check(NAME, "free disk", "ok" if enough else "failed", f"{_gib(least)} at {where}; at least {_gib(floor)}")
    if not enough:
        raise PreconditionError(
            f"{where} has {_gib(least)} free; the run needs at least {_gib(floor)}.",
            "Models, pairs and checkpoints would not fit, and a full disk cuts files in half.",
            "Free some space, or give another --output-dir (and HF_HOME, for downloads).",
        )
    return least


def _nearest_existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


# -- git ---------------------------------------------------------------------------------------------------------------


def _git(*arguments: str) -> list[str]:
    config = [part for setting in _QUIET_CONFIG for part in ("-c", setting)]
    return ["git", *config, *arguments]


def _ask(folder: Path, environment: dict[str, str], *arguments: str, limit_seconds: float = ASK_SECONDS) -> ChildResult:
    argv = _git("--no-optional-locks", "-C", str(folder), *arguments)
    return run_child(argv, limit_seconds=limit_seconds, extra=environment)


_FAILURES: tuple[tuple[str, type[Stage3Error], str], ...] = (
    (
        r"could not read Username|Authentication failed|terminal prompts disabled|error: 40[13]|access denied",
        AccessError,
        "It is private or not there. Clone it yourself, where git knows you, and give its folder with --repo-root.",
    ),
    (r"No space left|Disk quota", DiskError, "Free some space, then start the same command again."),
    (
        r"Could not resolve|Failed to connect|Connection|timed out|early EOF|unable to access|RPC failed|SSL|TLS",
        NetworkError,
        "Check the network and the proxy, then start the same command again; nothing half-cloned was kept.",
    ),
)


def _git_failure(what: str, result: ChildResult) -> Stage3Error:
    said = " ".join(result.tail)
    if result.timed_out:
        return NetworkError(f"{what}.", result.ending, "Check the network, then start the same command again.")
    for pattern, kind, what_to_do in _FAILURES:
        if re.search(pattern, said, re.IGNORECASE):
            return kind(f"{what}.", f"git: {visible_line(result.ending, 600)}", what_to_do)
    return PreconditionError(
        f"{what}.",
        f"git: {visible_line(result.ending, 600)}",
        "Mend what git names, or clone it yourself and give --repo-root.",
    )
