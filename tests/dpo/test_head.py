"""--head: every method gives the same figures and gradients, also for models that transform their logits after the head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from engine.core.config import Stage3Config
from engine.dpo.planning.forecast import Shape, head_memory, head_method
from engine.dpo.training.head import install_head
from engine.dpo.training.reference import adapter_active
from engine.dpo.training.shared_prompt import share_prompt_computation
from engine.models import head as head_module
from engine.models.head import head_of, reproduces_logits
from tests.dpo.test_forecast import GEMMA_2B
from tests.dpo.test_shared_prompt import BATCHES, FAMILIES, FIGURES, SHAPE, ask, collated, loss_and_gradients

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma, tied": FAMILIES["gemma"],
    "llama, untied": ("Llama", {**SHAPE, "num_key_value_heads": 2, "tie_word_embeddings": False}),
    "gemma2, capped": (
        "Gemma2",
        {**SHAPE, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 400, "final_logit_softcapping": 2.0},
    ),
    "granite, divided": ("Granite", {**SHAPE, "num_key_value_heads": 2, "logits_scaling": 3.0}),
    "cohere, multiplied": ("Cohere", {**SHAPE, "num_key_value_heads": 2, "logit_scale": 0.25}),
}
WHOLE, CHUNKED, TRL = (Stage3Config(head=method) for method in ("whole", "chunked", "trl"))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(head_module, "TILE_POSITIONS", 9)
    monkeypatch.setattr(head_module, "TILE_TOKENS", 50)


def policy_of(name: str, **settings: Any) -> PeftModel:
    torch.manual_seed(3)
    family, shape = HEADS[name]
    base = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**shape))
    with torch.no_grad():
        base.get_output_embeddings().weight.mul_(3)  # far enough from 0 that a cap shows
    chosen = {"r": 3, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **settings}
    policy = get_peft_model(base, LoraConfig(**chosen))
    for parameter_name, parameter in policy.named_parameters():
        if "lora_B" in parameter_name or "modules_to_save" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3)
    add_fused_lm_head(policy.get_base_model(), outputs=FIGURES)
    return policy.eval()


def figures_of(config: Stage3Config, name: str, *, everything: bool = False, **settings: Any) -> Any:
    """Figures, loss and gradients of a batch with one head; everything: also gradients of the base's parameters."""
    policy = policy_of(name, **settings)
    if everything:
        policy.requires_grad_(True)
    assert install_head(policy, config) == (config.head, "")
    return loss_and_gradients(policy, collated(BATCHES["prompts of one to hundreds of tokens"]))


@pytest.mark.parametrize("method", [CHUNKED, TRL], ids=["chunked", "trl"])
@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["lm_head"]}, {"everything": True}], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_figures_and_every_gradient_are_those_of_the_models_own_logits(
    name: str, settings: dict[str, Any], method: Stage3Config
):
    expected, loss, theirs = figures_of(WHOLE, name, **settings)
    output, own_loss, ours = figures_of(method, name, **settings)
    assert own_loss == pytest.approx(loss, abs=1e-4)  # another kind of attention: 8e-6 with torch 2.8
    for figure in FIGURES:
        torch.testing.assert_close(getattr(output, figure), getattr(expected, figure), atol=2e-5, rtol=1e-5)
    assert ours.keys() == theirs.keys()
    assert "modules_to_save" not in settings or any("lm_head" in parameter for parameter in ours)
    for parameter, gradient in ours.items():
        largest = theirs[parameter].abs().max()
        assert largest > 0
        torch.testing.assert_close(gradient / largest, theirs[parameter] / largest, atol=1e-5, rtol=1e-5)


