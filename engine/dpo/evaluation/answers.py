"""Greedy answers of Stage 2 and Stage 3 to the same prompts, and a judge's scores of them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.events import Event, Progress
from engine.dpo.evaluation.tasks import TaskQueue
from engine.dpo.planning.forecast import EVERYDAY_TOKENS
from engine.dpo.training.dataset import Row
from engine.dpo.training.reference import REFERENCE_ADAPTER, policy_key
from engine.models.chat import Conversation
from engine.models.generation.batch_size import chosen_batch_size
from engine.pairs.generation.prompts import prompt_id
from engine.pairs.judges.base import Comparison, FindsFlaws, Judge, ScorePair
from engine.pairs.judges.scores import JudgeSummary, ScoreBatches, longest_first, score_in_batches
from engine.storage.files import sha256_of_json
from engine.storage.keyed_cache import KeyedCache

if TYPE_CHECKING:
    from engine.dpo.training.trainer import Trained
    from engine.models.generation.sampling import Reply
    from engine.run.stop import StopToken

STAGE = "training"
EVERYDAY_PROMPTS = Path(__file__).with_name("everyday_prompts.txt")
REFUSAL_TOKENS = EVERYDAY_TOKENS
"""Enough to detect a refusal; longer answers to everyday questions are cut off."""


def distinct_prompts(rows: Sequence[Row], limit: int) -> list[Conversation]:
    """The first `limit` different prompts, in file order."""
    prompts: list[Conversation] = []
    for row in rows:
        if row["prompt"] not in prompts and len(prompts) < limit:
            prompts.append(row["prompt"])
    return prompts


@cache
def everyday_prompts() -> tuple[str, ...]:
    """Harmless everyday questions, one per line."""
    return tuple(EVERYDAY_PROMPTS.read_text(encoding="utf-8").splitlines())


def answers(
    queue: TaskQueue,
    config: Stage3Config,
    trained: Trained,
    prompts: Sequence[Conversation],
    adapter: str,
    *,
    cache_folder: Path,
    max_tokens: int | None = None,
) -> Generator[Event, None, list[Reply]]:
    """Submit greedy answers with one adapter, cached by policy; collect them with `yield from`.

    max_tokens   per answer; by default --max-new-tokens
    """
    from engine.models.generation.sampling import Reply, SamplingSettings

    limit = config.max_new_tokens
    settings = asdict(SamplingSettings(limit if max_tokens is None else min(limit, max_tokens)))
    cache = KeyedCache(cache_folder / layout.ANSWERS)
    policy = policy_key(config, trained.stage2_sha256 if adapter == REFERENCE_ADAPTER else trained.tensors_sha256)
    keys = [sha256_of_json([policy, settings, prompt]) for prompt in prompts]
    known = cache.read(keys)
    size = chosen_batch_size(config)
    batches = [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]
    # Only entire batches, because their shape may affect the last bits, and thus an answer.
    missing = [batch for batch in batches if any(keys[index] not in known for index in batch)]
    queue.submit(
        [{"answer": [prompts[i] for i in batch], "adapter": adapter, "settings": settings} for batch in missing]
    )

    def collected() -> Generator[Event, None, list[Reply]]:
        collected_replies: list[Reply] = []
        for batch in batches:
            if batch in missing:
                replies = yield from queue.next_result()
                cache.append({keys[index]: reply for index, reply in zip(batch, replies, strict=True)})
            else:
                replies = [known[keys[index]] for index in batch]
            collected_replies += [Reply(**reply) for reply in replies]
            yield Progress(
                len(collected_replies),
                len(prompts),
                "answers",
                note="Stage 2" if adapter == REFERENCE_ADAPTER else "Stage 3",
            )
        return collected_replies

    return collected()


@dataclass(frozen=True)
class JudgedAnswers:
    """A judge's scores of the answers, in the order of the prompts."""

    judge: str
    about: str
    stage2: Sequence[float | None]
    """Scores of Stage 2's answers; None where the judge could not score the two answers."""
    stage3: Sequence[float | None]
    flawed: tuple[Sequence[bool], Sequence[bool]] | None
    """Whether each answer is flawed, (Stage 2, Stage 3); None if the judge cannot assess single answers."""
    on_the_letters: float | None = None
    """Mean total probability of the letters A and B; None for judges that do not answer with a letter."""


@dataclass(frozen=True)
class AnswerJudge:
    """A judge that passed its exam, running in this process or in others."""

    name: str
    about: str
    score: ScoreBatches
    flaws: FindsFlaws | None = None

    @classmethod
    def here(cls, judge: Judge, stop: StopToken) -> AnswerJudge:
        flaws = judge if isinstance(judge, FindsFlaws) else None
        return cls(judge.name, judge.about, lambda comparisons: score_in_batches(judge, comparisons, stop), flaws)


def judge_answers(
    judge: AnswerJudge | None, prompts: Sequence[Conversation], stage2: Sequence[Reply], stage3: Sequence[Reply]
) -> Generator[Event, None, JudgedAnswers | None]:
    """Score both answers to each prompt; None without a judge. Raises Stopped, and the judge's errors."""
    if judge is None:
        return None
    comparisons = [
        Comparison(prompt_id(prompt, ""), prompt, before.text, after.text)
        for prompt, before, after in zip(prompts, stage2, stage3, strict=True)
    ]
    scored: dict[str, ScorePair] = {}
    for item in judge.score(longest_first(comparisons)):
        if isinstance(item, Event):
            yield item
            continue
        scored |= {comparison.id: scores for comparison, scores in item}
        yield Progress(len(scored), len(comparisons), "answers judged", note=f"judge: {judge.name}")
    flawed = None
    if judge.flaws is not None:
        flawed = (
            [judge.flaws.flawed(comparison.conversation, comparison.first) for comparison in comparisons],
            [judge.flaws.flawed(comparison.conversation, comparison.second) for comparison in comparisons],
        )
    scores = [scored[comparison.id] for comparison in comparisons]
    return JudgedAnswers(
        judge.name,
        judge.about,
        [score.first for score in scores],
        [score.second for score in scores],
        flawed,
        JudgeSummary.of(judge.name, scores).on_the_letters,
    )
