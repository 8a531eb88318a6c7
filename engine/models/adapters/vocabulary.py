"""The tokenizer beside an adapter, as evidence of its training vocabulary. Only its token ids are read; conversations use the
base model's tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.core.errors import PreconditionError
from engine.core.nesting import parse_untrusted_json
from engine.models.adapters.expected_tensors import BaseFacts
from engine.models.adapters.folder import open_adapter_file, safe_path

TOKENIZER_FILES = ("tokenizer.json", "added_tokens.json", "tokenizer_config.json")
MAX_TOKENIZER_BYTES = 256 << 20
"""Bytes; Gemma's tokenizer.json has 34 million."""


def refuse_larger_vocabulary(folder: Path, base: BaseFacts, own_tokens: Callable[[], int]) -> list[str]:
    """Returns the names of unreadable tokenizer files. Raises PreconditionError if a file has ids without an embedding in the base
    model; UnsafeError for a link out of the folder.

    own_tokens   returns the size of the base model's tokenizer; Gemma 3's has one token more than its embedding
    """
    unreadable = []
    for name in TOKENIZER_FILES:
        if not os.path.lexists(folder / name):
            continue
        with open_adapter_file(folder, name) as file:
            text = file.read(MAX_TOKENIZER_BYTES + 1)
        try:
            highest = max(_ids(parse_untrusted_json(text)), default=-1)
        except (ValueError, TypeError, AttributeError):
            unreadable.append(name)
            continue
        if highest >= base.vocabulary and highest >= own_tokens():
            raise PreconditionError(
                f"The tokenizer beside the adapter has more tokens than {base.name}.",
                f"{safe_path(folder / name)} has token ids up to {highest:,}; the base model has {base.vocabulary:,} embeddings.",
                "Stage 2 added tokens: pass the base model with its vocabulary resized with --base-model-id, or an adapter "
                "that was trained with the base model's own tokenizer.",
            )
    return unreadable


def _ids(data: Any) -> Iterator[int]:
    """Every token id in a tokenizer file."""
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from map(int, vocabulary.values())
    elif isinstance(vocabulary, list):
        yield len(vocabulary) - 1  # Unigram: the position in the list is the id
    yield from (int(token["id"]) for token in data.get("added_tokens") or () if isinstance(token, dict))
    yield from map(int, data.get("added_tokens_decoder") or ())
    if not {"model", "added_tokens", "added_tokens_decoder", "tokenizer_class"} & data.keys():
        # added_tokens.json: {"<token>": id}
        yield from (int(number) for number in data.values() if type(number) is int)
