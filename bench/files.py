"""Memory and time to read preference files in each container format, each in a fresh process.

    python -m bench.files [--rows 100000]

Reading must not accumulate memory: the peak resident memory for many rows is compared with that for a thousand.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

READ = """
import sys, time
from pathlib import Path
from engine.pairs.formats.reading import read_pairs
started = time.perf_counter()
count = sum(1 for _ in read_pairs(Path(sys.argv[1])))
status = Path("/proc/self/status").read_text()  # getrusage would include the memory of the parent process
print(count, status.split("VmHWM:")[1].split()[0], time.perf_counter() - started)
"""
FEW = 1000


def rows(count: int) -> Iterator[dict[str, str]]:
    for number in range(count):
        prompt = (
            f"How do I mend thing number {number}, which broke on day {number % 365} of a year that was none too good?"
        )
        yield {
            "prompt": prompt,
            "chosen": f"Glue thing {number} gently. " * 8,
            "rejected": f"Kick thing {number}. " * 12,
        }


def lines(count: int) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows(count))


def table(count: int) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "chosen", "rejected"])
    writer.writeheader()
    writer.writerows(rows(count))
    return text.getvalue().encode()


def parquet(count: int) -> bytes:
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows(count))), sink)
    return sink.getvalue()


def arrow(count: int) -> bytes:
    import pyarrow.ipc

    made, sink = pyarrow.Table.from_pylist(list(rows(count))), io.BytesIO()
    with pyarrow.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made, max_chunksize=1000)
    return sink.getvalue()


def zstandard(count: int) -> bytes:
    import pyarrow

    packed: bytes = pyarrow.compress(lines(count), codec="zstd", asbytes=True)
    return packed


CONTAINERS: dict[str, Callable[[int], bytes]] = {
    "rows.jsonl": lines,
    "rows.jsonl.gz": lambda count: gzip.compress(lines(count), 1),
    "rows.jsonl.zst": zstandard,
    "utf16.jsonl": lambda count: lines(count).decode().encode("utf-16"),
    "rows.json": lambda count: json.dumps(list(rows(count))).encode(),
    "rows.csv": table,
    "rows.txt": lambda count: b"".join(row["prompt"].encode() + b"\n" for row in rows(count)),
    "rows.parquet": parquet,
    "rows.arrow": arrow,
}


def measured(path: Path) -> tuple[int, int, float]:
    """(rows, peak resident memory in kB, seconds) of a fresh process."""
    command = [sys.executable, "-c", READ, str(path)]
    count, peak, seconds = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(count), int(peak), float(seconds)


def measure(name: str, make: Callable[[int], bytes], count: int, folder: Path) -> dict[str, Any]:
    path = folder / name
    path.write_bytes(make(FEW))
    _, few, _ = measured(path)
    path.write_bytes(make(count))
    size = path.stat().st_size
    found, many, seconds = measured(path)
    path.unlink()
    return {"name": name, "rows": found, "size": size, "few": few, "many": many, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    given = parser.parse_args()
    print(f"| file | rows | MB | peak MiB, {FEW:,} rows | peak MiB, {given.rows:,} rows | seconds |")
    print("|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in CONTAINERS.items():
            one = measure(name, make, given.rows, Path(folder))
            print(
                f"| `{one['name']}` | {one['rows']:,} | {one['size'] / 1e6:.0f} | {one['few'] / 1024:.0f} | "
                f"{one['many'] / 1024:.0f} | {one['seconds']:.1f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
