"""From judged pairs to `dpo_dataset/`: TRL's conversational preference format, with a part held out by prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from engine.pairs.detectors import canonical
from engine.pairs.record import Pair


def preference_row(pair: Pair) -> dict[str, Any]:
    """`{"prompt": [messages], "chosen": [message], "rejected": [message]}`, which plain TRL loads."""
    chosen, rejected = pair.revised_response, pair.base_response
    if pair.chosen == "base":
        chosen, rejected = rejected, chosen
    return {
        "prompt": [dict(message) for message in pair.messages],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def hold_out(pairs: Sequence[Pair], fraction: float, at_least: int) -> tuple[list[Pair], list[Pair]]:
    """(train, held out): `fraction` of the prompts but `at_least` so many and at most half, chosen by a hash of the prompt.

    By prompt: pairs that share one are on the same side, so that nothing held out was trained on.
    """
    keys = sorted({_key(pair) for pair in pairs})
    wanted = min(max(round(fraction * len(keys)), at_least), len(keys) // 2)
    held = set(keys[:wanted])
    return [pair for pair in pairs if _key(pair) not in held], [pair for pair in pairs if _key(pair) in held]


def _key(pair: Pair) -> str:
    return hashlib.sha256(canonical("\n".join(m["content"] for m in pair.messages)).encode()).hexdigest()
