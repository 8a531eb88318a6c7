"""The memory of every GPU, with peak and forecast, or why there is none; and the machine's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from textual.content import Content

from engine.core.events import Forecast, GpuReading, Telemetry
from tui.formatting import memory, one_line
from tui.widgets.gauge import memory_bar, peak_on_gpu
from tui.widgets.layout import fit, join_fitting

MIN_BAR, MAX_BAR = 8, 40
ROOM_FOR_MODEL = 118
"""Minimum cells to show the GPU's model, too."""


class _Row(NamedTuple):
    name: str
    used: float
    total: float
    peak: float | None
    forecast: float | None
    figures: tuple[str, ...]
    """The most important first: those that do not fit are left out."""

    @property
    def numbers(self) -> str:
        return f"{memory(self.used)} of {memory(self.total)}"


def gpu_lines(
    reading: Telemetry, peaks: Mapping[int, int], forecast: Forecast | None, width: int, *, peak_of_process: int = 0
) -> list[Content]:
    """A line for each GPU and one for the machine's memory; the bars mark the peak so far and the forecast."""
    lines = []
    if not reading.gpus:
        reason = reading.note or "no GPU: the driver reports none"
        lines.append(one_line(reason[:1].upper() + reason[1:], "$muted", 160).truncate(width, ellipsis=True))
    rows = []
    for gpu in reading.gpus:
        if gpu.memory_used_bytes is None or not gpu.memory_total_bytes:
            note = Content.styled(f"GPU {gpu.index}: the driver does not report memory use", "$muted")
            lines.append(note.truncate(width))
        else:
            sizes = (gpu.memory_used_bytes, gpu.memory_total_bytes)
            rows.append(_gpu_row(gpu, *sizes, peaks.get(gpu.index), forecast, with_model=width >= ROOM_FOR_MODEL))
    on_host = forecast is not None and not forecast.on_gpu
    expected = max(forecast.peak_bytes.values(), default=None) if forecast is not None and on_host else None
    figures = _known(_peak(peak_of_process), _forecast(expected))
    peak = peak_of_process or None
    rows.append(_Row("This run", reading.rss_bytes, reading.host_total_bytes, peak, expected, figures))
    cpu = f"CPU {reading.cpu_percent:.0f} %"
    rows.append(_Row("All memory", reading.host_used_bytes, reading.host_total_bytes, None, None, (cpu,)))
    return [*lines, *_aligned(rows, width)]


def _gpu_row(
    gpu: GpuReading, used: int, total: int, peak: int | None, forecast: Forecast | None, *, with_model: bool
) -> _Row:
    expected = peak_on_gpu(forecast, gpu.index)
    figures = _known(
        _peak(peak),
        _forecast(expected),
        "" if gpu.utilisation_percent is None else f"{gpu.utilisation_percent:.0f} %",
        "" if gpu.temperature_celsius is None else f"{gpu.temperature_celsius:.0f} °C",
        "" if gpu.power_watts is None else f"{gpu.power_watts:.0f} W",
    )
    model = f"  {one_line(gpu.name, limit=24).plain}" if with_model else ""
    return _Row(f"GPU {gpu.index}{model}", used, total, peak, expected, figures)


def _peak(size: float | None) -> str:
    return f"▏peak {memory(size)}" if size else ""


def _forecast(size: float | None) -> str:
    return f"┃forecast {memory(size)}" if size else ""


def _known(*figures: str) -> tuple[str, ...]:
    return tuple(figure for figure in figures if figure)


def _aligned(rows: Sequence[_Row], width: int) -> list[Content]:
    """Rows of a name, a bar of common length, and figures to its right."""
    names = max(len(row.name) for row in rows)
    numbers = max(len(row.numbers) for row in rows)
    figures = max(sum(len(figure) + 3 for figure in row.figures) for row in rows)
    room = min(max(width - names - numbers - figures - 4, MIN_BAR), MAX_BAR)
    return [
        join_fitting(
            (
                Content.assemble(
                    fit(Content(row.name), names).pad_right(2),
                    memory_bar(row.used, row.total, room, peak=row.peak, forecast=row.forecast),
                    (f"  {row.numbers:>{numbers}}", "bold"),
                ),
                *(Content.styled(figure, "$muted") for figure in row.figures),
            ),
            width,
            gap=3,
        )
        for row in rows
    ]
