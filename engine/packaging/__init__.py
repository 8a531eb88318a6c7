"""The archive: the same bytes for the same run, by an allow-list of names, reopened and loaded before it gets its name."""

from engine.packaging.archive import build_archive, hash_file

__all__ = ["build_archive", "hash_file"]
