"""Our decoding loop compared with one plain forward pass, on five architectures with random weights."""

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


def ids(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(3, VOCABULARY) for _ in range(length)]


def ragged(seed: int = 1, count: int = 7) -> list[list[int]]:
    draw = random.Random(seed)
    return [ids(draw, 5 + 9 * index) for index in draw.sample(range(count), count)]


@pytest.fixture(params=sorted(CONFIGS))
def model(request) -> PreTrainedModel:
    return build(request.param)


@pytest.mark.fault("C15")
def test_every_row_of_a_ragged_batch_says_what_the_model_says_alone(model):
    prompts, limits, ends = ragged(), [3, 20, 11, 20, 20, 7, 16], set(range(10, 16))
    said = generate_batch(model, prompts, Greedy(), list(ends), limits, pad=0)
    for prompt, limit, row in zip(prompts, limits, said, strict=True):
        assert_greedy(model, prompt, row.ids)
        assert row.ended == (row.ids[-1] in ends) and not ends & {*row.ids[:-1]}
        assert row.ended or len(row.ids) == limit
    assert 0 < sum(row.ended for row in said) < len(said)
    assert len({tuple(row.ids) for row in said}) == len(said)


def test_it_says_what_generate_says(model, clear_choices):
    """For prompts whose choices are clear from the first token; other tests here compare logits."""
    prompt = ids(random.Random(8), 12)
    (said,) = generate_batch(model, [prompt], Greedy(), [], [3], pad=0)
    options = {"attention_mask": torch.ones(1, 12, dtype=torch.long), "max_new_tokens": 3, "do_sample": False}
    assert model.generate(torch.tensor([prompt]), **options, eos_token_id=None)[0, 12:].tolist() == said.ids


def test_what_was_read_is_not_read_again_and_changes_nothing(model):
    """Three steps of a conversation; later prompts start with earlier ones, except for one rewritten row."""
    draw = random.Random(4)
    prefix_cache, rows = PrefixCache(), ragged(2)
    for step in range(3):
        with forward_shapes(model) as shapes:
            said = generate_batch(model, rows, Greedy(), [], [6 + step] * len(rows), pad=0, prefix_cache=prefix_cache)
        read = [columns for _, columns in shapes]
        prefix_cache.keep_rows([row.prefix for row in said])
        assert all(len(one.ids) == 6 + step for one in said)
        for row, one in zip(rows, said, strict=True):
            assert_greedy(model, row, one.ids)
        if step:
            assert sorted(read)[-1] >= len(rows[3]) - 1 and sum(n > 20 for n in read) == 1
        rows = [
            [*row, *one.ids, *ids(draw, 4 + index)] for index, (row, one) in enumerate(zip(rows, said, strict=True))
        ]
        rows[3] = ids(draw, 30)


def test_a_beginning_that_all_rows_share_is_read_once(model):
    draw = random.Random(9)
    examples = ids(draw, 60)
    rows = [[*examples, *ids(draw, 3 + index)] for index in range(5)]
    prefix_cache = PrefixCache()
    with forward_shapes(model) as read:
        said = generate_batch(model, rows, Greedy(), [], [1] * 5, pad=0, prefix_cache=prefix_cache)
    for row, one in zip(rows, said, strict=True):
        assert_greedy(model, row, one.ids)
    assert read[0] == (1, 60) and max(columns for _, columns in read[1:]) <= 7
    with forward_shapes(model) as read:
        generate_batch(
            model, [[*examples, 5, 6], [*examples, 7, 8]], Greedy(), [], [1, 1], pad=0, prefix_cache=prefix_cache
        )
    assert max(columns for _, columns in read) <= 7  # the next batch finds it, too


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_a_text_longer_than_a_sliding_window_is_read_whole_each_time_and_right(name):
    model = build(name, sliding_window=16)
    prefix_cache, rows = PrefixCache(), ragged(3)
    assert not attends_to_all(model, 60) and attends_to_all(model, 15)
    said = generate_batch(model, rows, Greedy(), [], [9] * len(rows), pad=0, prefix_cache=prefix_cache)
    for row, one in zip(rows, said, strict=True):
        assert_greedy(model, row, one.ids)
    assert all(row.prefix is None and len(row.ids) == 9 for row in said)


