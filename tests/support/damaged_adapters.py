"""Ways to damage a valid adapter: each takes its folder and changes one thing."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny_models import build_tokenizer

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

Damage = Callable[[Path], object]
Tensors = dict[str, torch.Tensor]


def remove(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def write(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def settings(**values: object) -> Damage:
    """Changes fields of the configuration."""

    def change(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def without_setting(name: str) -> Damage:
    def change(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != name}))

    return change


def tensors(change: Callable[[Tensors], Tensors]) -> Damage:
    """Changes the tensors in the file, which stays valid."""
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def each(change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> Damage:
    return tensors(lambda found: dict(change(name, tensor) for name, tensor in found.items()))


def renamed(change: Callable[[str], str]) -> Damage:
    return each(lambda name, tensor: (change(name), tensor))


def dropped(drops: Callable[[str], bool]) -> Damage:
    return tensors(lambda found: {name: tensor for name, tensor in found.items() if not drops(name)})


def added(**more: torch.Tensor) -> Damage:
    return tensors(lambda found: {**found, **more})


def one_number(of: str, value: float) -> Damage:
    """Changes the last number of the first tensor whose name contains `of`."""

    def change(found: Tensors) -> Tensors:
        name = min(name for name in found if of in name)
        found[name].view(-1)[-1] = value
        return found

    return tensors(change)


def every_second() -> Callable[[str], bool]:
    """True for every other name."""
    seen: list[str] = []

    def drops(name: str) -> bool:
        seen.append(name)
        return len(seen) % 2 == 0

    return drops


# -- the file's bytes --------------------------------------------------------------------------------------------------


def cut(size: Callable[[int, int], int]) -> Damage:
    """Truncates the file to `size(start of its data, its length)` bytes."""

    def change(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        os.truncate(folder / WEIGHTS, size(8 + header_length(data), len(data)))

    return change


def appended(data: bytes) -> Damage:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + data)


def header_length_of(length: int) -> Damage:
    return lambda folder: (folder / WEIGHTS).write_bytes(
        struct.pack("<Q", length) + (folder / WEIGHTS).read_bytes()[8:]
    )


def flipped(offset: Callable[[bytes], int]) -> Damage:
    """Flips one bit of the byte at `offset(file content)`."""

    def change(folder: Path) -> None:
        data = bytearray((folder / WEIGHTS).read_bytes())
        data[offset(bytes(data))] ^= 0x20
        (folder / WEIGHTS).write_bytes(data)

    return change


def header(change: Callable[[dict[str, Any]], str | None]) -> Damage:
    """Changes the header: `change` edits it in place, or returns its full text. The data stay unchanged."""

    def damage(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        length = header_length(data)
        entries = json.loads(data[8 : 8 + length])
        text = (change(entries) or json.dumps(entries)).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def moved(begin: int, end: int) -> Callable[[dict[str, Any]], None]:
    """Shifts the begin and end offsets of the last tensor by these numbers of bytes."""

    def change(entries: dict[str, Any]) -> None:
        last = max(
            (e for name, e in entries.items() if name != "__metadata__"), key=lambda e: int(e["data_offsets"][1])
        )
        last["data_offsets"] = [last["data_offsets"][0] + begin, last["data_offsets"][1] + end]

    return change


def with_header_field(field: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Changes the dtype or shape of the first tensor in the header."""

    def change(entries: dict[str, Any]) -> None:
        entries[min(name for name in entries if name != "__metadata__")][field] = value

    return change


def first_name_twice(entries: dict[str, Any]) -> str:
    name = min(name for name in entries if name != "__metadata__")
    return json.dumps(entries)[:-1] + f", {json.dumps(name)}: {json.dumps(entries[name])}}}"


def header_length(data: bytes) -> int:
    return int(struct.unpack("<Q", data[:8])[0])


# -- other files in the folder -----------------------------------------------------------------------------------------


def linked(name: str, to: str) -> Damage:
    """Moves a file of the folder to `to` and replaces it with a link."""

    def change(folder: Path) -> None:
        target = Path(os.path.normpath(folder / to))
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(target)
        (folder / name).symlink_to(to)

    return change


def fifo(name: str) -> Damage:
    return lambda folder: ((folder / name).unlink(), os.mkfifo(folder / name))


def tokenizer_of(tokens: int) -> Damage:
    """Saves the base model's tokenizer, extended to this many tokens, in the adapter's folder."""

    def change(folder: Path) -> None:
        tokenizer = build_tokenizer()
        tokenizer.add_tokens([f"<new{number}>" for number in range(tokens - len(tokenizer))])
        tokenizer.save_pretrained(folder)

    return change
