"""--method best-of-n: a judge ranks several drafts of each prompt; the best is chosen, the worst rejected.

The judge compares each draft with the first one. These n - 1 comparisons rank the drafts, whether the judge scores single
texts or can only compare two. Unusable drafts are dropped first.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from engine.models.backend import Backend
from engine.models.generation.sampling import Reply
from engine.pairs import detectors
from engine.pairs.data.record import EMPTY_DRAFT, OK, PairRecord
from engine.pairs.data.seeds import seed_of
from engine.pairs.generation.critique_revision import count_of, server_failure, server_message
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.settings import GenerationSettings
from engine.pairs.judges.base import Comparison, Judge
from engine.pairs.judges.scores import score_in_batches
from engine.pairs.principles.constitution import Principle
from engine.run.stop import StopToken

NO_DIFFERENCE = "no draft better"
"""The judge scores all drafts equal, or cannot score them."""


@dataclass(frozen=True)
class Drafted:
    """One prompt with its drafts."""

    prompt: Prompt
    principle: Principle
    """The principle for judges that ask with one."""
    drafts: tuple[Reply, ...]

    @property
    def usable(self) -> list[Reply]:
        """The usable drafts, without duplicates."""
        found = {detectors.canonical(draft.text): draft for draft in self.drafts if not _fault(self.prompt, draft)}
        return list(found.values())

    @property
    def comparisons(self) -> list[Comparison]:
        """Each usable draft against the first one."""
        usable = self.usable
        return [
            Comparison(f"{self.prompt.id}:{n}", self.prompt.messages, usable[0].text, other.text, self.principle.id)
            for n, other in enumerate(usable[1:], start=1)
        ]


def make_records(
    prompts: Sequence[Prompt], backend: Backend, settings: GenerationSettings, judge: Judge, stop: StopToken
) -> Generator[str, None, list[PairRecord]]:
    """The records of one batch, in the order of `prompts`. Yields each step as it begins. Raises what the judge raises."""
    rounds = []
    for number in range(settings.num_drafts):
        yield f"{count_of(prompts, 'draft')} ({number + 1} of {settings.num_drafts})"
        seeds = [seed_of(settings.seed, prompt.id, "draft", number) for prompt in prompts]
        rounds.append(backend.reply([prompt.messages for prompt in prompts], settings.sampling, seeds))
    drafted = [
        Drafted(prompt, _principle(prompt, settings), drafts)
        for prompt, drafts in zip(prompts, zip(*rounds, strict=True), strict=True)
    ]
    comparisons = [comparison for each in drafted for comparison in each.comparisons]
    yield count_of(comparisons, "comparison")
    gains = {
        comparison.id: given.second - given.first
        for batch in score_in_batches(judge, comparisons, stop)
        for comparison, given in batch
        if given.first is not None and given.second is not None
    }
    return [_record(each, gains) for each in drafted]


def _principle(prompt: Prompt, settings: GenerationSettings) -> Principle:
    return settings.constitution.draw(Random(seed_of(settings.seed, prompt.id, "principle", 0)))


def _fault(prompt: Prompt, draft: Reply) -> str:
    if refused := server_failure(draft):
        return refused
    found = detectors.reply_reasons(prompt.text, draft.text, finished=draft.finished)
    return found[0] if found else ""


def _ordered(each: Drafted, gains: Mapping[str, float]) -> tuple[Reply, Reply, str]:
    """(worst, best, `ok` or why they are no pair)."""
    usable = each.usable
    if len(usable) < 2:
        # All drafts are the same, or at most one is usable: report the last fault.
        faults = [_fault(each.prompt, draft) for draft in each.drafts]
        why = next((fault for fault in reversed(faults) if fault), detectors.IDENTICAL)
        return each.drafts[0], each.drafts[-1], EMPTY_DRAFT if why == detectors.EMPTY else why
    scored = [(0.0, usable[0])] + [
        (gains[comparison.id], draft)
        for comparison, draft in zip(each.comparisons, usable[1:], strict=True)
        if comparison.id in gains
    ]
    gain_of_worst, worst = min(scored, key=lambda row: row[0])
    gain_of_best, best = max(scored, key=lambda row: row[0])
    if gain_of_best <= gain_of_worst:
        return usable[0], usable[1], NO_DIFFERENCE
    found = detectors.reasons(each.prompt.text, worst.text, best.text, finished=best.finished)
    return worst, best, found[0] if found else OK


def _record(each: Drafted, gains: Mapping[str, float]) -> PairRecord:
    worst, best, status = _ordered(each, gains)
    return PairRecord(
        id=each.prompt.id,
        prompt=each.prompt.text,
        messages=each.prompt.messages,
        base_response=worst.text,
        revised_response=best.text,
        critic_notes="" if status == OK else server_message(*each.drafts),
        principle_ids=(each.principle.id,),
        made_by=(each.principle.id,) if status == OK else (),
        attempts=1,
        status=status,
        finish={
            step: "stopped" if reply.finished else "cut off" for step, reply in (("draft", worst), ("revision", best))
        },
        method="best-of-n",
    )
