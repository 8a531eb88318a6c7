"""Log-probabilities of given replies, in forward passes without decoding. A prefix that several rows share is computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from engine.machine.memory import free_memory, halve_on_oom
from engine.models.generation.prefix_cache import MIN_PREFIX_TOKENS, PrefixCache, PrefixMatch, common_prefix
from engine.models.length_groups import TOKENS_PER_FORWARD, group_by_length

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

LOGITS_PER_FORWARD = 64 << 20
"""Logits per forward pass: 256 MB in float32. With a large vocabulary they dominate the cost."""

Row = tuple[Sequence[int], Sequence[int]]
"""(token ids of the prompt, token ids of the reply)."""


class Likelihood(NamedTuple):
    """The likelihood of a reply after its prompt, in nats, summed over its tokens."""

    logp: float
    entropy: float
    """The average of −logp if the model had sampled these tokens itself."""


def reply_likelihoods(model: PreTrainedModel, rows: Sequence[Row], pad: int) -> list[Likelihood]:
    """The likelihood of each reply after its prompt, in the order of `rows`.

    Batches rows of similar length, and halves a batch if memory runs out.
    """
    if not rows:
        return []
    vocabulary = int(model.config.get_text_config().vocab_size)
    prefixes = _shared_prefixes(model, rows)
    lengths = [len(prompt) - prefix.length + len(reply) for (prompt, reply), prefix in zip(rows, prefixes, strict=True)]
    likelihoods: dict[int, Likelihood] = {}
    for group in group_by_length(lengths, TOKENS_PER_FORWARD.get(model.device.type, max(lengths))):
        step = max(1, LOGITS_PER_FORWARD // (vocabulary * max(len(rows[row][1]) for row in group)))
        for start in range(0, len(group), step):
            batch = group[start : start + step]
            values = halve_on_oom(
                lambda part: _likelihoods(model, [rows[row] for row in part], [prefixes[row] for row in part], pad),
                batch,
                free_memory,
            )
            likelihoods.update(zip(batch, values, strict=True))
    return [likelihoods[row] for row in range(len(rows))]


def _shared_prefixes(model: PreTrainedModel, rows: Sequence[Row]) -> list[PrefixMatch]:
    """The cached prefix of each row: a prompt that occurs twice, except for its last token; for the other prompts, what they have
    in common (the template's system message).
    """
    import torch

    from engine.models.generation.kv_cache import attends_to_all
    from engine.models.generation.prefill import prefill_rows

    counts = Counter(tuple(prompt) for prompt, _ in rows)
    unique = [prompt for prompt, count in counts.items() if count == 1]
    shared = [prompt[:-1] for prompt, count in counts.items() if count > 1]
    if len(unique) > 1:
        shared.append(tuple(common_prefix(unique))[: min(map(len, unique)) - 1])
    shared = [ids for ids in shared if len(ids) >= MIN_PREFIX_TOKENS]
    if not shared or not attends_to_all(model, max(sum(map(len, row)) for row in rows)):
        return [PrefixMatch()] * len(rows)
    cache = PrefixCache()
    with torch.inference_mode():
        cache.keep_rows([prefill_rows(model, [ids], [PrefixMatch()], pad=0).prefix(0) for ids in shared])
    return [cache.longest(prompt) for prompt, _ in rows]


def _likelihoods(
    model: PreTrainedModel, rows: Sequence[Row], prefixes: Sequence[PrefixMatch], pad: int
) -> list[Likelihood]:
    import torch

    from engine.models.generation.prefill import left_padded

    replies = [reply for _, reply in rows]
    longest = max(map(len, replies))
    inputs = [[*prompt, *reply[:-1]] for prompt, reply in rows]  # the logits after a reply's last token are not needed
    with torch.inference_mode():
        logits = _logits_before(model, inputs, prefixes, pad, longest)  # (R, L, V), L the longest reply
        targets = left_padded(replies, pad, model.device)  # (R, L)
        log_probs = torch.log_softmax(logits.float(), dim=-1)  # (R, L, V)
        entropies = -(log_probs.exp() * log_probs).sum(dim=-1)  # (R, L)
        logps = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # (R, L)
        # Replies are aligned on the right; the columns to the left of a shorter one belong to its prompt.
        of_reply = left_padded([[1] * len(reply) for reply in replies], 0, model.device)
        sums = ((values * of_reply).sum(dim=-1).tolist() for values in (logps, entropies))
        return [Likelihood(*both) for both in zip(*sums, strict=True)]


def _logits_before(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], prefixes: Sequence[PrefixMatch], pad: int, keep: int
) -> Tensor:
    """The logits after the last `keep` tokens of each row, (R, keep, V). Without prefixes, this works for any model."""
    from engine.models.generation.prefill import left_padded, positions_of, prefill_rows

    if any(prefix.length for prefix in prefixes):
        return prefill_rows(model, rows, prefixes, pad, keep).logits
    mask = left_padded([[1] * len(row) for row in rows], 0, model.device)
    ids = left_padded(rows, pad, model.device)
    logits: Tensor = model(
        input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False, logits_to_keep=keep
    ).logits
    return logits
