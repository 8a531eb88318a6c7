"""The dataset card of pushed preference pairs: contents, origin, and the gate's figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from engine import __version__
from engine.packaging.model_card import counts_of, gate_text, table


def dataset_card(report: Mapping[str, Any], *, source: str, data_file: str, pairs: int) -> str:
    """The card as Markdown, with the configuration that `datasets` needs to find the split.

    report   the report of `validate`
    source   the validated file; the card only mentions its name
    """
    origin = {
        "pairs in this dataset": pairs,
        "made from": PurePath(source).name,
        "written by": f"stage3-tui {__version__}",
    }
    return f"""---
tags: [dpo, preference, trl]
configs:
- config_name: default
  data_files:
  - split: train
    path: {data_file}
---

# Preference pairs

TRL's conversational form: `prompt`, `chosen` and `rejected` are lists of messages.

```python
from datasets import load_dataset; pairs = load_dataset("OWNER/NAME", split="train")
```

## Data

{table({**origin, **counts_of(report), "scored by": report.get("scored_by") or "no judge"})}

## The gate

{gate_text(report.get("gate", {}))}
"""
