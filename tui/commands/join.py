"""`--auto --machine-rank 1`: a machine that joins the training of a run on machine 0."""

from __future__ import annotations

import json as json_module

from engine.core.config import Stage3Config
from engine.process.environment import prepare_process
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.security.redaction import redact
from engine.security.sanitize import visible_line
from tui.process.signals import install_signal_handlers


def run_joining(config: Stage3Config, *, json: bool) -> int:
    """Print what happens here until the training ends; returns the exit code. Raises Stopped, PreconditionError."""
    from engine.dpo.training.join import join_training

    prepare_process(config)
    stop = StopToken()
    install_signal_handlers(stop.request)
    joining = join_training(config, Run(config.output_dir), stop)
    while True:
        try:
            event = next(joining)
        except StopIteration as end:
            return int(end.value)
        print(json_module.dumps(event.as_dict()) if json else visible_line(redact(event.text)), flush=True)
