"""The demo's Stage 2 policy for `transformers serve`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine.demo.preset import ASSETS

TRANSFORMERS = """
import gc
gc.set_threshold(100_000, 20, 20)  # saves a quarter of the start-up time
from transformers.cli.transformers import main
main()
"""


def merged_policy(folder: Path) -> Path:
    """The demo's base model with its adapter merged in, and its tokenizer, in `folder`."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(ASSETS / "base")
    PeftModel.from_pretrained(base, ASSETS / "adapter").merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(ASSETS / "base").save_pretrained(folder)
    return folder


def serve_command(model: Path) -> list[str]:
    """`transformers serve` on the CPU; skips the test if it is not installed."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("`transformers serve` needs the extra: pip install -e '.[server]'")
    return [sys.executable, "-c", TRANSFORMERS, "serve", str(model), "--device", "cpu"]
