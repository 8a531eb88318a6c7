"""The model card of the Stage 3 adapter: what it was made from, what came of it, and the two lines that load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def load_lines(base: str, revision: str | None, adapter: str) -> tuple[str, str]:
    """The two lines of Python that load `adapter` over `base`."""
    at = f", revision={revision!r}" if revision else ""
    return (
        f"base = transformers.AutoModelForCausalLM.from_pretrained({base!r}{at})",
        f"model = peft.PeftModel.from_pretrained(base, {adapter!r})",
    )


def model_card(
    *,
    base: str,
    revision: str | None,
    data: Mapping[str, Any],
    gate: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    versions: Mapping[str, str],
    hashes: Mapping[str, str],
) -> str:
    """The card as Markdown; every mapping becomes a table in its own order."""
    load = "\n".join(load_lines(base, revision, "."))
    reasons = "\n".join(f"- {_inline(reason)}" for reason in evaluation["reasons"])
    return f"""---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [lora, dpo, constitutional-ai]
---

# Stage 3 "constitutional" LoRA adapter

Trained by [stage3-tui](https://pypi.org/project/stage3-tui/): DPO of a Stage 2 LoRA adapter against itself, on pairs of
its own drafts and revisions.

## Is it better than Stage 2? {str(evaluation["verdict"]).capitalize()}

{reasons}

{_table(evaluation["figures"])}

## Use

In this folder, with `import transformers, peft`:

```python
{load}
```

## Data

{_table(data)}

## The gate

{_table(gate)}

## Training

{_table(hyperparameters)}

## Where it comes from

{_table({"base model": base, "base commit": revision or "a local folder", **hashes, **versions})}
"""


def _table(values: Mapping[str, Any]) -> str:
    lines = [
        f"| {_inline(key)} | {_inline(_shown(value))} |"
        for key, value in values.items()
        if not isinstance(value, (dict, list))
    ]
    return "\n".join(["| | |", "|---|---|", *lines])


def _shown(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _inline(text: object) -> str:
    """One cell of a table: foreign text can not end it, nor begin HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
