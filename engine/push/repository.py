"""One repository on the Hub, through huggingface_hub with request limits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from engine import __version__
from engine.core.errors import ConfigError, UnsafeError
from engine.core.failpoints import failpoint
from engine.hub import RepoType, page_of
from engine.push.errors import push_error
from engine.push.request_limits import TIMEOUT_SECONDS, StoppableBytes, limited_requests
from engine.run.stop import StopToken
from engine.security.secrets import Secret
from engine.storage.files import new_git_blob_hash

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteState:
    """A repository as the Hub shows it."""

    private: bool
    commit: str
    files: Mapping[str, str]
    """Hashes by name: SHA-256 for large files, git's hash for small ones."""

    def has(self, name: str, data: bytes) -> bool:
        return self.files.get(name) in (hashlib.sha256(data).hexdigest(), git_hash(data))


class Repository:
    """Use in a `with` block. Every method sends requests to the Hub, and raises AccessError, NetworkError or Stopped."""

    def __init__(self, repo_id: str, token: Secret, stop: StopToken, *, repo_type: RepoType = "model") -> None:
        """Raises ConfigError for an invalid repository name."""
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(repo_id)
            problem = "" if "/" in repo_id else "It has no owner."
        except HFValidationError as error:
            problem = str(error)
        if problem:
            raise ConfigError(f"{repo_id!a} is not a repository name.", problem, "Pass owner/name.")
        self.repo_id, self.repo_type = repo_id, repo_type
        self._token = token
        self._stop = stop
        self._open = ExitStack()

    def __enter__(self) -> Repository:
        self._limiter = self._open.enter_context(limited_requests(self._stop))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def page(self) -> str:
        """The URL of its page."""
        return page_of(self.repo_id, self.repo_type)

    def account(self) -> Mapping[str, Any]:
        """The token's account and permissions."""
        account = self._call(lambda api: api.whoami())
        return account if isinstance(account, Mapping) else {}

    def remote_state(self) -> RemoteState | None:
        """The current state; None if the token sees no such repository. Raises UnsafeError if it has moved."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        def repo_info(api: HfApi) -> Any:
            try:
                return api.repo_info(
                    self.repo_id, repo_type=self.repo_type, files_metadata=True, timeout=TIMEOUT_SECONDS
                )
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return None

        info = self._call(repo_info)
        if info is None:
            return None
        if str(info.id).lower() != self.repo_id.lower():
            raise UnsafeError(
                f"{self.repo_id} has moved to {info.id!a}.",
                "A push never follows a redirect to another repository.",
                "Pass the new name if you mean that one.",
            )
        files = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings or ()}
        return RemoteState(bool(info.private), str(info.sha), files)

    def check_write(self) -> None:
        """Check that the token may write here. If the Hub has no such check (404), the commit will show."""
        from huggingface_hub.errors import HfHubHTTPError

        def auth_check(api: HfApi) -> None:
            try:
                api.auth_check(self.repo_id, repo_type=self.repo_type, write=True)
            except HfHubHTTPError as error:
                if error.response.status_code != 404:
                    raise

        self._call(auth_check)

    def create(self, *, private: bool) -> None:
        self._call(lambda api: api.create_repo(self.repo_id, repo_type=self.repo_type, private=private))

    def commit(self, files: Mapping[str, bytes], *, parent: str | None, message: str, description: str) -> str:
        """Commit all files atomically. Returns the URL of the commit."""
        from huggingface_hub import CommitOperationAdd

        def create_commit(api: HfApi) -> str:
            # Created here, because the library reads the bytes at once to hash them.
            operations = [CommitOperationAdd(name, StoppableBytes(data, self._stop)) for name, data in files.items()]
            done = api.create_commit(
                self.repo_id,
                operations,
                repo_type=self.repo_type,
                commit_message=message,
                commit_description=description,
                parent_commit=parent,
            )
            return str(done.commit_url)

        return self._call(create_commit)

    def _call(self, request: Callable[[HfApi], T]) -> T:
        from huggingface_hub import HfApi

        api = HfApi(token=self._token.reveal(), library_name="stage3-tui", library_version=__version__)
        self._limiter.last_error_response = None
        try:
            failpoint("push")
            return request(api)
        except Exception as error:  # mapped below; anything not about the Hub is re-raised
            known = push_error(error, self._limiter, self.repo_id, self._token)
            if known is None:
                raise
        raise known  # raised without a cause, because the Hub's response may contain the token


def git_hash(data: bytes) -> str:
    """git's hash of a file's content."""
    digest = new_git_blob_hash(len(data))
    digest.update(data)
    return digest.hexdigest()
