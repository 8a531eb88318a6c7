"""The child process of test_placement.py: does the same on one device, and with layers on two. Prints both results as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.dpo.training import trl_trainer
from engine.dpo.training.reference import collated, pair_logps
from engine.dpo.training.trainer import Trained
from engine.models.generation.kv_cache import PreallocatedLayer
from engine.models.generation.sampling import SamplingSettings
from engine.models.loading import load_policy, load_tokenizer
from engine.models.local_backend import LocalBackend
from engine.pairs.relevance.measure import Answer, RelevanceMeter
from engine.run.stop import StopToken
from tests.conftest import run_stage
from tests.support.tiny_models import WORDS, build_context, pairs
from tests.support.trainings import train
from tests.support.two_devices import two_devices

ROWS = pairs(8)
OPENINGS = [" ".join(WORDS[first : first + count]) for first, count in ((0, 4), (3, 9), (5, 2), (7, 13))]
SAMPLED = SamplingSettings(temperature=1.0, top_p=0.9, max_new_tokens=12)


def main(folder: Path) -> None:
    """folder   contains a folder for each base model, with the model and its adapter"""
    print(
        json.dumps([on_one_and_two(each / "run", each / "base", each / "adapter") for each in sorted(folder.iterdir())])
    )


def on_one_and_two(folder: Path, base: Path, adapter: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    context = build_context(folder, base, adapter, save_steps=1)
    tokenizer = load_tokenizer(context.config)

    def load_model() -> PreTrainedModel:
        # Fused attention supports only torch's own devices.
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
        return model

    def results(base: PreTrainedModel, other: PreTrainedModel, devices: list[torch.device]) -> dict[str, Any]:
        policy = load_policy(base, adapter, trainable=True)
        with recorded_choices() as choices:
            _, trained = run_stage(train(context, ROWS, policy=policy, tokenizer=tokenizer))
        assert trained.resumed_from == trained.steps, "the training was not resumed from its checkpoint"
        return {
            "ways": choices,
            "rows": selected_rows(devices[0], devices[-1]),
            "losses": trained.losses,
            "tensors": trained.tensors_sha256,
            "logps": logps(trained),
            "texts": texts(LocalBackend(trained.model, tokenizer, StopToken(), 4)),
            "relevance": [
                measures.relevance for measures in RelevanceMeter(other, tokenizer).measure(ANSWERS) if measures
            ],
        }

    run_stage(train(context, ROWS, policy=load_policy(load_model(), adapter, trainable=True), tokenizer=tokenizer))
    one, first, second = results(load_model(), load_model(), [torch.device("cpu")]), load_model(), load_model()
    with two_devices() as devices:
        two = results(split(first, devices), split(second, devices), devices)
    return one, two


@contextmanager
def recorded_choices() -> Iterator[list[Any]]:
    """The trainer's choices: how the head is computed, and whether prompts are shared. For both there is a slower fallback."""
    choices: list[Any] = []

    def recorded(choose: Callable[..., Any]) -> Callable[..., Any]:
        def recorder(*given: Any) -> Any:
            choices.append(choose(*given))
            return choices[-1]

        return recorder

    patches = {name: recorded(getattr(trl_trainer, name)) for name in ("install_head", "share_prompt_computation")}
    with patch.multiple(trl_trainer, **patches):
        yield choices


def selected_rows(first: torch.device, second: torch.device) -> list[Any]:
    """Keys and values of a layer on the second device, after selecting rows on the first, as when some rows have finished."""
    numbers = torch.arange(24.0).view(3, 2, 4, 1).to(second)
    layer = PreallocatedLayer.from_buffers(numbers, numbers + 24, 3)
    layer.select(torch.tensor([2, 0], device=first), 1)
    return [layer.keys.tolist(), layer.values.tolist()]


ANSWERS = [Answer([{"role": "user", "content": opening}], " ".join(WORDS[4:12])) for opening in OPENINGS]


def split(model: PreTrainedModel, devices: list[torch.device]) -> PreTrainedModel:
    first, second = devices
    on_first = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0"), first)
    on_second = dict.fromkeys(("model.layers.1", "model.norm"), second)
    head = first if model.config.tie_word_embeddings else second
    split: PreTrainedModel = dispatch_model(model, {**on_first, **on_second, "lm_head": head})
    return split


def texts(policy: LocalBackend) -> list[str]:
    """The texts of replies, and of replies to their continuations, whose prefixes are cached."""
    prompts = [[{"role": "user", "content": opening}] for opening in OPENINGS]
    replies = policy.reply(prompts, SAMPLED, [1, 2, 3, 4])
    continuations = [
        [*turns, {"role": "assistant", "content": reply.text}, {"role": "user", "content": "Why ?"}]
        for turns, reply in zip(prompts[:3], replies, strict=False)
    ]
    return [reply.text for reply in replies + policy.reply(continuations, SAMPLED, [5, 6, 7])]


def logps(trained: Trained) -> list[float]:
    """Log-probabilities of both adapters, as the evaluation computes them."""
    plain = [
        {"prompt_ids": [2, 5, 9], "chosen_ids": [7, 8, 3, 4], "rejected_ids": [6, 11]},
        {"prompt_ids": [2, 12], "chosen_ids": [13, 3], "rejected_ids": [7, 4, 4, 9]},
    ]
    (batch,) = collated(plain, trained.collator, 2, trained.model.device)
    return [
        value
        for adapter in ("default", "ref")
        for part in pair_logps(trained.model, batch, adapter, torch.float32)
        for value in part.tolist()
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
