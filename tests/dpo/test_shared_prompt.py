"""Reading a prompt once for both replies gives the same figures and gradients as reading it twice."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from engine.dpo.training.shared_prompt import NO_LABEL, pack_shared_prompt, share_prompt_computation

SHAPE = {
    "vocab_size": 211, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", {**SHAPE, "num_key_value_heads": 1, "head_dim": 8}),
    "llama": ("Llama", {**SHAPE, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2", {**SHAPE, "num_key_value_heads": 4}),
    "gemma2": ("Gemma2", {**SHAPE, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 400}),
}
FIGURES = ("log_probs", "entropy", "mean_logits", "is_top1")
BATCHES = {
    "a prompt of one token": [(1, 3, 2)],
    "short replies of one and of seven tokens": [(5, 1, 7), (6, 7, 1), (4, 1, 1)],
    "prompts of one to hundreds of tokens": [(230, 9, 31), (3, 40, 12), (77, 5, 6), (1, 2, 58)],
}


def policy_of(family: str, attention: str = "sdpa", **more: Any) -> PeftModel:
    torch.manual_seed(3)
    name, shape = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**shape | more)
    base = getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation=attention)
    return with_adapter(base)


def with_adapter(base: Any) -> PeftModel:
    policy = get_peft_model(base, LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    add_fused_lm_head(policy.get_base_model(), outputs=FIGURES)
    return policy.eval()


def collated(sizes: list[tuple[int, int, int]], alike: int = 0) -> dict[str, torch.Tensor]:
    """Pairs with these token counts of prompt, chosen and rejected; the first pair's replies share `alike` tokens."""
    draw = random.Random(17)

    def ids(count: int) -> list[int]:
        return [draw.randrange(3, 211) for _ in range(count)]

    rows = [{"prompt_ids": ids(p), "chosen_ids": ids(c), "rejected_ids": ids(r)} for p, c, r in sizes]
    rows[0]["rejected_ids"][:alike] = rows[0]["chosen_ids"][:alike]
    return DataCollatorForPreference(pad_token_id=0, max_length=512)(rows)


def ask(policy: PeftModel, batch: dict[str, torch.Tensor]) -> Any:
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, NO_LABEL)
    return policy(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels, use_cache=False,
        fused_lm_head=True,
    )  # fmt: skip


def loss_and_gradients(policy: PeftModel, batch: dict[str, torch.Tensor]) -> tuple[Any, float, dict[str, torch.Tensor]]:
    policy.zero_grad()
    output = ask(policy, batch)
    chosen, rejected = output.log_probs.sum(dim=1).chunk(2)
    loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
    loss.backward()
    return output, loss.item(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def shapes_read(policy: PeftModel) -> list[tuple[int, ...]]:
    """A list that records the shape of the ids in each forward pass."""
    seen: list[tuple[int, ...]] = []
    backbone = policy.get_base_model().base_model
    backbone.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return seen


# -- the same results --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(
    ("family", "attention"),
    [("gemma", "sdpa"), ("llama", "sdpa"), ("qwen2", "sdpa"), ("gemma", "eager"), ("gemma2", "eager")],
)
def test_loss_figures_and_every_gradient_are_those_of_two_rows(
    family: str, attention: str, sizes: list[tuple[int, int, int]]
):
    policy, batch = policy_of(family, attention), collated(sizes, alike=1)
    before, plain_loss, plain = loss_and_gradients(policy, batch)
    assert share_prompt_computation(policy)
    after, loss, gradients = loss_and_gradients(policy, batch)
    assert loss == pytest.approx(plain_loss, abs=1e-6)
    for figure in FIGURES:
        torch.testing.assert_close(getattr(after, figure), getattr(before, figure), atol=2e-5, rtol=1e-5)
    assert gradients.keys() == plain.keys() and len(plain) == 28
    for name, gradient in gradients.items():
        assert plain[name].abs().max() > 0
        # A prompt's gradient is the sum over both replies; if they nearly cancel, rounding errors of the parts remain.
        torch.testing.assert_close(gradient, plain[name], atol=2e-5, rtol=2e-4)


def test_gradient_checkpointing_gives_the_same():
    require_the_same_with_gradient_checkpointing(
        policy_of("gemma"), collated(BATCHES["prompts of one to hundreds of tokens"])
    )


def require_the_same_with_gradient_checkpointing(policy: PeftModel, batch: dict[str, torch.Tensor]) -> None:
    _, plain_loss, plain = loss_and_gradients(policy, batch)
    share_prompt_computation(policy)
    policy.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    policy.train()
    _, loss, gradients = loss_and_gradients(policy, batch)
    assert loss == pytest.approx(plain_loss, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain[name], atol=2e-5, rtol=2e-4)


def test_the_rejected_reply_does_not_see_the_chosen_one():
    policy, batch = policy_of("llama"), collated([(9, 12, 7)])
    share_prompt_computation(policy)
    before = ask(policy, batch).log_probs
    batch["input_ids"][0, 9:20] = torch.arange(30, 41)
    after = ask(policy, batch).log_probs
    assert torch.equal(before[1], after[1])
    assert not torch.isclose(before[0, 8:], after[0, 8:]).any()


