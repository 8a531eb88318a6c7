"""The cost of a disabled fail point, compared with an empty function and with a sync.

python -m bench.failpoints [--calls 1000000]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import timeit
from collections.abc import Callable

from engine.core.failpoints import failing, failpoint

REPEAT = 5


def nothing(point: str) -> bool:
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    calls = parser.parse_args().calls
    print(f"{'a function that does nothing':34}{best(lambda: nothing('sync'), calls):12.0f} ns per call")
    print(f"{'a fail point, none active':34}{best(lambda: failpoint('sync'), calls):12.0f} ns per call")
    with failing("zip=EIO@1"):
        print(
            f"{'a fail point, another one active':34}{best(lambda: failpoint('sync'), calls // 10):12.0f} ns per call"
        )
    with tempfile.NamedTemporaryFile() as file:
        print(f"{'an append of 200 bytes and a sync':34}{best(lambda: append(file.fileno()), 200):12.0f} ns per call")


def append(file: int) -> None:
    os.write(file, b"x" * 200)
    os.fsync(file)


def best(call: Callable[[], object], calls: int) -> float:
    """Nanoseconds per call, the best of several rounds."""
    return min(timeit.repeat(call, number=calls, repeat=REPEAT)) / calls * 1e9


if __name__ == "__main__":
    main()
