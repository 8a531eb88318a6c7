"""Load an archive in a fresh process: unpack it, load its adapter over the base model, and measure the adapter's effect."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import DamagedState, Stage3Error
from engine.hub.references import is_local, local_path
from engine.packaging.contents import CHAT_TEMPLATE
from engine.packaging.verify import read_back
from engine.process.children import run_child
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line

LOAD_SECONDS = 1800.0
CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
"""Variables that locate the base model on this machine."""
OPTIONS = ("device", "dtype", "load_in_4bit", "sharding")
"""Options that decide where the base model is loaded, and in which format."""


def load_in_fresh_process(
    archive: Path,
    config: Stage3Config,
    *,
    base_commit: str | None = None,
    expected_tensors: str | None = None,
    stop: StopToken | None = None,
) -> float:
    """Load the archive's adapter over the base model in another process. Returns its largest effect on a logit.

    base_commit        the base model's commit on the Hub, if the run resolved one
    expected_tensors   the hash of the adapter's tensors that training recorded

    Raises DamagedState with that process's message if it fails, and Stopped.
    """
    request = _request(archive, config, base_commit or config.base_model_revision)
    # The base model is cached by now, so the child works offline and gets no token.
    cache = {name: os.environ[name] for name in CACHE_VARIABLES if name in os.environ}
    done = run_child(
        [sys.executable, "-m", "engine.packaging", json.dumps(request)],
        limit_seconds=LOAD_SECONDS,
        cwd=archive.parent,
        extra={"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1", **cache},
        stop=stop,
    )
    outcome = _outcome(done.output) if done.ok else {"error": done.ending}
    _refuse_other_adapter(outcome, expected_tensors)
    return float(outcome["effect"])


def _request(archive: Path, config: Stage3Config, base_revision: str | None) -> dict[str, Any]:
    base = str(local_path(config.base_model_id)) if is_local(config.base_model_id) else config.base_model_id
    return {
        "archive": str(archive),
        "base_model_id": base,
        "base_model_revision": base_revision,
        "output_dir": str(config.output_dir.resolve()),  # where preflight recorded the number format
        **{option: getattr(config, option) for option in OPTIONS},
    }


def _refuse_other_adapter(outcome: Mapping[str, Any], expected_tensors: str | None) -> None:
    if "error" in outcome:
        raise DamagedState(
            "The adapter in the archive does not load in a fresh process.",
            visible_line(str(outcome["error"]), 600),
            "Train again with `stage3-tui --auto --from training`, or report it.",
        )
    if expected_tensors is not None and outcome["tensors_sha256"] != expected_tensors:
        raise DamagedState(
            "The adapter in the archive is not the trained one.",
            f"Its tensors have the SHA-256 {outcome['tensors_sha256']}; training recorded {expected_tensors}.",
            "Another program changed models/lora_adapters after training: run `stage3-tui --auto --from training`.",
        )


def _outcome(output: tuple[str, ...]) -> dict[str, Any]:
    try:
        outcome = json.loads(output[-1])
    except (IndexError, ValueError):
        return {"error": "It ended without output."}
    return outcome if isinstance(outcome, dict) else {"error": "Its output is invalid."}


# -- in that process ----------------------------------------------------------------------------------------------------


def main(request: str) -> int:
    """Entry point of the fresh process: print one line of JSON to standard output."""
    from engine.process.environment import quiet_libraries

    quiet_libraries()
    try:
        outcome = load_archive(json.loads(request))
    except Stage3Error as error:
        outcome = {"error": str(error)}
    print(json.dumps(outcome))
    return 0


def load_archive(request: Mapping[str, Any]) -> dict[str, Any]:
    """Unpack beside the archive, load, and switch the adapter on and off. Raises Stage3Error if any of it fails."""
    from engine.models.adapters.effect import effect_on_logits
    from engine.models.adapters.weights import read_tensors, refuse_bad_numbers
    from engine.models.loading import load_base, load_policy, load_tokenizer
    from engine.models.tensors import hash_tensors

    archive = Path(request["archive"])
    config = Stage3Config(**{key: value for key, value in request.items() if key != "archive"})
    scratch = Path(tempfile.mkdtemp(prefix=f".{archive.name}.", dir=archive.parent))
    try:
        read_back(archive)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(scratch)  # read_back refused every name that leaves the folder
        adapter = next(scratch.glob(f"*/{layout.ADAPTER_DIR}"))
        tensors = read_tensors(adapter)
        refuse_bad_numbers(tensors)
        packed_template = config.model_copy(update={"chat_template": str(adapter / CHAT_TEMPLATE)})
        effect = effect_on_logits(load_policy(load_base(config), adapter), load_tokenizer(packed_template))
        return {"effect": effect, "tensors_sha256": hash_tensors(tensors)}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
