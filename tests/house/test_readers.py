"""Every file that somebody else may have written is opened by one reader (`engine.core.reading`), and JSON has a limit."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAW = re.compile(
    r"json\.loads?\(|yaml\.\w*load\(|tomllib\.loads?\(|\.read_text\(|\.read_bytes\(|\.open\(\"rb\"\)|\.open\(encoding="
)

OWN = {
    "engine/core/reading.py": "the reader itself",
    "engine/core/nesting.py": "the reader of JSON that others send",
    "engine/core/options.py": "our own source",
    "engine/demo/build.py": "our own demo, when it is made",
    "engine/demo/grammar.py": "our own demo",
    "engine/demo/tokenizer.py": "a tokenizer that was made a moment ago",
    "engine/dpo/evaluation/answers.py": "a list in the package",
    "engine/dpo/training/trainer.py": "what PEFT wrote a moment ago, beside its name",
    "engine/machine/gpus.py": "the output of our own child",
    "engine/machine/memory.py": "/proc",
    "engine/machine/probe.py": "the output of our own child",
    "engine/machine/session_lifetime.py": "/proc",
    "engine/machine/torch_build.py": "an installed package",
    "engine/models/adapters/header.py": "the header of safetensors, with limits of its own",
    "engine/packaging/fresh_process.py": "the output of our own child",
    "engine/packaging/support_text.py": "our own source",
    "engine/pairs/detectors/meta.py": "words and weights in the package",
    "engine/pairs/detectors/refusal.py": "words in the package",
    "engine/pairs/detectors/relevance.py": "words in the package",
    "engine/pairs/formats/native_form.py": "what was written a moment ago, in memory",
    "engine/pairs/judges/exam.py": "the exam in the package",
    "engine/pipeline/graph.py": "what was written a moment ago, in memory",
    "engine/push/dataset.py": "what `validate` wrote a moment ago",
    "engine/process/children.py": "/proc",
    "engine/process/kill.py": "/proc",
    "engine/process/suspended.py": "/proc",
    "engine/run/owner.py": "/proc",
    "tui/terminal/external_editor.py": "a temporary file of our own",
}
"""Files that read without it, and what they read."""


def test_nobody_reads_a_strangers_file_without_the_reader():
    found = {
        path.relative_to(ROOT).as_posix()
        for room in ("engine", "tui", "themes")
        for path in (ROOT / room).rglob("*.py")
        if RAW.search(path.read_text(encoding="utf-8"))
    }
    assert found - OWN.keys() == set(), "use engine.core.reading, engine.storage.documents or engine.storage.jsonl"
    assert OWN.keys() - found == set(), "these need no exception any more"
