"""Bars: how much of something is used. Pure functions, and nothing that blinks."""

from __future__ import annotations

from textual.content import Content

from engine.events import Telemetry
from tui.widgets.words import memory

EIGHTHS = " ▏▎▍▌▋▊▉"
HIGH_SHARE = 0.92


def bar(share: float, width: int, *, style: str = "$gauge-used", peak: float | None = None) -> Content:
    """`width` cells, `share` of them filled to an eighth of a cell; a tick at `peak` where that is past the filling."""
    share = min(max(share if share == share else 0.0, 0.0), 1.0)
    eighths = round(share * width * 8)
    filled = "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")
    rest = width - len(filled)
    body = Content.styled(filled, f"{style} on $gauge-free")
    if peak is None or round(peak * width) <= len(filled):
        return body + Content.styled(" " * rest, "on $gauge-free")
    tick = min(round(peak * width), width) - 1 - len(filled)
    return Content.assemble(
        body,
        Content.styled(" " * tick, "on $gauge-free"),
        Content.styled("▏", "$gauge-peak on $gauge-free"),
        Content.styled(" " * (rest - tick - 1), "on $gauge-free"),
    )


def memory_bar(used: float, total: float, width: int, peak: float | None = None) -> Content:
    share = used / total if total else 0.0
    style = "$gauge-high" if share >= HIGH_SHARE else "$gauge-used"
    return bar(share, width, style=style, peak=peak / total if peak and total else None)


def short_memory(reading: Telemetry, width: int = 10) -> Content:
    """One line about the fullest GPU; where there is none, the reason, and the machine's memory."""
    with_memory = [gpu for gpu in reading.gpus if gpu.memory_used_bytes is not None and gpu.memory_total_bytes]
    if with_memory:
        gpu = max(with_memory, key=lambda one: (one.memory_used_bytes or 0) / (one.memory_total_bytes or 1))
        used, total = gpu.memory_used_bytes or 0, gpu.memory_total_bytes or 0
        label = f"GPU {gpu.index} " if len(reading.gpus) > 1 else "GPU "
        use = "" if gpu.utilisation_percent is None else f"  {gpu.utilisation_percent:.0f} %"
        numbers = f" {used / 2**30:.1f}/{memory(total)}{use}"
    else:
        used, total = reading.host_used_bytes, reading.host_total_bytes
        label = "GPU: no memory figures · RAM " if reading.gpus else "no GPU here · RAM "
        numbers = f" {used / 2**30:.1f}/{memory(total)}"
    return Content.assemble(Content.styled(label, "$muted"), memory_bar(used, total, width), numbers)
