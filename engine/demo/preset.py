"""What `--demo` puts into the configuration. Nothing heavy is imported here: --help reads it too."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).with_name("assets")


EXAMPLES = 160


def demo_defaults(num_examples: int = EXAMPLES) -> dict[str, object]:
    """Field of the configuration → the demo's value; what the command line says goes before it.

    num_examples   how many are asked for: the split holds the first so many prompts, so that more examples keep those that
                   there are (there are 600)

    The learning rate is far above what a real model bears: this one has half a million parameters and 54 steps. Beta
    holds it back in turn: with six seeds, 0.5 left no more than 2 % of the held-out greedy answers flawed and 99 %
    or more well formed; at beta 0.1 one of the six kept only 87 % well formed. At 3e-3 and beta 0.5 one of two seeds
    kept only 76 %.
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
