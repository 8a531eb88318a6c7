"""Our decoding loop compared with a single plain forward pass, on five architectures with random weights."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from engine.core.errors import NumbersError
from engine.models.generation.batch_size import kv_bytes_per_token
from engine.models.generation.decoding import generate_batch
from engine.models.generation.kv_cache import attends_to_all, cache_argument
from engine.models.generation.prefix_cache import PrefixCache, common_prefix, common_prefix_length
from engine.models.generation.samplers import Greedy, Nucleus
from tests.support.forward_shapes import forward_shapes
from tests.support.greedy import assert_greedy

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.35,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
CONFIGS = {
    "gemma": lambda **more: GemmaConfig(**SHAPE, head_dim=8, **more),
    "gemma2": lambda **more: Gemma2Config(**SHAPE, head_dim=8, **{"sliding_window": 200, **more}),
    "gemma3": lambda **more: Gemma3TextConfig(**SHAPE, head_dim=8, **{"sliding_window": 200, **more}),
    "llama": lambda **more: LlamaConfig(**SHAPE, **more),
    "qwen2": lambda **more: Qwen2Config(**SHAPE, **more),
}


def build(name: str, **more: object) -> PreTrainedModel:
    torch.manual_seed(23)
    return AutoModelForCausalLM.from_config(CONFIGS[name](**more), dtype=torch.float32).eval()


def random_ids(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(3, VOCABULARY) for _ in range(length)]


def ragged_prompts(seed: int = 1, count: int = 7) -> list[list[int]]:
    draw = random.Random(seed)
    return [random_ids(draw, 5 + 9 * index) for index in draw.sample(range(count), count)]


@pytest.fixture(params=sorted(CONFIGS))
def model(request) -> PreTrainedModel:
    return build(request.param)


@pytest.mark.fault("C15")
def test_every_row_of_a_ragged_batch_is_generated_as_it_would_be_alone(model):
    prompts, limits, stop_ids = ragged_prompts(), [3, 20, 11, 20, 20, 7, 16], set(range(10, 16))
    generated = generate_batch(model, prompts, Greedy(), list(stop_ids), limits, pad=0)
    for prompt, limit, row in zip(prompts, limits, generated, strict=True):
        assert_greedy(model, prompt, row.ids)
        assert row.ended == (row.ids[-1] in stop_ids) and not stop_ids & {*row.ids[:-1]}
        assert row.ended or len(row.ids) == limit
    assert 0 < sum(row.ended for row in generated) < len(generated)
    assert len({tuple(row.ids) for row in generated}) == len(generated)


def test_it_generates_what_generate_does(model, clear_choices):
    """Only for prompts whose choices are clear from the first token on; the other tests compare logits."""
    prompt = random_ids(random.Random(8), 12)
    (generated,) = generate_batch(model, [prompt], Greedy(), [], [3], pad=0)
    options = {"attention_mask": torch.ones(1, 12, dtype=torch.long), "max_new_tokens": 3, "do_sample": False}
    assert model.generate(torch.tensor([prompt]), **options, eos_token_id=None)[0, 12:].tolist() == generated.ids


def test_cached_prefixes_are_not_prefilled_again_and_change_nothing(model):
    """Three steps of a conversation. Later prompts start with earlier ones, except for one row that is replaced."""
    draw = random.Random(4)
    prefix_cache, rows = PrefixCache(), ragged_prompts(2)
    for step in range(3):
        with forward_shapes(model) as shapes:
            generated = generate_batch(
                model, rows, Greedy(), [], [6 + step] * len(rows), pad=0, prefix_cache=prefix_cache
            )
        columns_read = [columns for _, columns in shapes]
        prefix_cache.keep_rows([row.prefix for row in generated])
        assert all(len(generated_row.ids) == 6 + step for generated_row in generated)
        for row, generated_row in zip(rows, generated, strict=True):
            assert_greedy(model, row, generated_row.ids)
        if step:
            assert sorted(columns_read)[-1] >= len(rows[3]) - 1 and sum(n > 20 for n in columns_read) == 1
        rows = [
            [*row, *generated_row.ids, *random_ids(draw, 4 + index)]
            for index, (row, generated_row) in enumerate(zip(rows, generated, strict=True))
        ]
        rows[3] = random_ids(draw, 30)


def test_a_prefix_that_all_rows_share_is_prefilled_once(model):
    draw = random.Random(9)
    examples = random_ids(draw, 60)
    rows = [[*examples, *random_ids(draw, 3 + index)] for index in range(5)]
    prefix_cache = PrefixCache()
    with forward_shapes(model) as columns_read:
        generated = generate_batch(model, rows, Greedy(), [], [1] * 5, pad=0, prefix_cache=prefix_cache)
    for row, generated_row in zip(rows, generated, strict=True):
        assert_greedy(model, row, generated_row.ids)
    assert columns_read[0] == (1, 60) and max(columns for _, columns in columns_read[1:]) <= 7
    with forward_shapes(model) as columns_read:
        generate_batch(
            model, [[*examples, 5, 6], [*examples, 7, 8]], Greedy(), [], [1, 1], pad=0, prefix_cache=prefix_cache
        )
    assert max(columns for _, columns in columns_read) <= 7  # the next batch finds it, too


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_a_text_longer_than_a_sliding_window_is_not_cached_and_still_right(name):
    model = build(name, sliding_window=16)
    prefix_cache, rows = PrefixCache(), ragged_prompts(3)
    assert not attends_to_all(model, 60) and attends_to_all(model, 15)
    generated = generate_batch(model, rows, Greedy(), [], [9] * len(rows), pad=0, prefix_cache=prefix_cache)
    for row, generated_row in zip(rows, generated, strict=True):
        assert_greedy(model, row, generated_row.ids)
    assert all(row.prefix is None and len(row.ids) == 9 for row in generated)


def test_finished_rows_leave_the_batch(model):
    with forward_shapes(model) as shapes:
        generate_batch(model, ragged_prompts(), Greedy(), [], [2, 4, 6, 8, 10, 12, 30], pad=0)
    sizes = [rows for rows, _ in shapes]
    assert sizes[-1] == 1 and max(sizes) <= 7


@pytest.mark.fault("C14")
def test_a_sampled_row_is_the_same_alone_and_in_a_batch(model, clear_choices):
    rows, seeds = ragged_prompts(6), list(range(73, 80))
    batched = generate_batch(model, rows, Nucleus(0.8, 0.9, seeds, 12, "cpu"), [], [12] * 7, pad=0)
    for row, seed, generated in zip(rows, seeds, batched, strict=True):
        (alone,) = generate_batch(model, [row], Nucleus(0.8, 0.9, [seed], 12, "cpu"), [], [12], pad=0)
        assert alone.ids == generated.ids
    other = generate_batch(model, rows, Nucleus(0.8, 0.9, [s + 9 for s in seeds], 12, "cpu"), [], [12] * 7, pad=0)
    assert all(a.ids != b.ids for a, b in zip(batched, other, strict=True))


@pytest.mark.parametrize(("top_p", "spread"), [(0.5, 3.0), (0.9, 3.0), (0.95, 0.02), (1.0, 0.5)])
def test_tokens_are_sampled_by_probability_and_only_from_the_nucleus(top_p, spread):
    """Against the definition: sort, keep the first tokens that have top_p together, and sample in proportion. With a spread of 0.02
    over 700 tokens, the nucleus is larger than TOP_K."""
    torch.manual_seed(3)
    logits = torch.randn(1, 700) * spread
    probs = (logits / 1.3).softmax(-1).double()[0]
    order = probs.argsort(descending=True)
    before = probs[order].cumsum(0) - probs[order]
    nucleus = order[before < top_p]
    expected = torch.zeros(700, dtype=torch.double)
    expected[nucleus] = probs[nucleus] / probs[nucleus].sum()
    count = 4000
    choose = Nucleus(1.3, top_p, range(count), 1, "cpu")
    drawn = choose(logits.expand(count, -1), torch.arange(count), 0)
    assert set(drawn.tolist()) <= set(nucleus.tolist())
    share = torch.bincount(drawn, minlength=700) / count
    likely = expected > 0.02
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt() + 1e-9)[likely].all()
    assert 0.5 * (share - expected).abs().sum() < 0.5 * (2 * len(nucleus) / (3.14 * count)) ** 0.5 + 0.05


def test_logits_that_are_not_finite_stop_the_run():
    logits = torch.randn(3, 50)
    logits[1, 7] = float("nan")
    with pytest.raises(NumbersError):
        Greedy()(logits, torch.arange(3), 0)
    with pytest.raises(NumbersError):
        Nucleus(1.0, 0.9, [1, 2, 3], 1, "cpu")(logits, torch.arange(3), 0)


def test_common_prefixes():
    assert common_prefix_length([1, 2, 3], [1, 2]) == 2
    assert common_prefix_length([], [4]) == 0
    assert list(common_prefix([[5, 6, 7, 1], [5, 6, 9], [5, 6, 7]])) == [5, 6]


@pytest.mark.parametrize("adapted", [False, True])
def test_the_cache_is_passed_under_the_models_own_argument_name(adapted: bool, recwarn: pytest.WarningsRecorder):
    """No deprecation warning reaches the terminal."""
    warnings.simplefilter("always")
    model = build("llama")
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    recwarn.clear()
    assert generate_batch(model, [[5, 6, 7]], Greedy(), [], [3], pad=0)[0].ids
    assert kv_bytes_per_token(model) > 0
    assert [str(warning.message) for warning in recwarn] == []


def test_an_older_transformers_has_the_older_name():
    class Older(LlamaForCausalLM):
        def forward(self, input_ids=None, past_key_values=None):
            pass

    model = Older(CONFIGS["llama"]())
    assert list(cache_argument(model, DynamicCache())) == ["past_key_values"]
