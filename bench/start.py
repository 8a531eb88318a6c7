"""How fast the program answers `--help` and `--version`, compared with bare Python and with a program that imports its
training stack first. Best of N, in one run. For the wizard's first paint, see `bench/terminal.py`.

    python bench/start.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    program = [sys.executable, "-m", "tui.cli"]
    rows: list[tuple[str, Callable[[], float]]] = [
        ("python -c pass", lambda: wall([sys.executable, "-c", "pass"])),
        ("stage3-tui --version", lambda: wall([*program, "--version"])),
        ("stage3-tui --help", lambda: wall([*program, "--help"])),
        ("import of DPOTrainer alone", lambda: wall([sys.executable, "-c", "from trl import DPOTrainer"])),
    ]
    seconds = {name: [measure() for _ in range(repeat)] for name, measure in rows}
    plain = min(seconds["import of DPOTrainer alone"])
    print(f"{'':32}{'best':>8}{'median':>8}   share of importing DPOTrainer first")
    for name, taken in seconds.items():
        median = sorted(taken)[len(taken) // 2]
        print(f"{name:32}{min(taken):7.2f}s{median:7.2f}s   {min(taken) / plain:.2f}")


def wall(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
