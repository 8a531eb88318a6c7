"""Memory of every GPU with its peak; where there is none, the reason, and the machine's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from textual.content import Content

from engine.events import GpuReading, Telemetry
from tui.widgets.gauge import memory_bar
from tui.widgets.layout import fit
from tui.widgets.words import line, memory


class _Row(NamedTuple):
    name: str
    used: float
    total: float
    peak: float | None
    numbers: str
    rest: str


def gpu_lines(reading: Telemetry, peaks: Mapping[int, int], width: int) -> list[Content]:
    lines = []
    if not reading.gpus:
        note = line(reading.note or "the driver names none", "$muted", 160)
        lines.append(Content.assemble(("No GPU here: ", "$foreground"), note).truncate(width, ellipsis=True))
    rows = []
    for gpu in reading.gpus:
        if gpu.memory_used_bytes is None or not gpu.memory_total_bytes:
            told = f"GPU {gpu.index}: the driver does not say how much memory it uses"
            lines.append(Content.styled(told, "$muted").truncate(width))
        else:
            rows.append(_gpu_row(gpu, gpu.memory_used_bytes, gpu.memory_total_bytes, peaks.get(gpu.index)))
    host = f"{memory(reading.host_used_bytes)} of {memory(reading.host_total_bytes)}"
    mine = f"this run {memory(reading.rss_bytes)}   CPU {reading.cpu_percent:.0f} %"
    rows.append(_Row("Host memory", reading.host_used_bytes, reading.host_total_bytes, None, host, mine))
    return [*lines, *_aligned(rows, width)]


def _gpu_row(gpu: GpuReading, used: int, total: int, peak: int | None) -> _Row:
    figures = (
        f"peak {memory(peak)}" if peak else "",
        "" if gpu.utilisation_percent is None else f"{gpu.utilisation_percent:.0f} %",
        "" if gpu.temperature_celsius is None else f"{gpu.temperature_celsius:.0f} °C",
        "" if gpu.power_watts is None else f"{gpu.power_watts:.0f} W",
    )
    name = f"GPU {gpu.index}  {line(gpu.name, limit=24).plain}"
    rest = "   ".join(figure for figure in figures if figure)
    return _Row(name, used, total, peak, f"{memory(used)} of {memory(total)}", rest)


def _aligned(rows: Sequence[_Row], width: int) -> list[Content]:
    """One under the other: names, bars of one length, and figures to their right."""
    names = min(max(len(row.name) for row in rows), 30 if width >= 100 else 12)
    numbers = max(len(row.numbers) for row in rows)
    room = min(max(width - names - numbers - max(len(row.rest) for row in rows) - 7, 8), 40)
    return [
        Content.assemble(
            fit(Content(row.name), names).pad_right(2),
            memory_bar(row.used, row.total, room, row.peak),
            (f"  {row.numbers:>{numbers}}", "bold"),
            (f"   {row.rest}", "$muted"),
        ).truncate(width, ellipsis=True)
        for row in rows
    ]
