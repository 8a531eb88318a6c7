"""The gate's figures while people decide about pairs: a decision about one pair moves them at once, and nothing else is
judged again. They are those that stage quality finds in the same files (a test holds the two against each other).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter

from engine.pairs.assessment.assess import NOT_BETTER, Assessment
from engine.pairs.assessment.gate import Counts


class CountedPrompts:
    """How many pairs each prompt has: what was counted can be taken back."""

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
    """Findings by line, counted; each may be put in place of what was found before.

    Of pairs that say the same, the first line without a reason against it stands; the others repeat it.
    """

    def __init__(self) -> None:
        self.counts = Counts(prompts=CountedPrompts())
        self._found: dict[int, Assessment] = {}
        self._saying: dict[int, list[int]] = {}
        """Lines without a reason against them, in order, by the hash of what they say."""

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, line: int) -> bool:
        return line in self._found

    def put(self, line: int, found: Assessment) -> list[int]:
        """Count a pair; the lines whose verdict is another now, its own first."""
        changed = [line, *self._take_back(line)]
        if found.as_left:
            self._count(line, found)
            return changed
        saying = self._saying.setdefault(found.texts, [])
        first_before = saying[0] if saying else None
        insort(saying, line)
        self._count(line, found)
        if first_before is not None and saying[0] == line:  # what was the first of its kind now repeats this one
            self._recount(first_before, repeated=False)
            changed.append(first_before)
        return changed

    def finding(self, line: int) -> Assessment | None:
        return self._found.get(line)

    def repeats(self, line: int) -> bool:
        """Whether an earlier usable pair says the same."""
        found = self._found[line]
        return not found.as_left and self._saying[found.texts][0] != line

    def reasons(self, line: int) -> tuple[str, ...]:
        """Why the detectors are against a pair, or a judge that is believed; empty if they are not."""
        found = self._found[line]
        return found.reasons(repeats=self.repeats(line)) or ((NOT_BETTER,) if found.not_better else ())

    def usable(self, line: int) -> bool:
        """Whether it trains."""
        return self._found[line].verdict(line, "", repeats=self.repeats(line)).usable

    def in_sample(self) -> set[int]:
        """The lines of the pairs that people decide about where no judge can judge."""
        wanted = set(self.counts.sample.orders)
        return {line for line, found in self._found.items() if found.order in wanted}

    def _count(self, line: int, found: Assessment) -> None:
        self._found[line] = found
        self.counts.count(found, repeats=self.repeats(line))

    def _take_back(self, line: int) -> list[int]:
        """Forget a line; the line that stood in its shadow, if there is one."""
        found = self._found.get(line)
        if found is None:
            return []
        self.counts.count(found, repeats=self.repeats(line), by=-1)
        del self._found[line]
        if found.as_left:
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
        """Count a line as it is now; `repeated` is how it was counted before."""
        self.counts.count(self._found[line], repeats=repeated, by=-1)
        self.counts.count(self._found[line], repeats=not repeated)
