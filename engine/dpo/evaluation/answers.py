"""Greedy answers of Stage 2 and Stage 3 to the same prompts, and a judge's scores of them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from engine.core import layout
from engine.core.events import Event, Progress
from engine.dpo.training.dataset import Row
from engine.dpo.training.reference import REFERENCE_ADAPTER, adapter_active, policy_key
from engine.models.chat import Conversation
from engine.models.generation.batch_size import chosen_batch_size
from engine.pairs.generation.prompts import prompt_id
from engine.pairs.judges.base import Comparison, LoadedPolicy, LoadJudge, ScorePair, TellsFlaws
from engine.pairs.judges.examination import ExaminedJudge, examined_judge
from engine.pairs.judges.scores import JudgeSummary, longest_first, score_in_batches
from engine.storage.files import sha256_of_json
from engine.storage.keyed_cache import KeyedCache

if TYPE_CHECKING:
    from engine.dpo.training.trainer import Trained
    from engine.models.generation.sampling import Reply
    from engine.run.context import Context

STAGE = "training"
EVERYDAY_PROMPTS = Path(__file__).with_name("everyday_prompts.txt")
REFUSAL_TOKENS = 128
"""Enough tokens to see a refusal; an answer to an everyday question may be cut off."""


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
    context: Context, trained: Trained, prompts: Sequence[Conversation], adapter: str, most_tokens: int | None = None
) -> Generator[Event, None, list[Reply]]:
    """Greedy answers under one adapter, in batches that are halved if memory runs out; those that this policy has given
    before come from the cache. Raises Stopped.

    most_tokens   of an answer; without it, --max-new-tokens
    """
    from engine.machine.memory import free_memory, in_halves
    from engine.models.generation.sampling import Reply, SamplingSettings, generate

    limit = context.config.max_new_tokens
    settings = SamplingSettings(limit if most_tokens is None else min(limit, most_tokens))
    which = "Stage 2" if adapter == REFERENCE_ADAPTER else "Stage 3"
    cache = KeyedCache(context.cache / layout.ANSWERS)
    policy = policy_key(
        context.config, trained.stage2_sha256 if adapter == REFERENCE_ADAPTER else trained.tensors_sha256
    )
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
                should_stop=lambda: context.stop.requested,
            )

    for start in range(0, len(prompts), chosen_batch_size(context.config)):
        batch = range(start, min(start + chosen_batch_size(context.config), len(prompts)))
        if all(keys[index] in known for index in batch):
            found += [Reply(**known[keys[index]]) for index in batch]
        else:  # whole, because an answer may depend, in its last bits, on the shape of its batch
            answered = in_halves(answer, batch, free_memory)
            cache.append({keys[index]: asdict(reply) for index, reply in zip(batch, answered, strict=True)})
            found += answered
        context.stop.raise_if_requested()
        yield Progress(len(found), len(prompts), "answers", note=which)
    return found


@dataclass(frozen=True)
class JudgedAnswers:
    """What a judge said of the answers; the lists are in the order of the prompts."""

    judge: str
    about: str
    stage2: Sequence[float | None]
    """None if the judge could not score the two answers."""
    stage3: Sequence[float | None]
    flawed: tuple[Sequence[bool], Sequence[bool]] | None
    """Of Stage 2 and of Stage 3; None if the judge cannot tell of one answer alone."""
    on_the_letters: float | None = None
    """Mean probability that a judge who was asked for A or B gave to the two letters together; None for others."""


def judge_answers(
    context: Context,
    trained: Trained,
    prompts: Sequence[Conversation],
    stage2: Sequence[Reply],
    stage3: Sequence[Reply],
    load_judge: LoadJudge,
) -> Generator[Event, None, tuple[JudgedAnswers | None, ExaminedJudge]]:
    """The judge of `--judge` on both answers to each prompt, if it passes its exam; None without one. With --judge self
    it is the Stage 2 policy that judges, which is in memory as the reference. Raises Stopped, and what the judge raises.
    """
    from engine.machine.memory import free_memory

    reference = LoadedPolicy(trained.model, trained.tokenizer, lambda: adapter_active(trained.model, REFERENCE_ADAPTER))
    examined = yield from examined_judge(context, load_judge, reference)
    judge = examined.judge(load_judge, reference)
    if judge is None:
        return None, examined
    cases = [
        Comparison(prompt_id(prompt, ""), prompt, before.text, after.text)
        for prompt, before, after in zip(prompts, stage2, stage3, strict=True)
    ]
    given: dict[str, ScorePair] = {}
    for batch in score_in_batches(judge, longest_first(cases), context.stop):
        given |= {case.id: scores for case, scores in batch}
        yield Progress(len(given), len(cases), "answers judged", note=f"judge: {judge.name}")
    flawed = None
    if isinstance(judge, TellsFlaws):
        flawed = (
            [judge.flawed(case.conversation, case.first) for case in cases],
            [judge.flawed(case.conversation, case.second) for case in cases],
        )
    scores = [given[case.id] for case in cases]
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
    return judged, examined
