"""Record a demo run in the wizard as a one-minute asciicast: `asciinema play docs/demo.cast` plays it.

    python docs/recording.py [--output docs/demo.cast]

It is a real run on a real pseudo-terminal, driven by the keys that a person would press. Waiting times are shortened:
no pause is longer than MAX_PAUSE, and the recording is scaled to at most a minute. The title says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import pyte

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from engine.core.layout import EVENTS_JSONL  # noqa: E402
from tests.support.pseudo_terminal import PseudoTerminal, demo  # noqa: E402

COLUMNS, ROWS = 100, 30
MAX_PAUSE, MAX_LENGTH = 2.0, 60.0
"""Seconds."""
FRAMES_PER_SECOND = 2
"""Enough for a viewer, and keeps the file small."""
COLOUR_NAMES = ("black", "red", "green", "brown", "blue", "magenta", "cyan", "white")
"""Names of the ANSI colours in pyte, in order."""
RUN_TIMEOUT = 600.0


class Recorded(PseudoTerminal):
    """A terminal that keeps each piece of output with its time."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        super().__init__(command, columns=COLUMNS, rows=ROWS, **environment)  # type: ignore[arg-type]

    def read(self, seconds: float) -> bool:
        before = len(self.seen)
        is_open = super().read(seconds)
        if len(self.seen) > before:
            self.pieces.append((time.monotonic(), self.seen[before:]))
        return is_open


def record(folder: Path) -> list[tuple[float, bytes]]:
    """Record the demo from its first screen to the verdict, with pairs, curves and log on the way."""
    terminal = Recorded(demo(folder), COLORTERM="truecolor")
    terminal.wait_for("Workspace", RUN_TIMEOUT)
    terminal.rest(3)
    terminal.press("a")
    journal = folder / EVENTS_JSONL
    terminal.until(
        lambda: journal.exists() and '"run_finished"' in journal.read_text(), "the end of the run", RUN_TIMEOUT
    )
    terminal.rest(3)
    for keys, seconds in (("9", 3.0), ("n", 1.5), ("n", 1.5), ("v", 0.3), ("v", 2.0), ("\t", 0.5)):
        terminal.press(keys)
        terminal.rest(seconds)
    for _ in range(8):
        terminal.press("\x1b[D")
        terminal.rest(0.3)
    for keys, seconds in (("g", 1.0), ("b", 3.0), ("j", 0.7), ("j", 0.7), ("l", 2.0), ("\x1b", 1.5)):
        terminal.press(keys)
        terminal.rest(seconds)
    terminal.press("q")
    terminal.end(60)
    return terminal.pieces


def shortened(times: list[float]) -> list[float]:
    """The times starting at zero, without long pauses, scaled to at most a minute."""
    moments, at = [], 0.0
    for before, now in zip([times[0], *times], times, strict=False):
        at += min(now - before, MAX_PAUSE)
        moments.append(at)
    factor = min(1.0, MAX_LENGTH / max(at, 1e-9))
    return [moment * factor for moment in moments]


def asciicast(pieces: list[tuple[float, bytes]]) -> str:
    """Version 2 of the format (docs.asciinema.org/manual/asciicast/v2): at most FRAMES_PER_SECOND, each with the changed rows."""
    seconds = pieces[-1][0] - pieces[0][0]
    title = f"stage3-tui --demo on a CPU; {seconds:.0f} seconds, shown in at most a minute"
    lines = [json.dumps({"version": 2, "width": COLUMNS, "height": ROWS, "title": title})]
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    shown, last = [""] * ROWS, -1.0
    moments = shortened([when for when, _ in pieces])
    for index, (moment, (_, data)) in enumerate(zip(moments, pieces, strict=True)):
        stream.feed(re.sub(rb"\x1b\[[<>=][\d;]*u", b"", data))
        if moment - last < 1 / FRAMES_PER_SECOND and index < len(pieces) - 1:
            continue
        rows = [without_checkout_path(row_of(screen, y)) for y in range(ROWS)]
        changed = "".join(f"\x1b[{y + 1}H{row}" for y, row in enumerate(rows) if row != shown[y])
        if changed:
            lines.append(json.dumps([round(moment, 2), "o", f"\x1b[?25l{changed}\x1b[0m"], ensure_ascii=False))
            shown, last = rows, moment
    return "\n".join(lines) + "\n"


def without_checkout_path(row: str) -> str:
    """The row with ~ in place of the folder of this checkout; the rest of the row keeps its columns."""
    path = str(ROOT)
    return re.sub(rf"{re.escape(path)}([\w./-]*)", lambda found: f"~{found[1]}{' ' * (len(path) - 1)}", row)


def row_of(screen: pyte.Screen, y: int) -> str:
    """One row of the emulated screen as text with colours."""
    row, style = "", ""
    for x in range(COLUMNS):
        cell = screen.buffer[y][x]
        cell_style = f"\x1b[0{';1' if cell.bold else ''}{';7' if cell.reverse else ''}{_colour(cell.fg, 38)}{_colour(cell.bg, 48)}m"
        row += (cell_style if cell_style != style else "") + cell.data
        style = cell_style
    return row


def _colour(name: str, kind: int) -> str:
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f";{kind};2;{int(name[:2], 16)};{int(name[2:4], 16)};{int(name[4:], 16)}"
    return f";{kind - 8 + COLOUR_NAMES.index(name)}" if name in COLOUR_NAMES else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "demo.cast")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pieces = record(Path(folder) / "stage3_constitutional")
    recorded = asciicast(pieces)
    if str(ROOT) in recorded or str(ROOT.parent) in recorded:
        raise SystemExit(
            f"The recording contains a path of this machine: move the checkout to a shorter path than {ROOT}."
        )
    arguments.output.write_text(recorded, encoding="utf-8")
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
