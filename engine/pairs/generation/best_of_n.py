"""--method best-of-n: a judge ranks several drafts of each prompt; the best is chosen, the worst rejected.

The judge compares each draft with the first one. These n - 1 comparisons rank the drafts, whether the judge scores single
texts or can only compare two. Unusable drafts are dropped first.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from engine.core.wording import plural
from engine.models.backend import Backend
from engine.models.generation.sampling import Reply
from engine.pairs import detectors
from engine.pairs.data.record import EMPTY_DRAFT, OK, PairRecord
from engine.pairs.data.seeds import seed_of
from engine.pairs.generation.critique_revision import server_failure, server_message
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.settings import GenerationSettings
from engine.pairs.judges.base import Comparison, Judge
from engine.pairs.judges.scores import score_in_batches
from engine.pairs.principles.constitution import Principle
from engine.run.stop import StopToken

NO_DIFFERENCE = "no draft better"
"""The status if the judge scored all drafts the same, or could not score them."""


@dataclass(frozen=True)
class PromptDrafts:
    """One prompt with its drafts."""

    prompt: Prompt
    principle: Principle
    """For judges that compare by a principle."""
    drafts: tuple[Reply, ...]

    @property
    def usable(self) -> list[Reply]:
        """The usable drafts, without duplicates."""
        distinct = {detectors.canonical(draft.text): draft for draft in self.drafts if not _fault(self.prompt, draft)}
        return list(distinct.values())

    @property
    def comparisons(self) -> list[Comparison]:
        """Each usable draft compared with the first one."""
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
        yield f"{plural(len(prompts), 'draft')} ({number + 1} of {settings.num_drafts})"
        seeds = [seed_of(settings.seed, prompt.id, "draft", number) for prompt in prompts]
        rounds.append(backend.reply([prompt.messages for prompt in prompts], settings.sampling, seeds))
    candidates = [
        PromptDrafts(prompt, _principle(prompt, settings), drafts)
        for prompt, drafts in zip(prompts, zip(*rounds, strict=True), strict=True)
    ]
    comparisons = [comparison for candidate in candidates for comparison in candidate.comparisons]
    yield plural(len(comparisons), "comparison")
    gains = {
        comparison.id: scores.second - scores.first
        for batch in score_in_batches(judge, comparisons, stop)
        for comparison, scores in batch
        if scores.first is not None and scores.second is not None
    }
    return [_record(candidate, gains) for candidate in candidates]


def _principle(prompt: Prompt, settings: GenerationSettings) -> Principle:
    return settings.constitution.draw(Random(seed_of(settings.seed, prompt.id, "principle", 0)))


def _fault(prompt: Prompt, draft: Reply) -> str:
    if failure := server_failure(draft):
        return failure
    reasons = detectors.reply_reasons(prompt.text, draft.text, finished=draft.finished)
    return reasons[0] if reasons else ""


def _worst_and_best(candidate: PromptDrafts, gains: Mapping[str, float]) -> tuple[Reply, Reply, str]:
    """(worst, best, `ok` or why they do not make a pair)."""
    usable = candidate.usable
    if len(usable) < 2:
        # All drafts are the same, or at most one is usable. Report the last fault.
        faults = [_fault(candidate.prompt, draft) for draft in candidate.drafts]
        status = next((fault for fault in reversed(faults) if fault), detectors.IDENTICAL)
        return candidate.drafts[0], candidate.drafts[-1], EMPTY_DRAFT if status == detectors.EMPTY else status
    scored = [(0.0, usable[0])] + [
        (gains[comparison.id], draft)
        for comparison, draft in zip(candidate.comparisons, usable[1:], strict=True)
        if comparison.id in gains
    ]
    gain_of_worst, worst = min(scored, key=lambda row: row[0])
    gain_of_best, best = max(scored, key=lambda row: row[0])
    if gain_of_best <= gain_of_worst:
        return usable[0], usable[1], NO_DIFFERENCE
    reasons = detectors.reasons(candidate.prompt.text, worst.text, best.text, finished=best.finished)
    return worst, best, reasons[0] if reasons else OK


def _record(candidate: PromptDrafts, gains: Mapping[str, float]) -> PairRecord:
    worst, best, status = _worst_and_best(candidate, gains)
    return PairRecord(
        id=candidate.prompt.id,
        prompt=candidate.prompt.text,
        messages=candidate.prompt.messages,
        base_response=worst.text,
        revised_response=best.text,
        critic_notes="" if status == OK else server_message(*candidate.drafts),
        principle_ids=(candidate.principle.id,),
        made_by=(candidate.principle.id,) if status == OK else (),
        attempts=1,
        status=status,
        finish={
            step: "stopped" if reply.finished else "cut off" for step, reply in (("draft", worst), ("revision", best))
        },
        method="best-of-n",
    )
