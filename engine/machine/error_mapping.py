"""Map exceptions of libraries and the system to errors that a person can fix."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path

from engine.core.errors import DiskError, MemoryExhausted, Stage3Error
from engine.machine.device_errors import is_broken_device, is_out_of_memory
from engine.storage.files import owner_of

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
# torch and safetensors report a full disk in their own words (iostream error, unexpected pos, StorageFull).
_NO_SPACE_TEXT = re.compile(
    r"iostream error|unexpected pos \d+ vs|StorageFull|No space left|PytorchStreamWriter", re.IGNORECASE
)


def as_stage3_error(error: BaseException) -> Stage3Error | None:
    """The fixable error behind `error`, or None: then it is a bug."""
    if isinstance(error, Stage3Error):
        return error
    of_the_hub = _hub_failure(error)
    if of_the_hub is not None:
        return of_the_hub
    if (isinstance(error, OSError) and error.errno in _NO_SPACE) or _NO_SPACE_TEXT.search(str(error)):
        return DiskError(
            "Writing to disk failed.",
            str(error),
            "Free some space, then run the same command again: everything made so far is saved.",
        )
    if is_out_of_memory(error):
        return MemoryExhausted(
            "Memory ran out.",
            str(error).splitlines()[0] if str(error) else "The allocation failed.",
            "Lower --generation-batch-size or, in training, --per-device-train-batch-size or --max-length, and run the same "
            "command again: it keeps pairs and scores.",
        )
    if is_broken_device(error):
        return Stage3Error(
            "The GPU's context broke.",
            str(error).splitlines()[0],
            "Check `nvidia-smi` and `dmesg | grep -i xid`: after a hardware fault the machine must be restarted. "
            "The same command continues from here.",
        )
    if isinstance(error, PermissionError):
        return DiskError(
            f"Permission denied: {error.filename}",
            f"{error}. {_whose(error.filename)}".strip(),
            "Change its owner or mode, or choose another path.",
        )
    return None


def _whose(name: object) -> str:
    try:
        return f"It belongs to {owner_of(Path(str(name)))}."
    except OSError:  # missing, or not visible to us
        return ""


def _hub_failure(error: BaseException) -> Stage3Error | None:
    """The Hub's error anywhere in the chain of causes; its HTTP error is an OSError, too."""
    if "huggingface_hub" not in sys.modules:
        return None
    from engine.hub import as_hub_error

    return as_hub_error(error)
