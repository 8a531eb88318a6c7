"""The header of a safetensors file: names, number formats and shapes of its tensors, without reading any of them.

    8 bytes     length of the header, little-endian
    header      JSON: {"name": {"dtype": "F32", "shape": [3, 24], "data_offsets": [begin, end]}, …}, "__metadata__" aside
    data        the tensors one after another, without gaps; offsets count from here

Everything accepted here is accepted by safetensors, too (tests/models/test_good_adapters.py); the errors here are plainer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""Bytes; safetensors' own limit."""
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Bits per number, by safetensors' format name."""


class HeaderError(ValueError):
    """What is wrong with the file, in one sentence."""


@dataclass(frozen=True)
class TensorInfo:
    dtype: str
    """safetensors' name of the number format: F32, BF16, …"""
    shape: tuple[int, ...]
    begin: int
    end: int
    """Offsets from the start of the file."""


@dataclass(frozen=True)
class Header:
    raw: bytes
    """The bytes of the file before its data."""
    size: int
    """Size of the file in bytes."""
    tensors: dict[str, TensorInfo]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors.values())


def read_header(file: BinaryIO, size: int) -> Header:
    """The header of an open file of `size` bytes; reads only the header. Raises HeaderError."""
    length_field = file.read(LENGTH_BYTES)
    if len(length_field) < LENGTH_BYTES:
        raise HeaderError(f"It is truncated: it has {size} bytes, but the header's length alone takes {LENGTH_BYTES}.")
    length = int.from_bytes(length_field, "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"Its header would be {length:,} bytes long, which is too long for a safetensors file.")
    if LENGTH_BYTES + length > size:
        raise HeaderError(f"It is truncated in the header, which has {length:,} bytes; the file has {size:,}.")
    text = file.read(length)
    data_begin = LENGTH_BYTES + length
    tensors = {name: _tensor(name, entry, data_begin) for name, entry in _entries(text).items()}
    _require_contiguous(tensors, data_begin, size)
    return Header(length_field + text, size, tensors)


def _entries(text: bytes) -> dict[str, Any]:
    duplicates: list[str] = []

    def record_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            duplicates.extend(name for name in entries if sum(name == other for other, _ in pairs) > 1)
        return entries

    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not begin with '{'")
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=record_duplicates)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"Its header is not valid JSON: {error}.") from error
    if duplicates:
        raise HeaderError(f"Its header names {duplicates[0]!r} twice.")
    entries.pop("__metadata__", None)
    return dict(entries)


def _tensor(name: str, entry: Any, data_begin: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"Its header lacks dtype, shape or data_offsets of {name!r}.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise HeaderError(f"Its header gives {name!r} the unknown number format {dtype!r}.")
    if not _is_count_list(shape) or not _is_count_list(offsets) or len(offsets) != 2:
        raise HeaderError(f"Its header gives {name!r} the invalid shape {shape!r} or offsets {offsets!r}.")
    begin, end = offsets
    if prod(shape) * BITS[dtype] != 8 * (end - begin):
        raise HeaderError(
            f"Its header gives {name!r} {end - begin} bytes, which does not match the shape {shape!r} in {dtype}."
        )
    return TensorInfo(dtype, tuple(shape), data_begin + begin, data_begin + end)


def _require_contiguous(tensors: dict[str, TensorInfo], data_begin: int, size: int) -> None:
    """Check that the tensors follow each other without gaps, from the header to the end of the file."""
    last, last_name = data_begin, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin < last:
            raise HeaderError(f"{name!r} overlaps {last_name!r} by {last - tensor.begin} bytes.")
        if tensor.begin > last:
            raise HeaderError(f"There is a gap of {tensor.begin - last} bytes before {name!r}.")
        last, last_name = tensor.end, name
    if last > size:
        raise HeaderError(
            f"It is truncated in the data: by its header it has {last:,} bytes, but the file has {size:,}."
        )
    if last < size:
        raise HeaderError(f"{size - last} extra bytes follow the last tensor.")


def _is_count_list(value: Any) -> bool:
    """Whether it is a list of non-negative integers."""
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
