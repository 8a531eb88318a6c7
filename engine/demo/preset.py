"""The configuration defaults of `--demo`. Imports nothing heavy, because --help imports it, too."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).with_name("assets")


EXAMPLES = 160


def demo_defaults(num_examples: int = EXAMPLES) -> dict[str, object]:
    """The demo's values by configuration field; the command line overrides them.

    num_examples   the split takes this many prompts (of 600) from the start, so that a larger number keeps the existing ones

    With half a million parameters and 54 steps, the learning rate is far above what a real model tolerates. Beta compensates:
    over six seeds, beta 0.5 left at most 2 % of the held-out greedy answers flawed and at least 99 % well formed; with 0.1, one
    of the six seeds kept only 87 % well formed. At a learning rate of 3e-3 and beta 0.5, one of two seeds kept only 76 %.
    """
    return {
        "base_model_id": str(ASSETS / "base"),
        "adapter_path": str(ASSETS / "adapter"),
        "dataset": str(ASSETS / "prompts"),
        "split": f"train[:{num_examples}]",
        "constitution": str(ASSETS / "constitution.yaml"),
        "judge": "demo",
        "num_examples": num_examples,
        "max_new_tokens": 64,
        "temperature": 0.7,
        "top_p": 0.9,
        "learning_rate": 2e-3,
        "num_train_epochs": 3.0,
        "beta": 0.5,
        "max_length": 256,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "min_pairs": 80,
        "save_steps": 20,
    }
