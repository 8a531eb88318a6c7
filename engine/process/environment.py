"""Set up this process: quiet libraries, no telemetry, no core dumps, logging to a file."""

from __future__ import annotations

import logging
import os
import resource
import sys
import warnings
from pathlib import Path

from engine.core.config import Stage3Config
from engine.core.failpoints import VARIABLE as FAILPOINTS
from engine.security.redaction import LogFormatter, redact_this_process

QUIET = {
    # Waiting threads spin by default; beside a screen or another job on the same cores, a step took 5 to 20 times as long.
    "OMP_WAIT_POLICY": "passive",
    # TRL sends telemetry from every trainer's constructor unless this is set.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TQDM_DISABLE": "1",
}


MODEL_CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")


def model_process_environment() -> dict[str, str]:
    """The additional variables for a child that loads the run's models. The models are cached by then, so the child works
    offline and gets no token.
    """
    kept = {name: os.environ[name] for name in (*MODEL_CACHE_VARIABLES, FAILPOINTS) if name in os.environ}
    return {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1", **kept}


def quiet_libraries() -> None:
    """Set the variables that libraries read. Call this before importing any of them."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)


def prepare_process(config: Stage3Config) -> None:
    """Set up this process before the first stage."""
    quiet_libraries()
    disable_core_dumps()
    warnings.simplefilter("ignore", FutureWarning)
    for name in ("httpx", "httpx2", "urllib3", "filelock", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)


def disable_core_dumps() -> None:
    """Disable core dumps of this process and its children, which would contain the token and tens of gigabytes of weights."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


class QuietLogger(logging.Logger):
    """A logger that never writes to the terminal, whatever a library does.

    When imported, transformers, datasets, torch and huggingface_hub add a stderr handler to their loggers and stop propagation
    to the root handler, which writes the run's log.
    """

    @property
    def propagate(self) -> bool:
        return True

    @propagate.setter
    def propagate(self, value: bool) -> None:
        """Ignored, so that records always reach the run's log."""

    def addHandler(self, hdlr: logging.Handler) -> None:
        if getattr(hdlr, "stream", None) not in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            super().addHandler(hdlr)


def log_to_file(path: Path) -> logging.Handler:
    """Write the log of this process, and of libraries imported from now on, to `path` instead of the terminal, with tokens
    redacted."""
    redact_this_process()
    logging.raiseExceptions = False  # a line that cannot be written (a full disk) is lost without a traceback
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.setLoggerClass(QuietLogger)
    logging.captureWarnings(True)
    return handler
