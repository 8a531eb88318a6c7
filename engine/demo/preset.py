"""What `--demo` puts into the configuration. Nothing heavy is imported here: --help reads it too."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).with_name("assets")


def demo_defaults() -> dict[str, object]:
    """Field of the configuration → the demo's value; what the command line says goes before it.

    The learning rate is far above what a real model bears: this one has half a million parameters and 54 steps.
    At 1e-3 it moves less than it should in that time, at 2e-3 its sentences may break.
    """
    return {
        "base_model_id": str(ASSETS / "base"),
        "adapter_path": str(ASSETS / "adapter"),
        "dataset": str(ASSETS / "prompts"),
        "split": "train[:160]",
        "constitution": str(ASSETS / "constitution.yaml"),
        "judge": "demo",
        "num_examples": 160,
        "max_new_tokens": 64,
        "temperature": 0.7,
        "top_p": 0.9,
        "learning_rate": 2e-3,
        "num_train_epochs": 3.0,
        "beta": 0.1,
        "max_length": 256,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "generation_batch_size": 64,
        "min_pairs": 80,
        "save_steps": 20,
    }
