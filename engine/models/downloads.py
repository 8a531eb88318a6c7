"""Files of the Hub's cache against their names: a blob is named by the hash of its bytes, and the Hub's client checks only
their number. Two downloads at once where locks do nothing (NFS, Lustre), or a bad disk, leave others of the same number.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from engine.core.config import Stage3Config
from engine.hub import cached_snapshot
from engine.hub.references import is_local
from engine.storage.files import begun_git_hash

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Verified:
    """What was read of one snapshot."""

    files: int
    bytes: int
    damaged: tuple[Path, ...]
    """Blobs whose bytes are not those of their name."""


def verify_base(config: Stage3Config) -> Verified:
    """Read every file of the base model's snapshot in the cache. All zero if there is none, or the model is a folder here."""
    if is_local(config.base_model_id):
        return Verified(0, 0, ())
    snapshot = cached_snapshot(config.base_model_id, "model", config.base_model_revision)
    # Without symbolic links a snapshot holds the files themselves, and their names tell nothing.
    links = (path for path in snapshot.rglob("*") if path.is_symlink()) if snapshot else ()
    blobs = sorted({path.resolve() for path in links})
    damaged = tuple(blob for blob in blobs if not _is_as_named(blob))
    return Verified(len(blobs), sum(blob.stat().st_size for blob in blobs if blob.exists()), damaged)


def _is_as_named(blob: Path) -> bool:
    """64 digits are the SHA-256 of the bytes; 40 are git's hash, SHA-1 of a head and the bytes. Other names are no hash."""
    if not blob.exists():
        return False
    if len(blob.name) == 64:
        digest = hashlib.sha256()
    elif len(blob.name) == 40:
        digest = begun_git_hash(blob.stat().st_size)
    else:
        return True
    with blob.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest() == blob.name
