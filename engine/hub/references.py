"""What a model, adapter or dataset option refers to: a local path, or a repository on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(f"(?=.{{1,96}}$)(?!.*(?:--|\\.\\.)){_PART}/{_PART}")


def is_local(name: str) -> bool:
    """Whether a model, adapter or dataset is given by a local path rather than a Hub id."""
    return Path(name).expanduser().exists() or name.startswith(("/", "./", "../", "~"))


def local_path(name: str) -> Path:
    return Path(name).expanduser().resolve()


def looks_like_hub_id(name: str) -> bool:
    """Whether `name` is a valid `owner/name` of the Hub, and not a path."""
    return _HUB_ID.fullmatch(name) is not None and not is_local(name) and not name.startswith("artifacts/")
