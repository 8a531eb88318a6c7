"""Map exceptions of libraries and the system to errors that a person can fix."""

from __future__ import annotations

import errno
import sys

from engine.core.errors import MemoryExhausted, PreconditionError, Stage3Error
from engine.core.system_errors import carried_errno, system_error
from engine.machine.device_errors import is_broken_device, is_out_of_memory
from engine.security.sanitize import visible_line


def as_stage3_error(error: BaseException) -> Stage3Error | None:
    """The fixable error behind `error`, or None: then it is a bug."""
    if isinstance(error, Stage3Error):
        return error
    if carried_errno(error) not in (None, errno.ENOMEM):
        return system_error(error)
    of_the_hub = _hub_failure(error)
    if of_the_hub is not None:
        return of_the_hub
    if is_out_of_memory(error):
        return MemoryExhausted(
            "Memory ran out.",
            str(error).splitlines()[0] if str(error) else "The allocation failed.",
            "Lower --generation-batch-size or, in training, --per-device-train-batch-size or --max-length, and run the same "
            "command again: it keeps pairs and scores.",
        )
    if is_panic(error):
        return PreconditionError(
            "A library broke on what it was given.",
            visible_line(str(error), 400),
            "One of the files that it read is damaged, or it cannot read it: download the model again, or give another one. The "
            "traceback in logs/run.log has the library's name.",
        )
    if is_broken_device(error):
        return Stage3Error(
            "The GPU's context broke.",
            str(error).splitlines()[0],
            "Check `nvidia-smi` and `dmesg | grep -i xid`: after a hardware fault the machine must be restarted. "
            "The same command continues from here.",
        )
    return system_error(error)


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust (tokenizers, safetensors) gave up. Its class is none that `except Exception` catches, and each
    library has its own.
    """
    return type(error).__name__ == "PanicException"


def _hub_failure(error: BaseException) -> Stage3Error | None:
    """The Hub's error anywhere in the chain of causes; its HTTP error is an OSError, too."""
    if "huggingface_hub" not in sys.modules:
        return None
    from engine.hub import as_hub_error

    return as_hub_error(error)