def test_calls_that_do_not_score_pairs_are_unchanged():
    policy, batch = policy_of("gemma"), collated([(9, 12, 7)])
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits = policy(**inputs).logits
    share_prompt_computation(policy)
    assert torch.equal(policy(**inputs).logits, logits)
    generated = policy.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=-1)
    assert generated.shape == (2, batch["input_ids"].shape[1] + 3)


def test_a_call_with_further_arguments_takes_the_plain_path():
    policy, batch = policy_of("gemma"), collated([(9, 12, 7)])
    inputs = {**batch, "labels": batch["input_ids"], "fused_lm_head": True, "position_ids": torch.arange(21)[None] + 3}
    del inputs["completion_mask"]
    plain = policy(**inputs).log_probs
    share_prompt_computation(policy)
    assert torch.equal(policy(**inputs).log_probs, plain)


# -- a prompt is read once ---------------------------------------------------------------------------------------------


def test_rows_of_the_collator_become_one_row():
    """The example in the module's docstring: <bos> Hi ! | Good day . | Nothing ."""
    rows = pack_shared_prompt(
        torch.tensor([[1, 21, 22, 31, 32, 33], [1, 21, 22, 41, 42, 0]]),
        torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]),
        torch.tensor([[-100, -100, -100, 31, 32, 33], [-100, -100, -100, 41, 42, -100]]),
    )
    assert rows.tokens.tolist() == [[1, 21, 22, 31, 32, 41]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert rows.sees[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert rows.scored.tolist() == [2, 3, 4, 2, 5]
    assert rows.labels.tolist() == [31, 32, 33, 41, 42]
    assert rows.places.tolist() == [[5, 5, 0, 1, 2], [5, 5, 3, 4, 5]]


def test_a_common_beginning_of_both_replies_is_read_and_scored_once():
    rows = pack_shared_prompt(
        torch.tensor([[1, 21, 31, 32, 33], [1, 21, 31, 42, 0]]),
        torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
        torch.tensor([[-100, -100, 31, 32, 33], [-100, -100, 31, 42, -100]]),
    )
    assert rows.tokens.tolist() == [[1, 21, 31, 32]]
    assert rows.labels.tolist() == [31, 32, 33, 42]
    assert rows.places.tolist() == [[4, 0, 1, 2], [4, 0, 3, 4]]


@pytest.mark.parametrize("alike", [0, 4, 7])
def test_a_prompt_is_read_once(alike: int):
    policy = policy_of("gemma")
    share_prompt_computation(policy)
    seen = shapes_read(policy)
    ask(policy, collated([(50, 20, 8)], alike))
    assert seen == [(1, 50 + 19 + 7 - alike)]  # the last tokens predict nothing


def test_a_reply_that_is_a_prefix_of_the_other_is_scored_like_any_other():
    policy, batch = policy_of("qwen2"), collated([(6, 4, 9)], alike=4)
    plain = ask(policy, batch).log_probs
    share_prompt_computation(policy)
    torch.testing.assert_close(ask(policy, batch).log_probs, plain, atol=2e-5, rtol=1e-5)


# -- models that it does not suit ----------------------------------------------------------------------------------------


def test_a_text_as_long_as_a_sliding_window_takes_the_plain_path():
    policy = policy_of("gemma2", "eager", sliding_window=24)
    long, short = collated([(15, 9, 5)]), collated([(15, 8, 5)])
    plain = ask(policy, long).log_probs
    assert share_prompt_computation(policy)
    seen = shapes_read(policy)
    assert torch.equal(ask(policy, long).log_probs, plain)
    ask(policy, short)
    assert seen == [(2, 24), (1, 15 + 7 + 4)]


def test_an_attention_without_custom_masks_is_left_alone():
    policy = policy_of("llama")
    forward = policy.get_base_model().forward
    policy.get_base_model().config._attn_implementation = "flash_attention_2"
    assert not share_prompt_computation(policy)
    assert policy.get_base_model().forward == forward


def test_a_model_without_position_ids_is_left_alone():
    config = transformers.BloomConfig(vocab_size=211, hidden_size=32, n_layer=2, n_head=4)
    assert not share_prompt_computation(with_adapter(transformers.BloomForCausalLM(config)))


def test_a_model_that_ignores_positions_is_detected(monkeypatch: pytest.MonkeyPatch):
    policy = policy_of("llama")
    rotary = policy.get_base_model().model.rotary_emb
    forward = rotary.forward
    monkeypatch.setattr(rotary, "forward", lambda x, ids, *_: forward(x, torch.arange(ids.shape[1])[None]))
    assert not share_prompt_computation(policy)


def test_a_model_that_ignores_the_mask_is_detected(monkeypatch: pytest.MonkeyPatch):
    policy = policy_of("llama")
    for layer in policy.get_base_model().model.layers:
        forward = layer.self_attn.forward
        monkeypatch.setattr(
            layer.self_attn, "forward", lambda *a, forward=forward, **k: forward(*a, **{**k, "attention_mask": None})
        )
    assert not share_prompt_computation(policy)
