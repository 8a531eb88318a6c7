"""What a model, adapter or dataset option refers to: a local path, or a repository on the Hub."""

from __future__ import annotations

from pathlib import Path


def is_local(name: str) -> bool:
    """Whether a model, adapter or dataset is a local path, not a Hub id."""
    return Path(name).expanduser().exists() or name.startswith(("/", "./", "../", "~"))


def local_path(name: str) -> Path:
    return Path(name).expanduser().resolve()


def looks_like_hub_id(name: str) -> bool:
    """Whether it is `owner/name`, and not a path."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not is_local(name) and not name.startswith(("artifacts/", "."))
