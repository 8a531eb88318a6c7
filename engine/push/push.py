"""Push a run's adapter from the verified archive, after checking every precondition."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine import __version__, hub
from engine.core import layout
from engine.core.errors import AccessError, NetworkError, Stage3Error, Stopped, UnsafeError
from engine.core.events import Check, Event, Message
from engine.core.wording import plural
from engine.hub.references import is_local
from engine.packaging.archive import Archive, verified_archive
from engine.packaging.secret_scan import find_secrets, known_secrets, refuse_secrets
from engine.push.errors import HOW_TO_GET_WRITE, no_token_to_push
from engine.push.permissions import account_and_role, missing_permission
from engine.push.repository import RemoteState, Repository
from engine.push.selection import pushed_files
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret

HUB_FILES = (".gitattributes",)
"""Files that the Hub itself creates."""
MAX_NAMES = 8
"""Names listed in a check or an error; the others are counted."""


@dataclass(frozen=True)
class PushResult:
    """The result of a push."""

    repo_id: str
    page: str
    """URL of the commit."""
    private: bool
    files: int
    bytes: int
    was_there: bool
    """Whether the repository already had everything, so that nothing was sent."""

    @property
    def in_words(self) -> str:
        visibility = "private" if self.private else "public"
        return f"{self.repo_id} is up to date" if self.was_there else f"pushed to {self.repo_id} ({visibility})"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def push(
    run: Run,
    repo_id: str,
    *,
    token: Secret | None,
    public: bool,
    accept_lookalikes: bool,
    stop: StopToken,
) -> Generator[Event, None, PushResult]:
    """Push the adapter in the run's archive to `repo_id`. Nothing is sent if the repository already has it.

    token    defaults to the one found by `engine.hub.find_token`
    public   create a public repository, or allow pushing to an existing public one

    Raises DamagedState if the archive is not the recorded one, AccessError, NetworkError, UnsafeError, ConfigError and Stopped.
    After an error the archive is unchanged, and the repository has either everything or nothing of the push.
    """
    try:
        return (yield from _push(run, repo_id, token, public, accept_lookalikes, stop))
    except Stopped:
        raise
    except Stage3Error as error:
        command = shlex.join(["stage3-tui", "push", str(run.folder), repo_id])
        retry = f"The archive is unaffected. Then push again: `{command}`"
        raise type(error)(f"Nothing was pushed. {error.what}", error.why, f"{error.what_to_do} {retry}") from error


def _push(
    run: Run, repo_id: str, token: Secret | None, public: bool, accept_lookalikes: bool, stop: StopToken
) -> Generator[Event, None, PushResult]:
    archive, packed = verified_archive(run)
    files = pushed_files(archive, packed)
    found = hub.find_token(token)
    if found is None:
        raise no_token_to_push()
    refuse_secrets(find_secrets(files, known_secrets(found.secret)), accepted=accept_lookalikes)
    with Repository(repo_id, found.secret, stop) as repository:
        remote = yield from check_target(repository, found.source, public=public)
        yield from _changes(files, remote, run)
        message, description = _message(run), _description(archive)
        return (yield from send(repository, files, remote, message, description, public=public, stop=stop))


def send(
    repository: Repository,
    files: Mapping[str, bytes],
    remote: RemoteState | None,
    message: str,
    description: str,
    *,
    public: bool,
    stop: StopToken,
) -> Generator[Event, None, PushResult]:
    """Send all files in one commit, and verify that the Hub has them. Creates the repository if needed; sends nothing if it
    already has all files.
    """
    if remote is not None and all(remote.has(name, data) for name, data in files.items()):
        yield Check("pushed", "ok", f"{repository.repo_id} already has all files; nothing sent")
        return _pushed(repository, repository.page, remote, files, was_there=True)
    yield Message("info", f"Sending {plural(len(files), 'file')} to {repository.repo_id} in one commit.")
    stop.raise_if_requested()
    remote = remote or create_repository(repository, public=public)
    page = repository.commit(files, parent=remote.commit, message=message, description=description)
    after = verify_commit(repository, files)
    yield Check("pushed", "ok", visible_line(page))
    return _pushed(repository, page, after, files, was_there=False)


def check_target(repository: Repository, source: str, *, public: bool) -> Generator[Event, None, RemoteState | None]:
    """Check every precondition before anything is sent: whose token it is, whether it may write, and who can see the repository.

    Returns the state of the repository, None if it does not exist. Raises AccessError, NetworkError, UnsafeError.
    """
    repo_id = repository.repo_id
    account = repository.account()
    remote = repository.remote_state()
    reason = missing_permission(account, repo_id, exists=remote is not None)
    if reason:
        yield Check("push: token", "failed", visible_line(f"{source}: {reason}"))
        raise AccessError(f"No write access to {repo_id}.", visible_line(reason), HOW_TO_GET_WRITE)
    if remote is not None and not remote.private and not public:
        yield Check("push: repository", "failed", f"{repo_id} is public")
        raise UnsafeError(
            f"{repo_id} is public.",
            "Everyone could see what is pushed.",
            "Pass --push-public if you want that, or push under another name: a new repository is private.",
        )
    if remote is not None:
        repository.check_write()
    yield Check("push: token", "ok", visible_line(f"{source}: {account_and_role(account)}"))
    visibility = "public" if (public if remote is None else not remote.private) else "private"
    yield Check("push: repository", "ok", f"{repo_id}, {visibility}, {'new' if remote is None else 'exists'}")
    if remote is not None and remote.private and public:
        detail = f"--push-public does not change existing repositories; do it at {repository.page}/settings"
        yield Check("push: stays private", "warning", detail)
    return remote


def _changes(files: Mapping[str, bytes], remote: RemoteState | None, run: Run) -> Generator[Event, None, None]:
    """Report what will be sent, and what the repository already has."""
    for name, data in files.items():
        yield Check(f"push: {name}", "ok", f"{len(data):,} bytes")
    if remote is not None:
        others = sorted(set(remote.files) - files.keys() - {*HUB_FILES})
        if others:
            yield Check("push: keeps", "warning", f"{_listed(others)}, which the repository already has")
        replaced = [name for name, data in files.items() if name in remote.files and not remote.has(name, data)]
        if replaced:
            yield Check("push: replaces", "warning", f"{_listed(replaced)}; the old versions stay in the history")
    base = run.manifest.get("config", {}).get("base_model_id")
    if base and is_local(base):
        detail = "the base model is a local folder: anyone who loads the adapter needs a copy of it"
        yield Check("push: base model", "warning", detail)


def create_repository(repository: Repository, *, public: bool) -> RemoteState:
    """Create the repository, and check it before anything is sent. Raises UnsafeError if it was created as public."""
    repository.create(private=not public)
    remote = repository.remote_state()
    if remote is None:
        raise NetworkError(
            f"{repository.repo_id} was created, but the Hub does not show it yet.",
            "It may take a moment to appear.",
            "Wait a minute.",
        )
    if not remote.private and not public:
        raise UnsafeError(
            f"The Hub created {repository.repo_id} as public instead of private.",
            "Nothing was uploaded.",
            f"Make it private at {repository.page}/settings.",
        )
    return remote


def verify_commit(repository: Repository, files: Mapping[str, bytes]) -> RemoteState:
    """The state after the commit. Raises NetworkError if the Hub does not show every file as it was sent."""
    remote = repository.remote_state()
    missing = [name for name, data in files.items() if remote is None or not remote.has(name, data)]
    if remote is None or missing:
        raise NetworkError(
            f"The Hub accepted the commit, but does not show {_listed(missing)} as sent.",
            "It is slow, or a .gitignore in the repository excludes them.",
            f"Check {repository.page}.",
        )
    return remote


def _pushed(
    repository: Repository, page: str, remote: RemoteState, files: Mapping[str, bytes], *, was_there: bool
) -> PushResult:
    size = sum(len(data) for data in files.values())
    return PushResult(repository.repo_id, visible_line(page), remote.private, len(files), size, was_there)


def _message(run: Run) -> str:
    verdict = run.result("training").get("verdict")
    suffix = f"; against Stage 2: {visible_line(str(verdict), 40)}" if verdict else ""
    return f"Stage 3 constitutional LoRA adapter{suffix}"


def _description(archive: Archive) -> str:
    return (
        f"Pushed by stage3-tui {__version__} from {archive.path.name} (SHA-256 {archive.sha256}).\n"
        f"{layout.EVALUATION_REPORT} has the figures behind the verdict."
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return visible_line(", ".join(names[:MAX_NAMES])) + more
