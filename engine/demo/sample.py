"""Generate with the demo's models and measure the result, for the build and for tests. Runs use engine.models instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from engine.demo.grammar import answers, criticise, read_answer, read_question
from engine.demo.train import IGNORED, label_model_turns
from engine.pairs.generation.dialogue import Conversation, critique_prompt, revision_prompt
from engine.pairs.principles.constitution import Constitution, Principle

MAX_NEW_TOKENS = 64
"""The grammar's longest turn has 54 tokens."""


@dataclass(frozen=True)
class Chain:
    """One draft, its critique and its revision."""

    prompt: Conversation
    principle: Principle
    draft: str
    critique: str
    revision: str


@dataclass(frozen=True)
class Measured:
    """Shares from 0 to 1, over greedy chains on held-out prompts."""

    drafts_well_formed: float
    drafts_flawed: float
    critiques_right: float
    """Critiques that are, word for word, one of the grammar's critiques of the draft under the given principle."""
    revisions_good: float
    revisions_follow_critique: float
    revisions_longer: float
    identical: float


def generate_turns(model: Any, tokenizer: Any, conversations: Sequence[Conversation], **sampling: Any) -> list[str]:
    """Generate the model's next turn in each conversation; greedily, unless `sampling` is given."""
    texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    with torch.inference_mode():
        generated = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, **(sampling or {"do_sample": False}))
    replies = tokenizer.batch_decode(generated[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [reply.strip() for reply in replies]


def generate_chains(
    model: Any, tokenizer: Any, prompts: Sequence[Conversation], constitution: Constitution, **sampling: Any
) -> list[Chain]:
    """Generate draft, critique and revision for each prompt, cycling through the principles."""
    principles = [constitution.principles[i % len(constitution.principles)] for i in range(len(prompts))]
    drafts = generate_turns(model, tokenizer, prompts, **sampling)
    conversations = [critique_prompt(*each) for each in zip(prompts, drafts, principles, strict=True)]
    critiques = generate_turns(model, tokenizer, conversations, **sampling)
    conversations = [revision_prompt(*each) for each in zip(prompts, drafts, critiques, principles, strict=True)]
    revisions = generate_turns(model, tokenizer, conversations, **sampling)
    return [Chain(*each) for each in zip(prompts, principles, drafts, critiques, revisions, strict=True)]


def measure(chains: Sequence[Chain]) -> Measured:
    drafts = Counter(read_answer(c.prompt, c.draft) for c in chains)
    unusable = drafts["broken"] + drafts["astray"]
    correct = [_correct_critiques(c) for c in chains]
    return Measured(
        drafts_well_formed=1 - unusable / len(chains),
        drafts_flawed=1 - (drafts["good"] + drafts["best"]) / len(chains),
        critiques_right=_share(c.critique in k for c, k in zip(chains, correct, strict=True)),
        revisions_good=_share(read_answer(c.prompt, c.revision) in ("good", "best") for c in chains),
        revisions_follow_critique=_share(k.get(c.critique) == c.revision for c, k in zip(chains, correct, strict=True)),
        revisions_longer=_share(len(c.revision) > len(c.draft) for c in chains),
        identical=_share(c.draft == c.revision for c in chains),
    )


def least_margin(model: Any, tokenizer: Any, chain: Chain) -> float:
    """The smallest margin between the best and the second-best token, in logits, over all tokens that the model generated."""
    conversation = revision_prompt(chain.prompt, chain.draft, chain.critique, chain.principle)
    ids = tokenizer.apply_chat_template(
        [*conversation, {"role": "assistant", "content": chain.revision}], return_dict=False
    )
    labels = label_model_turns(ids, tokenizer)
    # The reply to a greeting is part of the prompt, and not generated.
    prompt_length = len(tokenizer.apply_chat_template(chain.prompt, return_dict=False))
    newline = ids[-1]
    with torch.inference_mode():
        best = model(input_ids=torch.tensor([ids])).logits[0].topk(2).values  # (T, 2)
    margins: list[float] = (best[:, 0] - best[:, 1]).tolist()
    # Position t - 1 predicts token t. The newline after the end of turn is never generated.
    return min(margins[t - 1] for t in range(prompt_length, len(ids)) if labels[t] not in (IGNORED, newline))


def as_figures(measured: Measured) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(measured).items()}


def _correct_critiques(chain: Chain) -> dict[str, str]:
    """All correct critiques of the chain's draft, each with the revision that it asks for."""
    question = read_question(chain.prompt)
    if question is None:
        return {}
    matches = [a for a in answers(question.topic, question.word) if a.text == chain.draft]
    return dict(criticise(a, chain.principle, advice) for a in matches for advice in question.topic.good)


def _share(truths: Iterable[bool]) -> float:
    values = list(truths)
    return sum(values) / len(values)
