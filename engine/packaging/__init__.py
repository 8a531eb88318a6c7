"""The archive: reproducible bytes, built from an allow-list of names, read back and loaded before it gets its final name."""

from engine.packaging.archive import build_archive, hash_file

__all__ = ["build_archive", "hash_file"]
