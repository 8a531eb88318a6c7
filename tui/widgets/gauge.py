"""Bars that show how much of something is used. Pure functions; nothing blinks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from textual.content import Content

from engine.core.events import Forecast, GpuReading, Telemetry

EIGHTHS = " ▏▎▍▌▋▊▉"
HIGH_SHARE = 0.92


class Mark(NamedTuple):
    """A marked position on a bar."""

    share: float
    glyph: str
    style: str


def peak_mark(share: float) -> Mark:
    return Mark(share, "▏", "$gauge-peak")


def forecast_mark(share: float) -> Mark:
    return Mark(share, "┃", "$gauge-forecast")


def bar(share: float, width: int, *, style: str = "$gauge-used", marks: Sequence[Mark] = ()) -> Content:
    """A bar of `width` cells, filled by `share` to an eighth of a cell; marks are visible on filled and empty cells."""
    share = min(max(share if share == share else 0.0, 0.0), 1.0)
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    cells = ["█"] * full + ([EIGHTHS[rest]] if rest else [])
    cells += [" "] * (width - len(cells))
    marked = {min(max(round(mark.share * width) - 1, 0), width - 1): mark for mark in marks if mark.share == mark.share}
    pieces: list[tuple[str, str]] = []
    for place, cell in enumerate(cells):
        mark = marked.get(place)
        if mark is None:
            text, cell_style = cell, f"{style} on $gauge-free" if cell != " " else "on $gauge-free"
        else:
            text, cell_style = mark.glyph, f"{mark.style} on {style if cell == '█' else '$gauge-free'}"
        if pieces and pieces[-1][1] == cell_style:
            pieces[-1] = (pieces[-1][0] + text, cell_style)
        else:
            pieces.append((text, cell_style))
    return Content.assemble(*pieces)


def memory_bar(
    used: float, total: float, width: int, *, peak: float | None = None, forecast: float | None = None
) -> Content:
    """Used bytes out of a total; red when nearly full, which the bar's length shows, too."""
    share = used / total if total else 0.0
    style = "$gauge-high" if share >= HIGH_SHARE else "$gauge-used"
    marks = []
    if peak and total and peak > used:
        marks.append(peak_mark(peak / total))
    if forecast and total:
        marks.append(forecast_mark(forecast / total))
    return bar(share, width, style=style, marks=marks)


def short_memory(reading: Telemetry, forecast: Forecast | None, width: int) -> Content:
    """The fullest GPU, if any, and the machine's memory, in one line."""
    host = Content.assemble(
        ("RAM ", "$muted"),
        memory_bar(reading.host_used_bytes, reading.host_total_bytes, width),
        f" {_used_of(reading.host_used_bytes, reading.host_total_bytes)}",
    )
    gpu = fullest(reading.gpus)
    if gpu is None:
        return Content.styled("GPU: no figures  " if reading.gpus else "no GPU  ", "$muted") + host
    used, total = gpu.memory_used_bytes or 0, gpu.memory_total_bytes or 0
    label = f"GPU {gpu.index} " if len(reading.gpus) > 1 else "GPU "
    use = "" if gpu.utilisation_percent is None else f" {gpu.utilisation_percent:.0f} %"
    expected = peak_on_gpu(forecast, gpu.index)
    return Content.assemble(
        (label, "$muted"),
        memory_bar(used, total, width, forecast=expected),
        f" {_used_of(used, total)}{use}  ",
        host,
    )


def _used_of(used: float, total: float) -> str:
    """48/80 GiB; with a decimal if the total is small."""
    digits = 0 if total >= 10 * 2**30 else 1
    return f"{used / 2**30:.{digits}f}/{total / 2**30:.{digits}f} GiB"


def fullest(gpus: Sequence[GpuReading]) -> GpuReading | None:
    """The fullest GPU; None if none reports its memory."""
    known = [gpu for gpu in gpus if gpu.memory_used_bytes is not None and gpu.memory_total_bytes]
    return max(known, key=lambda gpu: (gpu.memory_used_bytes or 0) / (gpu.memory_total_bytes or 1), default=None)


def peak_on_gpu(forecast: Forecast | None, index: int) -> float | None:
    """The forecast peak memory on a GPU over all stages; None if unknown."""
    if forecast is None or not forecast.on_gpu or forecast.gpu != index:
        return None
    return max(forecast.peak_bytes.values(), default=None)
