"""Verify files in the Hub's cache. A blob is named after the hash of its bytes, but the Hub's client checks only the size. Two
concurrent downloads on a file system without working locks (NFS, Lustre), or a bad disk, can leave wrong bytes of the right size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from engine.core.config import Stage3Config
from engine.core.reading import open_file
from engine.hub import cached_snapshot
from engine.hub.references import is_local
from engine.storage.files import new_git_blob_hash

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Verified:
    """The result of verifying one snapshot."""

    files: int
    bytes: int
    damaged: tuple[Path, ...]
    """Blobs whose bytes do not match their name."""


def verify_base(config: Stage3Config) -> Verified:
    """Hash every file of the base model's cached snapshot. Zero files if there is no snapshot, or the model is a local folder."""
    if is_local(config.base_model_id):
        return Verified(0, 0, ())
    snapshot = cached_snapshot(config.base_model_id, "model", config.base_model_revision)
    # A cache without symbolic links has the files themselves in the snapshot, and their names are not hashes.
    links = (path for path in snapshot.rglob("*") if path.is_symlink()) if snapshot else ()
    blobs = sorted({path.resolve() for path in links})
    damaged = tuple(blob for blob in blobs if not _matches_name(blob))
    return Verified(len(blobs), sum(blob.stat().st_size for blob in blobs if blob.exists()), damaged)


def _matches_name(blob: Path) -> bool:
    """Whether the bytes match the name: 64 digits are a SHA-256 of them, 40 are git's SHA-1 of a header and them. Any other name
    is not a hash, and passes."""
    if not blob.exists():
        return False
    if len(blob.name) == 64:
        digest = hashlib.sha256()
    elif len(blob.name) == 40:
        digest = new_git_blob_hash(blob.stat().st_size)
    else:
        return True
    with open_file(blob, follow_links=True) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest() == blob.name
