"""Foreign exceptions, told apart: which of them a person can mend, and how."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path

from engine.core.errors import DiskError, MemoryExhausted, Stage3Error
from engine.machine.device_errors import is_broken_device, is_out_of_memory
from engine.storage.files import owner_of

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
# torch and safetensors say a full disk in words of their own (iostream error, unexpected pos, StorageFull).
_NO_SPACE_TEXT = re.compile(
    r"iostream error|unexpected pos \d+ vs|StorageFull|No space left|PytorchStreamWriter", re.IGNORECASE
)


def as_stage3_error(error: BaseException) -> Stage3Error | None:
    """The failure that a person can mend behind `error`, or None: then it is a bug of ours."""
    if isinstance(error, Stage3Error):
        return error
    of_the_hub = _hub_failure(error)
    if of_the_hub is not None:
        return of_the_hub
    if (isinstance(error, OSError) and error.errno in _NO_SPACE) or _NO_SPACE_TEXT.search(str(error)):
        return DiskError(
            "Writing to the disk failed.",
            str(error),
            "Free some space, then start the same command again: what was acknowledged is kept.",
        )
    if is_out_of_memory(error):
        return MemoryExhausted(
            "Memory ran out.",
            str(error).splitlines()[0] if str(error) else "The allocation failed.",
            "Make --generation-batch-size smaller, or in the training --per-device-train-batch-size or --max-length, and start "
            "the same command again: pairs and scores that are there stay.",
        )
    if is_broken_device(error):
        return Stage3Error(
            "The GPU's context broke.",
            str(error).splitlines()[0],
            "Look at `nvidia-smi` and at `dmesg | grep -i xid`: after a fault of the hardware the machine has to start anew. "
            "The same command goes on from here.",
        )
    if isinstance(error, PermissionError):
        return DiskError(
            f"Access to {error.filename} was refused.",
            f"{error}. {_whose(error.filename)}".strip(),
            "Change its owner or mode, or the path.",
        )
    return None


def _whose(name: object) -> str:
    try:
        return f"It belongs to {owner_of(Path(str(name)))}."
    except OSError:  # it is not there, or not to be seen
        return ""


def _hub_failure(error: BaseException) -> Stage3Error | None:
    """What the Hub refused, wherever in the chain of causes it stands: its HTTP error is an OSError too."""
    if "huggingface_hub" not in sys.modules:
        return None
    from engine.hub import as_hub_error

    return as_hub_error(error)
