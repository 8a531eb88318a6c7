"""The header of a safetensors file: names, number formats and shapes of its tensors, without reading one of them.

    8 bytes     length of the header, little-endian
    header      JSON: {"name": {"dtype": "F32", "shape": [3, 24], "data_offsets": [begin, end]}, …}, "__metadata__" aside
    data        the tensors one after another, without gaps; offsets count from here

What is accepted here safetensors accepts too (tests/models/test_good_adapters.py): what is refused is told in words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

LENGTH_BYTES = 8
LONGEST_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Of one number, by safetensors' name of its format."""


class HeaderError(ValueError):
    """What is wrong with a file, in a sentence."""


@dataclass(frozen=True)
class TensorInfo:
    dtype: str
    """safetensors' name of the number format: F32, BF16, …"""
    shape: tuple[int, ...]
    begin: int
    end: int
    """Bytes of the file, from its beginning."""


@dataclass(frozen=True)
class Header:
    raw: bytes
    """The file up to its data."""
    size: int
    """Bytes of the whole file."""
    tensors: dict[str, TensorInfo]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors.values())


def read_header(file: BinaryIO, size: int) -> Header:
    """The header of an open file of `size` bytes; reads no further than its end. Raises HeaderError."""
    length_field = file.read(LENGTH_BYTES)
    if len(length_field) < LENGTH_BYTES:
        raise HeaderError(
            f"It is cut short: of {size} bytes, the first {LENGTH_BYTES} are to tell the header's length."
        )
    length = int.from_bytes(length_field, "little")
    if length > LONGEST_HEADER:
        raise HeaderError(f"Its header would be {length:,} bytes long: no safetensors file has such a one.")
    if LENGTH_BYTES + length > size:
        raise HeaderError(f"It is cut short in the header, which has {length:,} bytes: the whole file has {size:,}.")
    text = file.read(length)
    data_begin = LENGTH_BYTES + length
    tensors = {name: _tensor(name, facts, data_begin) for name, facts in _entries(text).items()}
    _require_whole(tensors, data_begin, size)
    return Header(length_field + text, size, tensors)


def _entries(text: bytes) -> dict[str, Any]:
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice.extend(name for name in found if sum(name == other for other, _ in pairs) > 1)
        return found

    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not begin with '{'")
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"Its header is no JSON: {error}.") from error
    if twice:
        raise HeaderError(f"Its header names {twice[0]!r} twice.")
    entries.pop("__metadata__", None)
    return dict(entries)


def _tensor(name: str, facts: Any, data_begin: int) -> TensorInfo:
    if not isinstance(facts, dict) or facts.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"Its header does not tell dtype, shape and data_offsets of {name!r}.")
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise HeaderError(f"Its header gives {name!r} the number format {dtype!r}, which there is not.")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise HeaderError(f"Its header gives {name!r} the shape {shape!r} and the place {offsets!r}.")
    begin, end = offsets
    if prod(shape) * BITS[dtype] != 8 * (end - begin):
        raise HeaderError(f"Its header gives {name!r} {end - begin} bytes for the shape {shape!r} in {dtype}.")
    return TensorInfo(dtype, tuple(shape), data_begin + begin, data_begin + end)


def _require_whole(tensors: dict[str, TensorInfo], data_begin: int, size: int) -> None:
    """The tensors lie one after another, from the end of the header to the end of the file."""
    last, last_name = data_begin, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin < last:
            raise HeaderError(f"{name!r} begins {last - tensor.begin} bytes before the end of {last_name!r}.")
        if tensor.begin > last:
            raise HeaderError(f"There is a gap of {tensor.begin - last} bytes before {name!r}.")
        last, last_name = tensor.end, name
    if last > size:
        raise HeaderError(f"It is cut short in the data: {last:,} bytes by its header, and it has {size:,}.")
    if last < size:
        raise HeaderError(f"{size - last} bytes follow behind the last tensor.")


def _counts(value: Any) -> bool:
    """Whether it is a list of whole numbers from 0 up."""
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
