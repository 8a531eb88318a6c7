"""Try the base model's tokenizer in a child process: its file is an untrusted program for a library in Rust.

Ten replacements that each turn one letter into ten hang the library, and padding to a length of ten digits aborts it; in both
cases it ignores signals. So a child process loads the file first, and encodes and decodes a line of text.
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


def probe_tokenizer(
    model: str, revision: str | None, token: str | None, option: str, stop: StopToken | None = None
) -> None:
    """Raises UnsafeError if the tokenizer crashes or hangs, and the Hub's errors. A model without `tokenizer.json` passes.

    model    a folder, or an id on the Hub
    option   the option that names the model
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
            remedy=f"Use another {option}, or get the file from the model's original repository.",
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
    """Encode and decode a line of text; runs in the child."""
    from tokenizers import Tokenizer

    with checked_file() as file:
        tokenizer = Tokenizer.from_buffer(file.read())
    tokenizer.decode(tokenizer.encode(LINE).ids)
