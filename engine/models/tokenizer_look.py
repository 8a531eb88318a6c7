"""The first look at the base model's tokenizer: its file is a small program for a library in Rust, and a stranger wrote it.

Ten replacements that each make one letter into ten hang the library, and padding to a length of ten digits aborts it; neither
hears a signal. So a child reads the file first, and a line of text with it.
"""

from __future__ import annotations

import string
from pathlib import Path

from engine.core.reading import open_file
from engine.hub.references import is_local, local_path
from engine.process.crash_check import check_in_child, checked_file
from engine.run.stop import StopToken

TOKENIZER = "tokenizer.json"
LINE = f"How do I mend it? {string.printable} Così: 你好, Ελλάδα, привет 🪴"


def look_at_tokenizer(
    model: str, revision: str | None, token: str | None, option: str, stop: StopToken | None = None
) -> None:
    """Raises UnsafeError if reading the tokenizer crashes or hangs, and the Hub's errors. Nothing is said about one that has no
    `tokenizer.json`.

    model    a folder, or an id on the Hub
    option   that it was given with
    """
    path = _file_of(model, revision, token)
    if path is None:
        return
    with open_file(path, follow_links=True) as file:
        check_in_child(
            __name__,
            "tokenizers",
            file,
            str(path),
            remedy=f"Give another {option}, or take the file from where the model was first published.",
            stop=stop,
        )


def _file_of(model: str, revision: str | None, token: str | None) -> Path | None:
    if is_local(model):
        path = local_path(model) / TOKENIZER
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(model, TOKENIZER, revision=revision, token=token))
    except EntryNotFoundError:
        return None


def crash_check() -> None:
    """In the child: a line of text there and back."""
    from tokenizers import Tokenizer

    with checked_file() as file:
        tokenizer = Tokenizer.from_buffer(file.read())
    tokenizer.decode(tokenizer.encode(LINE).ids)
