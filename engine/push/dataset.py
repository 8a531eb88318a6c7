"""Push preference pairs exported by `validate`: one file and its card, in one commit, to a dataset repository."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from engine import __version__, hub
from engine.core import layout
from engine.core.events import Event
from engine.packaging.secret_scan import find_secrets, known_secrets, refuse_secrets
from engine.pairs.formats.containers import rows_of
from engine.push.errors import no_token_to_push
from engine.push.push import PushResult, check_target, send
from engine.push.repository import Repository
from engine.run.stop import StopToken
from engine.security.secrets import Secret
from engine.storage.jsonl import BadLine, dumps

CARD = "README.md"


def name_in_repository(file: Path) -> str:
    return f"data/train{file.suffix.lower()}"


def push_dataset(
    file: Path, card: str, repo_id: str, *, token: Secret | None, public: bool, accept_lookalikes: bool, stop: StopToken
) -> Generator[Event, None, PushResult]:
    """Push a file of TRL rows and its card to the dataset `repo_id`. Nothing is sent if the repository already has both.

    Raises as `engine.push.push.push`.
    """
    found = hub.find_token(token)
    if found is None:
        raise no_token_to_push()
    files = {name_in_repository(file): file.read_bytes(), CARD: card.replace("OWNER/NAME", repo_id).encode()}
    plain = {layout.TRAIN_JSONL: _plain_rows(file), CARD: files[CARD]}
    refuse_secrets(find_secrets(plain, known_secrets(found.secret)), accepted=accept_lookalikes)
    with Repository(repo_id, found.secret, stop, repo_type="dataset") as repository:
        remote = yield from check_target(repository, found.source, public=public)
        description = f"Written and pushed by stage3-tui {__version__}."
        return (yield from send(repository, files, remote, "Preference pairs", description, public=public, stop=stop))


def _plain_rows(file: Path) -> bytes:
    """The rows as plain text, whatever the compression, for the secret scan."""
    return b"".join(dumps(row).encode() + b"\n" for _, row in rows_of(file) if not isinstance(row, BadLine))
