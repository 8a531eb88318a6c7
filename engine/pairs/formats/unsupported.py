"""Recognises files that hold no rows by signature or suffix: what each one is, and what to do with it."""

from __future__ import annotations

from pathlib import PurePath

from engine.core.errors import ConfigError

_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    # offset, signature, what the file is, what to do
    (0, b"PK\x03\x04", "a ZIP archive or a workbook", "Unpack it and pass the folder; save a workbook as CSV (UTF-8)."),
    (0, b"PK\x05\x06", "an empty ZIP archive", "Check where it comes from."),
    (257, b"ustar", "a tar archive", "Unpack it and pass the folder."),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it and pass the folder."),
    (0, b"Rar!\x1a\x07", "a RAR archive", "Unpack it and pass the folder."),
    (0, b"\x04\x22\x4d\x18", "compressed with LZ4", "Unpack it, or compress it with gzip or zstandard."),
    (0, b"\x5d\x00\x00", "compressed with legacy LZMA", "Unpack it, or compress it with xz."),
    (0, b"SQLite format 3", "an SQLite database", "Export the table as CSV or JSON lines."),
    (8, b"DUCK", "a DuckDB database", "Export the table as Parquet or JSON lines."),
    (0, b"\x89HDF", "an HDF5 file", "Export it as Parquet or JSON lines."),
    (0, b"Obj\x01", "an Avro file", "Export it as Parquet or JSON lines."),
    (0, b"%PDF", "a PDF", "Save its texts as JSON lines, CSV, or plain text with one prompt per line."),
    (0, b"\x80\x04\x95", "a Python pickle", "Export it as Parquet or JSON lines."),
    (0, b"version https://git-lfs", "a Git LFS pointer", "Fetch the file itself: git lfs pull."),
    (0, b"<!DOCTYPE", "a web page", "Download the file itself; the address may require a login."),
    (0, b"<!doctype", "a web page", "Download the file itself; the address may require a login."),
    (0, b"<html", "a web page", "Download the file itself; the address may require a login."),
    (0, b"<?xml", "XML", "Export it as JSON lines or CSV."),
)
_SUFFIXES = {
    ".yaml": "YAML", ".yml": "YAML", ".xml": "XML", ".md": "Markdown", ".toml": "TOML", ".pkl": "a Python pickle",
    ".pickle": "a Python pickle", ".br": "compressed with Brotli",
}  # fmt: skip


def refuse_unsupported(start: bytes, name: str) -> None:
    """Raise ConfigError if the file is known to hold no rows."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for offset, magic, what, remedy in _SIGNATURES:
        if start[offset:].startswith(magic) or (magic[:1] == b"<" and text.startswith(magic)):
            raise ConfigError(f"{name} is {what}, not a file of rows.", "", remedy)
    kind = _SUFFIXES.get(PurePath(name).suffix.lower())
    if kind is not None:
        raise ConfigError(
            f"{name} is {kind}, not a file of rows.",
            "",
            "Pass JSON lines, JSON, CSV, Parquet, or plain text with one prompt per line.",
        )
