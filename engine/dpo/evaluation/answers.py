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
from engine.dpo.planning.forecast import EVERYDAY_TOKENS
from engine.dpo.training.dataset import Row
from engine.dpo.training.reference import REFERENCE_ADAPTER, adapter_active, policy_key
from engine.models.chat import Conversation
from engine.models.generation.batch_size import chosen_batch_size
from engine.pairs.generation.prompts import prompt_id
from engine.pairs.judges.base import Comparison, FindsFlaws, Judge, LoadedPolicy, ScorePair
from engine.pairs.judges.scores import JudgeSummary, longest_first, score_in_batches
from engine.storage.files import sha256_of_json
from engine.storage.keyed_cache import KeyedCache

if TYPE_CHECKING:
    from engine.dpo.training.trainer import Trained
    from engine.models.generation.sampling import Reply
    from engine.run.stop import StopToken

STAGE = "training"
EVERYDAY_PROMPTS = Path(__file__).with_name("everyday_prompts.txt")
REFUSAL_TOKENS = EVERYDAY_TOKENS
"""Enough to see a refusal; an answer to an everyday question may be cut off."""


def distinct_prompts(rows: Sequence[Row], most: int) -> list[Conversation]:
    """The first `most` different prompts, in the file's order."""
    found: list[Conversation] = []
    for row in rows:
        if row["prompt"] not in found and len(found) < most:
            found.append(row["prompt"])
    return found


@cache
def everyday_prompts() -> tuple[str, ...]:
    """Harmless everyday questions, one per line."""
    return tuple(EVERYDAY_PROMPTS.read_text(encoding="utf-8").splitlines())


def answers(
    config: Stage3Config,
    trained: Trained,
    prompts: Sequence[Conversation],
    adapter: str,
    *,
    cache_folder: Path,
    stop: StopToken,
    most_tokens: int | None = None,
) -> Generator[Event, None, list[Reply]]:
    """Greedy answers with one adapter, cached by policy. Batches are halved if memory runs out. Raises Stopped.

    most_tokens   of an answer; --max-new-tokens by default
    """
    from engine.machine.memory import free_memory, in_halves
    from engine.models.generation.sampling import Reply, SamplingSettings, generate

    limit = config.max_new_tokens
    settings = SamplingSettings(limit if most_tokens is None else min(limit, most_tokens))
    which = "Stage 2" if adapter == REFERENCE_ADAPTER else "Stage 3"
    cache = KeyedCache(cache_folder / layout.ANSWERS)
    policy = policy_key(config, trained.stage2_sha256 if adapter == REFERENCE_ADAPTER else trained.tensors_sha256)
    keys = [sha256_of_json([policy, asdict(settings), prompt]) for prompt in prompts]
    known = cache.read(keys)
    found: list[Reply] = []

    def answer(indices: Sequence[int]) -> list[Reply]:
        with adapter_active(trained.model, adapter):
            return generate(
                trained.model,  # type: ignore[arg-type]
                trained.tokenizer,
                [prompts[index] for index in indices],
                settings,
                should_stop=lambda: stop.requested,
            )

    for start in range(0, len(prompts), chosen_batch_size(config)):
        batch = range(start, min(start + chosen_batch_size(config), len(prompts)))
        if all(keys[index] in known for index in batch):
            found += [Reply(**known[keys[index]]) for index in batch]
        else:  # the whole batch, because its shape may affect an answer's last bits
            answered = in_halves(answer, batch, free_memory)
            cache.append({keys[index]: asdict(reply) for index, reply in zip(batch, answered, strict=True)})
            found += answered
        stop.raise_if_requested()
        yield Progress(len(found), len(prompts), "answers", note=which)
    return found


@dataclass(frozen=True)
class JudgedAnswers:
    """A judge's scores of the answers, in the order of the prompts."""

    judge: str
    about: str
    stage2: Sequence[float | None]
    """None if the judge could not score the two answers."""
    stage3: Sequence[float | None]
    flawed: tuple[Sequence[bool], Sequence[bool]] | None
    """(Stage 2, Stage 3); None if the judge cannot assess single answers."""
    on_the_letters: float | None = None
    """Mean total probability of the letters A and B; None for judges that are not asked for a letter."""


def reference_policy(trained: Trained) -> LoadedPolicy:
    """The Stage 2 policy, in memory as the reference, for --judge self."""
    return LoadedPolicy(trained.model, trained.tokenizer, lambda: adapter_active(trained.model, REFERENCE_ADAPTER))


def judge_answers(
    judge: Judge | None,
    prompts: Sequence[Conversation],
    stage2: Sequence[Reply],
    stage3: Sequence[Reply],
    stop: StopToken,
) -> Generator[Event, None, JudgedAnswers | None]:
    """Score both answers to each prompt; None without a judge. Raises Stopped, and what the judge raises."""
    from engine.machine.memory import free_memory

    if judge is None:
        return None
    comparisons = [
        Comparison(prompt_id(prompt, ""), prompt, before.text, after.text)
        for prompt, before, after in zip(prompts, stage2, stage3, strict=True)
    ]
    given: dict[str, ScorePair] = {}
    for batch in score_in_batches(judge, longest_first(comparisons), stop):
        given |= {comparison.id: scores for comparison, scores in batch}
        yield Progress(len(given), len(comparisons), "answers judged", note=f"judge: {judge.name}")
    flawed = None
    if isinstance(judge, FindsFlaws):
        flawed = (
            [judge.flawed(comparison.conversation, comparison.first) for comparison in comparisons],
            [judge.flawed(comparison.conversation, comparison.second) for comparison in comparisons],
        )
    scores = [given[comparison.id] for comparison in comparisons]
    judged = JudgedAnswers(
        judge.name,
        judge.about,
        [score.first for score in scores],
        [score.second for score in scores],
        flawed,
        JudgeSummary.of(judge.name, scores).on_the_letters,
    )
    del judge
    free_memory()
    return judged
