"""`rclone copy` and `rclone sync` between folders, as far as examples/spot uses them."""

from __future__ import annotations

import fnmatch
import shutil
import sys
from pathlib import Path

DIRECTORY_NOT_FOUND = 3


def main(arguments: list[str]) -> int:
    verb, *rest = arguments
    excluded = [rest[index + 1] for index, word in enumerate(rest) if word == "--exclude"]
    source, target = [Path(word) for word in rest if not word.startswith("--") and word not in excluded]
    if not source.is_dir():
        return DIRECTORY_NOT_FOUND
    names = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    wanted = [name for name in names if not any(fnmatch.fnmatch(f"/{name}", pattern[2:]) for pattern in excluded)]
    for name in wanted:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)
    if verb == "sync":
        for path in target.rglob("*"):
            if path.is_file() and path.relative_to(target) not in wanted:
                path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
