"""The gate's figures while people review pairs. A decision updates them without assessing any other pair again. They equal what
stage quality computes from the same files (a test compares the two).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter

from engine.pairs.assessment.assess import NOT_BETTER, Assessment
from engine.pairs.assessment.gate import Counts


class ReversiblePromptCounter:
    """Counts pairs per prompt, and can remove them."""

    def __init__(self) -> None:
        self._pairs: Counter[int] = Counter()
        self._sharing = 0

    @property
    def sharing(self) -> int:
        return self._sharing

    def count(self, prompt: int, by: int) -> None:
        before = self._pairs[prompt]
        after = before + by
        self._sharing += (after if after > 1 else 0) - (before if before > 1 else 0)
        if after:
            self._pairs[prompt] = after
        else:
            del self._pairs[prompt]


class Review:
    """Counted assessments by line, each of which can be replaced.

    Among duplicates, the first line without a reason against it is kept; the others repeat it.
    """

    def __init__(self) -> None:
        self.counts = Counts(prompts=ReversiblePromptCounter())
        self._assessments: dict[int, Assessment] = {}
        self._lines_by_texts: dict[int, list[int]] = {}
        """Lines of usable pairs in order, by the hash of their texts."""

    def __len__(self) -> int:
        return len(self._assessments)

    def __contains__(self, line: int) -> bool:
        return line in self._assessments

    def put(self, line: int, assessment: Assessment) -> list[int]:
        """Count a pair. Returns the lines whose verdicts changed, its own first."""
        changed = [line, *self._remove(line)]
        if assessment.reasons_as_edited:
            self._count(line, assessment)
            return changed
        lines = self._lines_by_texts.setdefault(assessment.texts, [])
        first_before = lines[0] if lines else None
        insort(lines, line)
        self._count(line, assessment)
        if first_before is not None and lines[0] == line:  # the former first duplicate now repeats this one
            self._recount(first_before, repeated=False)
            changed.append(first_before)
        return changed

    def assessment(self, line: int) -> Assessment | None:
        return self._assessments.get(line)

    def repeats(self, line: int) -> bool:
        """Whether the pair duplicates an earlier usable one."""
        assessment = self._assessments[line]
        return not assessment.reasons_as_edited and self._lines_by_texts[assessment.texts][0] != line

    def reasons(self, line: int) -> tuple[str, ...]:
        """Why the detectors or a trusted judge leave the pair out; empty if they do not."""
        assessment = self._assessments[line]
        return assessment.reasons(repeats=self.repeats(line)) or ((NOT_BETTER,) if assessment.not_better else ())

    def usable(self, line: int) -> bool:
        """Whether the pair trains."""
        return self._assessments[line].verdict(line, "", repeats=self.repeats(line)).usable

    def in_sample(self) -> set[int]:
        """The lines of the sample that people decide about if no judge passes its exam."""
        wanted = set(self.counts.sample.orders)
        return {line for line, assessment in self._assessments.items() if assessment.order in wanted}

    def _count(self, line: int, assessment: Assessment) -> None:
        self._assessments[line] = assessment
        self.counts.count(assessment, repeats=self.repeats(line))

    def _remove(self, line: int) -> list[int]:
        """Remove a line. Returns the line that was its duplicate and now trains, if any."""
        assessment = self._assessments.get(line)
        if assessment is None:
            return []
        self.counts.count(assessment, repeats=self.repeats(line), by=-1)
        del self._assessments[line]
        if assessment.reasons_as_edited:
            return []
        lines = self._lines_by_texts[assessment.texts]
        index = bisect_left(lines, line)
        del lines[index]
        if not lines:
            del self._lines_by_texts[assessment.texts]
        elif index == 0:
            self._recount(lines[0], repeated=True)
            return [lines[0]]
        return []

    def _recount(self, line: int, *, repeated: bool) -> None:
        """Count a line again. `repeated` is whether it was counted as a duplicate before."""
        self.counts.count(self._assessments[line], repeats=repeated, by=-1)
        self.counts.count(self._assessments[line], repeats=not repeated)