def test_rows_that_have_ended_leave_the_batch(model):
    with forward_shapes(model) as shapes:
        generate_batch(model, ragged(), Greedy(), [], [2, 4, 6, 8, 10, 12, 30], pad=0)
    sizes = [rows for rows, _ in shapes]
    assert sizes[-1] == 1 and max(sizes) <= 7


@pytest.mark.fault("C14")
def test_a_sampled_row_says_the_same_alone_as_in_company(model, clear_choices):
    rows, seeds = ragged(6), list(range(73, 80))
    together = generate_batch(model, rows, Nucleus(0.8, 0.9, seeds, 12, "cpu"), [], [12] * 7, pad=0)
    for row, seed, said in zip(rows, seeds, together, strict=True):
        (by_itself,) = generate_batch(model, [row], Nucleus(0.8, 0.9, [seed], 12, "cpu"), [], [12], pad=0)
        assert by_itself.ids == said.ids
    other = generate_batch(model, rows, Nucleus(0.8, 0.9, [s + 9 for s in seeds], 12, "cpu"), [], [12] * 7, pad=0)
    assert all(a.ids != b.ids for a, b in zip(together, other, strict=True))


@pytest.mark.parametrize(("top_p", "spread"), [(0.5, 3.0), (0.9, 3.0), (0.95, 0.02), (1.0, 0.5)])
def test_the_nucleus_is_drawn_by_its_probabilities_and_nothing_outside_it(top_p, spread):
    """Against the definition: sort, keep the first tokens that hold top_p, draw in proportion. spread 0.02 over 700 tokens
    needs more of them than the first look holds."""
    torch.manual_seed(3)
    scores = torch.randn(1, 700) * spread
    chances = (scores / 1.3).softmax(-1).double()[0]
    order = chances.argsort(descending=True)
    before = chances[order].cumsum(0) - chances[order]
    inside = order[before < top_p]
    wanted = torch.zeros(700, dtype=torch.double)
    wanted[inside] = chances[inside] / chances[inside].sum()
    count = 4000
    choose = Nucleus(1.3, top_p, range(count), 1, "cpu")
    drawn = choose(scores.expand(count, -1), torch.arange(count), 0)
    assert set(drawn.tolist()) <= set(inside.tolist())
    share = torch.bincount(drawn, minlength=700) / count
    likely = wanted > 0.02
    assert ((share - wanted).abs() < 4 * (wanted * (1 - wanted) / count).sqrt() + 1e-9)[likely].all()
    assert 0.5 * (share - wanted).abs().sum() < 0.5 * (2 * len(inside) / (3.14 * count)) ** 0.5 + 0.05


def test_scores_that_are_not_numbers_stop_the_run():
    scores = torch.randn(3, 50)
    scores[1, 7] = float("nan")
    with pytest.raises(NumbersError):
        Greedy()(scores, torch.arange(3), 0)
    with pytest.raises(NumbersError):
        Nucleus(1.0, 0.9, [1, 2, 3], 1, "cpu")(scores, torch.arange(3), 0)


def test_what_rows_begin_with():
    assert common_prefix_length([1, 2, 3], [1, 2]) == 2
    assert common_prefix_length([], [4]) == 0
    assert list(common_prefix([[5, 6, 7, 1], [5, 6, 9], [5, 6, 7]])) == [5, 6]


@pytest.mark.parametrize("adapted", [False, True])
def test_the_loop_gives_a_model_its_cache_by_the_name_that_it_has_for_it(
    adapted: bool, recwarn: pytest.WarningsRecorder
):
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
