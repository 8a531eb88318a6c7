"""Write reproducible zip files: equal files give equal bytes, whatever the clock, time zone, umask and directory order."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.core.failpoints import failpoint
from engine.packaging.anonymise import json_bytes

MANIFEST = "MANIFEST.json"
SCHEMA = 1
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date of the zip format
MODE = stat.S_IFREG | 0o644
UNIX = 3
LEVEL = 6


def manifest_bytes(files: Mapping[str, bytes], withheld: Sequence[str] = (), **about: Any) -> bytes:
    """The manifest as JSON: size and hash of every file by name.

    withheld   ids of pairs whose records were left out
    about      further facts
    """
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(files.items())
    }
    return json_bytes(
        {"schema": SCHEMA, **about, **({"withheld_pairs": list(withheld)} if withheld else {}), "files": entries}
    )


def write_zip(part: Path, top: str, files: Mapping[str, bytes]) -> None:
    """Write the archive to a new file, and sync it. An existing file is replaced; a link is not followed."""
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        with zipfile.ZipFile(file, "w") as packed:
            for name in sorted(files):
                entry = zipfile.ZipInfo(f"{top}/{name}", DATE)
                entry.create_system, entry.external_attr = UNIX, MODE << 16
                entry.compress_type = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
                failpoint("zip")
                packed.writestr(entry, files[name], compresslevel=LEVEL)
        file.flush()
        failpoint("sync")
        os.fsync(file.fileno())
