"""Store a token on request: in the Hub's own store, like `hf auth login`, and nowhere else."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.core.errors import DiskError, Stage3Error, UnsafeError
from engine.core.system_errors import MEANINGS, PERMISSION_ERRNOS, carried_errno, error_of_errno
from engine.hub.exception_mapping import as_hub_error
from engine.hub.tokens import store_path
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret

FILE_MODE, FOLDER_MODE = 0o600, 0o700


def store_token(token: Secret) -> Path:
    """Log this machine in with `token` like `hf auth login`, but without git's credential helpers. Returns the file.

    The file has mode 0600 and its folder 0700, whatever the umask. Raises UnsafeError for a shared folder, DiskError if it
    cannot be written, and the Hub's errors about the token.
    """
    path = store_path()
    _refuse_shared_folder(path.parent)
    from huggingface_hub import constants, login

    try:
        for file in (path, Path(constants.HF_STORED_TOKENS_PATH)):
            if file.exists():  # the library sets the mode only after writing
                file.chmod(FILE_MODE)
        with _private_files():
            login(token=token.reveal(), add_to_git_credential=False)
    except Exception as error:
        raise _not_stored(error, path) from None
    return path


def _refuse_shared_folder(folder: Path) -> None:
    """The library sets the folder's mode to 0700, which must not happen to a shared one such as /tmp."""
    if not folder.exists():
        return
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & stat.S_ISVTX:
        raise UnsafeError(
            f"Cannot store the token in {visible_line(str(folder), 200)}.",
            "Other people share or own that folder.",
            "Set HF_HOME or HF_TOKEN_PATH to a folder of your own, or omit --store-token.",
        )


@contextmanager
def _private_files() -> Iterator[None]:
    """Files and folders that are created within this block are readable only by us."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _not_stored(error: Exception, path: Path) -> Stage3Error:
    if known := as_hub_error(error):
        return known
    # Not `str(error)` of every exception: the library's message may quote a file that holds tokens.
    reason = visible_line(str(error), 200) if isinstance(error, OSError) else type(error).__name__
    what = f"Cannot store the token in {visible_line(str(path), 200)}."
    number = carried_errno(error)
    if number is not None and number not in PERMISSION_ERRNOS and MEANINGS[number].error is DiskError:
        return error_of_errno(number, what, reason)
    return DiskError(
        what,
        f"{reason}.",
        "Make its folder writable, or omit --store-token: the run has the token in memory.",
    )