def test_shared_prompts_give_the_same():
    batch = collated(BATCHES["short replies of one and of seven tokens"], alike=1)
    _, loss, theirs = loss_and_gradients(policy_of("gemma2, capped"), batch)
    policy = policy_of("gemma2, capped")
    policy.config._attn_implementation = "eager"
    install_head(policy, CHUNKED)
    assert share_prompt_computation(policy)
    _, own_loss, ours = loss_and_gradients(policy, batch)
    assert own_loss == pytest.approx(loss, abs=1e-4)  # another kind of attention: 8e-6 with torch 2.8
    for parameter, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[parameter], atol=2e-5, rtol=2e-4)


def test_the_reference_uses_its_own_copy_of_a_trained_head():
    policy = policy_of("llama, untied", modules_to_save=["lm_head"])
    policy.add_adapter("ref", policy.peft_config["default"])
    base = policy.get_base_model()
    with adapter_active(policy, "ref"):
        of_reference = head_of(base)
    with policy.disable_adapter():
        of_base = head_of(base)
    heads = [head.weight for head in (head_of(base), of_reference, of_base) if head is not None]
    wrapper = base.get_output_embeddings()
    copies = [*(wrapper.modules_to_save[name] for name in ("default", "ref")), wrapper.original_module]
    assert [weight.data_ptr() for weight in heads] == [copy.weight.data_ptr() for copy in copies]


# -- models that transform their logits --------------------------------------------------------------------------------


def policy_with_shifted_logits() -> PeftModel:
    """A Llama that shifts its logits after the head, unknown to its configuration."""
    policy = policy_of("llama, untied")
    base = policy.get_base_model()
    fused = base.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = fused(*args, **kwargs)
        if not kwargs.get("fused_lm_head"):
            output.logits = output.logits + torch.linspace(0, 5, output.logits.shape[-1])
        return output

    base.forward = forward
    return policy


@pytest.mark.parametrize("method", ["auto", "chunked", "trl"])
def test_a_model_that_transforms_its_logits_is_scored_by_them(method: str):
    policy = policy_with_shifted_logits()
    assert not reproduces_logits(policy.get_base_model())
    batch = collated(BATCHES["a prompt of one token"])
    ids = batch["input_ids"]
    with torch.no_grad():
        logits = policy(input_ids=ids, attention_mask=batch["attention_mask"]).logits
    used, why = install_head(policy, Stage3Config(head=method))
    assert used == "whole" and "LlamaForCausalLM" in why and "whole" in why
    scored = ask(policy, batch).log_probs
    own = logits[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(scored, own * scored.ne(0), atol=1e-5, rtol=1e-5)


def test_a_head_that_is_not_a_plain_matrix_is_recognised():
    policy = policy_of("llama, untied")
    base = policy.get_base_model()
    base.lm_head = torch.nn.Sequential(base.lm_head)
    assert head_of(base) is None and not reproduces_logits(base)


# -- the method and its memory -------------------------------------------------------------------------------------------


def test_auto_is_chunked_without_a_gpu_and_trls_kernel_with_one():
    assert [head_method("auto", device) for device in ("cpu", "mps", "cuda", "xpu")] == [
        "chunked",
        "chunked",
        "trl",
        "trl",
    ]
    assert [head_method(method, "cpu") for method in ("chunked", "trl", "whole")] == ["chunked", "trl", "whole"]


def test_the_memory_of_chunks_does_not_grow_with_the_vocabulary():
    def needed(shape: Shape, tokens: int, method: str) -> int:
        return head_memory(shape, tokens, head_method(method, "cpu"), "cpu")

    small = Shape(**{**GEMMA_2B.__dict__, "vocab": 32000})
    assert needed(GEMMA_2B, 4096, "chunked") == needed(small, 4096, "chunked")
    assert needed(GEMMA_2B, 4096, "chunked") < needed(GEMMA_2B, 4096, "trl") < needed(GEMMA_2B, 4096, "whole")
    more_tokens = needed(GEMMA_2B, 8192, "chunked") - needed(GEMMA_2B, 4096, "chunked")
    assert more_tokens == 3 * 4 * 4096 * GEMMA_2B.hidden
