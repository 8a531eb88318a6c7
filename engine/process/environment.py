"""The environment of this process and of its children: quiet libraries, no telemetry, no secrets for strangers."""

from __future__ import annotations

import logging
import os
import resource
import sys
import warnings
from pathlib import Path

from engine.core.config import Stage3Config
from engine.security.redaction import RedactingFormatter, redact_this_process

QUIET = {
    # Threads that wait spin; with a screen or another job on the same cores that made a step 5 to 20 times slower.
    "OMP_WAIT_POLICY": "passive",
    # TRL sends telemetry from every trainer's constructor unless this is set.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TQDM_DISABLE": "1",
}


def quiet_libraries() -> None:
    """Set what libraries read from the environment; call before any of them is imported."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)


def prepare_process(config: Stage3Config) -> None:
    """Before the first stage: what must be set once in a process."""
    quiet_libraries()
    leave_no_core_dumps()
    warnings.simplefilter("ignore", FutureWarning)
    for name in ("httpx", "httpx2", "urllib3", "filelock", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)


def leave_no_core_dumps() -> None:
    """Of this process and its children: a token would be in them, and tens of gigabytes of weights."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


class QuietLogger(logging.Logger):
    """A logger that writes on no terminal, whatever a library makes of it.

    transformers, datasets, torch and huggingface_hub put a handler to stderr on their loggers when they are imported, and
    keep their records from the root's handler, which writes the run's log.
    """

    @property
    def propagate(self) -> bool:
        return True

    @propagate.setter
    def propagate(self, value: bool) -> None:
        """Records always reach the run's log."""

    def addHandler(self, hdlr: logging.Handler) -> None:
        if getattr(hdlr, "stream", None) not in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            super().addHandler(hdlr)


def log_to_file(path: Path) -> logging.Handler:
    """Send the log of this process, and of the libraries that it imports from now on, to `path`; nothing goes to the
    terminal, and no token to either."""
    redact_this_process()
    logging.raiseExceptions = False  # a line that cannot be written (a full disk) is lost, and nobody's traceback
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.setLoggerClass(QuietLogger)
    logging.captureWarnings(True)
    return handler
