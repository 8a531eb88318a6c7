"""`stage3-tui validate`: the quality report and the gate on any pairs file, alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.config import Stage3Config
from engine.errors import ConfigError
from engine.jsonl import BadLine
from engine.pairs.files import read_pairs
from engine.pairs.gate import Tally, Verdict, report


@dataclass(frozen=True)
class Validation:
    report: dict[str, Any]
    verdicts: list[Verdict]
    bad_lines: list[BadLine]

    @property
    def open(self) -> bool:
        """Whether the file may train: the gate is open, and every line is a pair."""
        return bool(self.report["gate"]["open"]) and not self.bad_lines

    def as_dict(self) -> dict[str, Any]:
        verdicts = [{"line": v.line, "usable": v.usable, "reasons": list(v.reasons)} for v in self.verdicts]
        return {**self.report, "bad_lines": [asdict(bad) for bad in self.bad_lines], "verdicts": verdicts}


def validate(path: Path, config: Stage3Config) -> Validation:
    """Judge every line. Lines that are no pair are named, and the rest is judged. Raises ConfigError without a file."""
    if not path.is_file():
        raise ConfigError(f"There is no pairs file {path}.", "", "Give the path of a JSONL file with one pair a line.")
    tally = Tally()
    verdicts: list[Verdict] = []
    bad_lines: list[BadLine] = []
    for line, pair in read_pairs(path):
        if isinstance(pair, BadLine):
            bad_lines.append(pair)
        else:
            verdicts.append(tally.add(line, pair))
    return Validation(report(tally, config), verdicts, bad_lines)
