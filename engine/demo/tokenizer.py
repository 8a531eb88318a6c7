"""A small tokenizer like Gemma's, with `▁` for spaces, byte fallback, and Gemma's special tokens and template."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer

# The template of google/gemma-2b-it: no system role, and the assistant is called "model".
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
TURNS = ["<start_of_turn>", "<end_of_turn>"]
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *TURNS]  # ids 0 to 6
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> GemmaTokenizer:
    """Train BPE on `texts`. No token spans two words, so a frequent word is always one token."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[A-Za-z']+|▁?[^\sA-Za-z'▁]|\n|▁"), "isolated")
    roles = ["user\n", "model\n"] * 1000  # so that the template's own text takes few tokens, too
    bpe.train_from_iterator(
        [*roles, *texts],
        # With min_frequency 2, the alphabet and all words do not fill the vocabulary.
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[*SPECIAL, *BYTES], min_frequency=2, show_progress=False
        ),
    )
    model = json.loads(bpe.to_str())["model"]
    return GemmaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        chat_template=CHAT_TEMPLATE,
        additional_special_tokens=TURNS,
        model_max_length=1024,
    )
