"""Map exceptions from libraries and the operating system to errors that a person can fix."""

from __future__ import annotations

import errno
import sys

from engine.core.errors import MemoryExhausted, PreconditionError, Stage3Error
from engine.core.system_errors import carried_errno, system_error
from engine.machine.device_errors import is_broken_device, is_out_of_memory
from engine.security.sanitize import visible_line


def as_stage3_error(error: BaseException) -> Stage3Error | None:
    """The error that a person can fix, or None if the exception is a bug."""
    if isinstance(error, Stage3Error):
        return error
    if carried_errno(error) not in (None, errno.ENOMEM):
        return system_error(error)
    hub_error = _hub_error(error)
    if hub_error is not None:
        return hub_error
    if is_out_of_memory(error):
        return MemoryExhausted(
            "Memory ran out.",
            str(error).splitlines()[0] if str(error) else "The allocation failed.",
            "Lower --generation-batch-size or, in training, --per-device-train-batch-size or --max-length, and run the same "
            "command again: pairs and scores are kept.",
        )
    if is_panic(error):
        return PreconditionError(
            "A library crashed on its input.",
            visible_line(str(error), 400),
            "A file that it read is damaged or not supported: download the model again, or use another one. The traceback in "
            "logs/run.log names the library.",
        )
    if is_broken_device(error):
        return Stage3Error(
            "The CUDA context is broken.",
            str(error).splitlines()[0],
            "Check `nvidia-smi` and `dmesg | grep -i xid`: after a hardware fault the machine must be restarted. "
            "The same command continues from here.",
        )
    return system_error(error)


def is_panic(error: BaseException) -> bool:
    """Whether a Rust library (tokenizers, safetensors) panicked. Each library has its own exception class, and `except Exception`
    catches none of them.
    """
    return type(error).__name__ == "PanicException"


def _hub_error(error: BaseException) -> Stage3Error | None:
    """The Hub's error anywhere in the chain of causes. Its HTTP error is also an OSError."""
    if "huggingface_hub" not in sys.modules:
        return None
    from engine.hub import as_hub_error

    return as_hub_error(error)
