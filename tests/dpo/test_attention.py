"""Attention over shared rows without a mask of all columns gives the same losses and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from engine.dpo.planning import forecast
from engine.dpo.training.attention import NAME, RowParts
from engine.dpo.training.shared_prompt import pack_shared_prompt, share_prompt_computation
from tests.dpo.test_shared_prompt import (
    SHAPE,
    ask,
    collated,
    loss_and_gradients,
    require_the_same_with_gradient_checkpointing,
    with_adapter,
)

GROUPED = {**SHAPE, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": GROUPED,
    "Gemma": {**SHAPE, "num_key_value_heads": 1, "head_dim": 8},
    "Gemma3": {**GROUPED, "head_dim": 12, "sliding_window": 400},
    "Qwen2": {**SHAPE, "num_key_value_heads": 4},
    "Qwen3": {**GROUPED, "head_dim": 8},
    "Mistral": {**GROUPED, "sliding_window": 400},
    "Phi": GROUPED,
    "Phi3": GROUPED,
    "Olmo2": GROUPED,
    "Cohere": GROUPED,
    "GPTNeoX": SHAPE,
}
CONFIGURATIONS = {"Gemma3": "Gemma3TextConfig"}
PAIRS = [(230, 9, 31), (3, 40, 12), (77, 5, 6), (6, 4, 9)]
"""Tokens of prompt, chosen and rejected reply: of different lengths, so that all rows but one are padded."""


def model_of(family: str) -> Any:
    torch.manual_seed(3)
    config = getattr(transformers, CONFIGURATIONS.get(family, f"{family}Config"))(**FAMILIES[family])
    return getattr(transformers, f"{family}ForCausalLM")._from_config(config, attn_implementation="sdpa")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attend by rows, however short they are."""
    monkeypatch.setattr(forecast, "ROWS_FROM", {"cpu": 0})


def masks_seen(policy: PeftModel) -> list[Any]:
    """The shapes of the masks that the layers pass to the attention kernel."""
    seen: list[Any] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def recorded(*args: Any, **kwargs: Any) -> Any:
        seen.append(None if kwargs["attn_mask"] is None else tuple(kwargs["attn_mask"].shape))
        return plain(*args, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = recorded  # type: ignore[assignment]
    try:
        with torch.no_grad():
            ask(policy, collated([(50, 20, 8)]))
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain
    return seen


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_plain_attention(family: str):
    policy, batch = with_adapter(model_of(family)), collated(PAIRS, alike=1)
    before, plain_loss, plain = loss_and_gradients(policy, batch)
    assert share_prompt_computation(policy)
    assert policy.get_base_model().config._attn_implementation == NAME
    after, loss, gradients = loss_and_gradients(policy, batch)
    assert loss == pytest.approx(plain_loss, abs=1e-6)
    torch.testing.assert_close(after.log_probs, before.log_probs, atol=2e-5, rtol=1e-5)
    assert gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        assert (gradient - plain[name]).abs().max() <= 1e-5 * max(plain[name].abs().max(), 1), name


@pytest.mark.usefixtures("always")
def test_gradient_checkpointing_gives_the_same():
    require_the_same_with_gradient_checkpointing(with_adapter(model_of("Llama")), collated(PAIRS))


@pytest.mark.usefixtures("always")
def test_only_the_rejected_reply_needs_a_mask():
    policy = with_adapter(model_of("Llama"))
    share_prompt_computation(policy)
    assert masks_seen(policy) == [None, (1, 1, 7, 57)] * 2  # in each of two layers; the last tokens are not read


def test_short_rows_keep_the_mask_of_all_columns():
    policy = with_adapter(model_of("Llama"))
    share_prompt_computation(policy)
    assert masks_seen(policy) == [(1, 1, 76, 76)] * 2


def test_the_mask_is_made_once_for_all_layers():
    parts = RowParts(shared=2, chosen_end=4, end=7)
    mask = parts.mask(torch.zeros(1))
    assert mask is parts.mask(torch.ones(1))
    assert (mask[0, 0] == 0).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_the_parts_of_a_row_match_its_mask():
    batch = collated(PAIRS, alike=3)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    rows = pack_shared_prompt(batch["input_ids"], batch["attention_mask"], labels)
    for parts, sees in zip(rows.parts(), rows.sees[:, 0], strict=True):
        seen = sees[parts.chosen_end : parts.end]
        seen = torch.cat([seen[:, : parts.shared], seen[:, parts.chosen_end : parts.end]], dim=1)
        assert torch.equal(seen, parts.mask(torch.zeros(1))[0, 0] == 0)


@pytest.mark.usefixtures("always")
def test_generation_is_unchanged():
    policy, batch = with_adapter(model_of("Gemma3")), collated([(9, 12, 7)])
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    before = policy.generate(**inputs, **settings)
    share_prompt_computation(policy)
    assert torch.equal(policy.generate(**inputs, **settings), before)


@pytest.mark.usefixtures("always")
def test_a_model_that_does_not_pass_the_parts_on_keeps_its_mask(monkeypatch: pytest.MonkeyPatch):
    policy, batch = with_adapter(model_of("Llama")), collated(PAIRS)
    plain = ask(policy, batch).log_probs
    for layer in policy.get_base_model().model.layers:
        forward = layer.self_attn.forward
        monkeypatch.setattr(
            layer.self_attn, "forward", lambda *a, forward=forward, **k: forward(*a, **{**k, "shared_rows": None})
        )
    assert share_prompt_computation(policy)
    assert policy.get_base_model().config._attn_implementation == "sdpa"
    torch.testing.assert_close(ask(policy, batch).log_probs, plain, atol=2e-5, rtol=1e-5)


def test_a_model_with_capped_attention_keeps_its_own():
    config = transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=400)
    policy = with_adapter(transformers.Gemma2ForCausalLM._from_config(config, attn_implementation="eager"))
    assert share_prompt_computation(policy)
    assert policy.get_base_model().config._attn_implementation == "eager"
