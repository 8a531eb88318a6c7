"""Every untrusted file is opened by one reader (`engine.core.reading`), and JSON has limits."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAW = re.compile(
    r"json\.loads?\(|yaml\.\w*load\(|tomllib\.loads?\(|\.read_text\(|\.read_bytes\(|\.open\(\"rb\"\)|\.open\(encoding="
)

OWN = {
    "engine/core/reading.py": "the reader itself",
    "engine/core/nesting.py": "the reader of JSON from outside",
    "engine/core/options.py": "our own source",
    "engine/demo/build.py": "our own demo, while it is built",
    "engine/demo/grammar.py": "our own demo",
    "engine/demo/tokenizer.py": "a tokenizer that was just made",
    "engine/dpo/evaluation/answers.py": "a list in the package",
    "engine/dpo/training/trainer.py": "a file that PEFT just wrote",
    "engine/machine/gpus.py": "the output of our own child",
    "engine/machine/memory.py": "/proc",
    "engine/machine/probe.py": "the output of our own child",
    "engine/machine/session_lifetime.py": "/proc",
    "engine/machine/torch_build.py": "an installed package",
    "engine/models/adapters/header.py": "the header of safetensors, with its own limits",
    "engine/packaging/fresh_process.py": "the output of our own child",
    "engine/packaging/support_text.py": "our own source",
    "engine/pairs/detectors/meta.py": "words and weights in the package",
    "engine/pairs/detectors/refusal.py": "words in the package",
    "engine/pairs/detectors/relevance.py": "words in the package",
    "engine/pairs/formats/native_form.py": "a record that was just made, in memory",
    "engine/pairs/judges/exam.py": "the exam in the package",
    "engine/pipeline/graph.py": "a record that was just made, in memory",
    "engine/push/dataset.py": "a file that `validate` just wrote",
    "engine/process/children.py": "/proc",
    "engine/process/kill.py": "/proc",
    "engine/process/suspended.py": "/proc",
    "engine/run/owner.py": "/proc",
    "tui/terminal/external_editor.py": "a temporary file of our own",
}
"""Files that read without it → what they read."""


def test_no_untrusted_file_is_read_without_the_reader():
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("engine", "tui", "themes")
        for path in (ROOT / package).rglob("*.py")
        if RAW.search(path.read_text(encoding="utf-8"))
    }
    assert found - OWN.keys() == set(), "use engine.core.reading, engine.storage.documents or engine.storage.jsonl"
    assert OWN.keys() - found == set(), "these no longer need an exception"
