"""Stage 1: the working folder and the disk space."""

from __future__ import annotations

import shutil
from pathlib import Path

from textual.content import Content

from engine.run.state import RunState, StageState
from tui.formatting import memory
from tui.screens.base import StageView
from tui.widgets.gauge import memory_bar
from tui.widgets.layout import EMPTY

DISK_SECONDS = 5


class WorkspaceView(StageView):
    STAGE = "workspace"

    _looked: tuple[float, float] | None = None

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        needed = state.forecast.disk_bytes if state.forecast is not None else 0.0
        if (now // DISK_SECONDS, needed) != self._looked:
            self._looked = (now // DISK_SECONDS, needed)
            usage = disk_usage(self.source.run.folder)
            key = None if usage is None else (round(usage[0], -7), usage[1], needed)
            self.paper("extra").put(
                key, (lambda width: disk_lines(*usage, needed, width)) if usage is not None else None
            )


def disk_usage(folder: Path) -> tuple[float, float] | None:
    """(used, total) bytes of the disk that holds, or will hold, `folder`; None if unknown."""
    for place in (folder, *folder.parents):
        try:
            usage = shutil.disk_usage(place)
        except OSError:  # it does not exist yet: use its parent
            continue
        return float(usage.total - usage.free), float(usage.total)
    return None


def disk_lines(used: float, total: float, needed: float, width: int) -> list[Content]:
    """Disk usage, with the usage that preflight forecasts, if it has."""
    needs = f"   the run needs about {memory(needed)}" if needed else ""
    told = Content.assemble((f"  {memory(total - used)} free", "bold"), (f" of {memory(total)}{needs}", "$muted"))
    label = Content.styled("Disk  ", "$muted")
    room = min(max(width - told.cell_length - label.cell_length, 10), 60)
    return [EMPTY, label + memory_bar(used, total, room, forecast=used + needed if needed else None) + told]
