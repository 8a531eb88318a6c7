"""The gate's figures while people review pairs: each decision updates them without assessing any other pair again. They equal
what stage quality computes from the same files (a test compares the two).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter

from engine.pairs.assessment.assess import NOT_BETTER, Assessment
from engine.pairs.assessment.gate import Counts


class CountedPrompts:
    """Pairs per prompt, with removal."""

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
    """Assessments by line, counted; each can be replaced.

    Among duplicates, the first line that nothing speaks against is kept; the others repeat it.
    """

    def __init__(self) -> None:
        self.counts = Counts(prompts=CountedPrompts())
        self._found: dict[int, Assessment] = {}
        self._saying: dict[int, list[int]] = {}
        """Usable lines in order, by the hash of their texts."""

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, line: int) -> bool:
        return line in self._found

    def put(self, line: int, found: Assessment) -> list[int]:
        """Count a pair. Returns the lines whose verdict changed, its own first."""
        changed = [line, *self._take_back(line)]
        if found.reasons_as_edited:
            self._count(line, found)
            return changed
        saying = self._saying.setdefault(found.texts, [])
        first_before = saying[0] if saying else None
        insort(saying, line)
        self._count(line, found)
        if first_before is not None and saying[0] == line:  # the former first duplicate now repeats this one
            self._recount(first_before, repeated=False)
            changed.append(first_before)
        return changed

    def assessment(self, line: int) -> Assessment | None:
        return self._found.get(line)

    def repeats(self, line: int) -> bool:
        """Whether it duplicates an earlier usable pair."""
        found = self._found[line]
        return not found.reasons_as_edited and self._saying[found.texts][0] != line

    def reasons(self, line: int) -> tuple[str, ...]:
        """Why the detectors, or a trusted judge, leave the pair out; empty if they do not."""
        found = self._found[line]
        return found.reasons(repeats=self.repeats(line)) or ((NOT_BETTER,) if found.not_better else ())

    def usable(self, line: int) -> bool:
        """Whether it trains."""
        return self._found[line].verdict(line, "", repeats=self.repeats(line)).usable

    def in_sample(self) -> set[int]:
        """Lines of the sample that people decide about if no judge passes its exam."""
        wanted = set(self.counts.sample.orders)
        return {line for line, found in self._found.items() if found.order in wanted}

    def _count(self, line: int, found: Assessment) -> None:
        self._found[line] = found
        self.counts.count(found, repeats=self.repeats(line))

    def _take_back(self, line: int) -> list[int]:
        """Remove a line. Returns the line that was its duplicate and now counts, if any."""
        found = self._found.get(line)
        if found is None:
            return []
        self.counts.count(found, repeats=self.repeats(line), by=-1)
        del self._found[line]
        if found.reasons_as_edited:
            return []
        saying = self._saying[found.texts]
        place = bisect_left(saying, line)
        del saying[place]
        if not saying:
            del self._saying[found.texts]
        elif place == 0:
            self._recount(saying[0], repeated=True)
            return [saying[0]]
        return []

    def _recount(self, line: int, *, repeated: bool) -> None:
        """Count a line again; `repeated` is how it was counted before."""
        self.counts.count(self._found[line], repeats=repeated, by=-1)
        self.counts.count(self._found[line], repeats=not repeated)
