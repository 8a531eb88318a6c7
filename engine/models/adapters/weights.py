"""An adapter's weights: first the header, then all numbers in a single read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from engine.core.errors import PreconditionError
from engine.core.layout import ADAPTER_WEIGHTS
from engine.models.adapters.folder import EXPORT_AGAIN, first_few, open_adapter_file, safe_path
from engine.models.adapters.header import Header, HeaderError, TensorInfo, read_header
from engine.security.sanitize import visible_line

if TYPE_CHECKING:
    from torch import Tensor

LFS_POINTER = b"version https://git-lfs"
NUMBER_FORMATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
"""Formats that adapters are trained in: safetensors' name → torch's."""
DOWNLOAD_AGAIN = "Copy or download it again, and pass its folder with --adapter-path."


@dataclass(frozen=True)
class Weights:
    """The file's content in memory."""

    header: Header
    tensors: Mapping[str, Tensor]
    sha256: str
    """Hash of the bytes that the tensors were made from."""
    bytes: int


def read_weights_header(folder: Path) -> Header:
    """The header of the weights; the weights themselves are not read. Raises PreconditionError with the reason (a git-lfs pointer,
    a web page, a truncated or damaged file, numbers that are not floats); UnsafeError for anything but a regular file.
    """
    with open_adapter_file(folder, ADAPTER_WEIGHTS) as file:
        return _header(file, folder / ADAPTER_WEIGHTS)


def load_weights(folder: Path) -> Weights:
    """The weights and their hash, from a single read of the file. Raises as `read_weights_header`."""
    path = folder / ADAPTER_WEIGHTS
    with open_adapter_file(folder, ADAPTER_WEIGHTS) as file:
        header = _header(file, path)
        with _changes_as_errors(path):
            data = _read_all(file.fileno(), header)
    view = memoryview(data)
    tensors = {name: _tensor(view, info) for name, info in header.tensors.items()}
    return Weights(header, tensors, hashlib.sha256(data).hexdigest(), len(data))


def read_tensors(folder: Path) -> Mapping[str, Tensor]:
    """The adapter's tensors, on the CPU. Raises as `read_weights_header`."""
    return load_weights(folder).tensors


def refuse_bad_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Raises PreconditionError for NaN, infinities, or an adapter that adds nothing (every lora_B zero)."""
    bad = sorted(name for name, tensor in tensors.items() if not bool(tensor.isfinite().all()))
    if bad:
        first = "NaN" if bool(tensors[bad[0]].isnan().any()) else "an infinity"
        raise PreconditionError(
            f"The adapter has NaN or infinity in {len(bad)} of its {len(tensors)} tensors ({first_few(bad)}).",
            f"The first contains {first}: its training diverged.",
            "Export an earlier checkpoint with `model.save_pretrained(folder)`.",
        )
    of_lora_b = [name for name in tensors if _is_lora_b(name)]
    plain = all("lora_" in name for name in tensors)
    if plain and len(zero_lora_b_modules(tensors)) == len(of_lora_b):
        raise PreconditionError(
            "Every lora_B of the adapter is zero.",
            "It has no effect on the base model: it was saved before training.",
            EXPORT_AGAIN,
        )


def zero_lora_b_modules(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of lora_B tensors that are all zero; their modules have no effect."""
    return sorted(name for name, tensor in tensors.items() if _is_lora_b(name) and not bool(tensor.any()))


def number_format(header: Header) -> str:
    """The tensors' number formats: `float32`, or `bfloat16 and float32` if there are several."""
    return " and ".join(sorted({NUMBER_FORMATS[tensor.dtype] for tensor in header.tensors.values()}))


def _is_lora_b(name: str) -> bool:
    return "lora_B" in name


def _header(file: BinaryIO, path: Path) -> Header:
    size = os.fstat(file.fileno()).st_size
    head = file.read(200)
    if head.startswith(LFS_POINTER):
        raise PreconditionError(
            f"{safe_path(path)} is a git-lfs pointer, not the weights.",
            "The repository was cloned without git-lfs.",
            "Run `git lfs pull` in it, then run the same command again.",
        )
    if not head or head.lstrip().startswith(b"<"):
        raise PreconditionError(
            f"{safe_path(path)} is {'a web page' if head else 'empty'}.", "A download failed.", DOWNLOAD_AGAIN
        )
    file.seek(0)
    try:
        header = read_header(file, size)
    except HeaderError as error:
        raise PreconditionError(
            f"{safe_path(path)} ({size:,} bytes) is damaged.", visible_line(str(error), 400), DOWNLOAD_AGAIN
        ) from error
    _require_floats(header, path)
    return header


def _require_floats(header: Header, path: Path) -> None:
    other = sorted(name for name, tensor in header.tensors.items() if tensor.dtype not in NUMBER_FORMATS)
    if other:
        raise PreconditionError(
            f"{safe_path(path)} contains numbers in {header.tensors[other[0]].dtype} ({first_few(other)}).",
            "Training needs floating point with at least 16 bits; quantised numbers cannot be trained.",
            f"{EXPORT_AGAIN} Do so before quantising its weights.",
        )


def _read_all(file: int, header: Header) -> bytearray:
    """All bytes of the file, read without a buffer. Raises OSError if they no longer match the header."""
    data = bytearray(header.size)
    view, done = memoryview(data), 0
    while done < len(data) and (read := os.preadv(file, [view[done:]], done)):
        done += read
    if done < len(data) or os.fstat(file).st_size != len(data) or not data.startswith(header.raw):
        raise OSError("the file changed while it was read")
    return data


def _tensor(view: memoryview, info: TensorInfo) -> Tensor:
    import torch

    dtype = getattr(torch, NUMBER_FORMATS[info.dtype])
    if info.begin == info.end:
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(view[info.begin : info.end], dtype=dtype).reshape(info.shape)


@contextmanager
def _changes_as_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PreconditionError(
            f"Cannot read {safe_path(path)} to its end.",
            visible_line(error.strerror or str(error)),
            "Another program is writing to it, or the disk is failing. Fix that, then run the same command again.",
        ) from error
