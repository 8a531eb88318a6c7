"""A small tokenizer that encodes each mark of a chat template as one token, as published ones do."""

from __future__ import annotations

import re
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_MARK = re.compile(r"<[|｜]?[\w/:▁.-]+[|｜]?>|\[/?[A-Z_]{2,}\]")
_TEXT = "How do I mend a dripping tap ? Close the valve first , then replace the washer . assistant user model system"


@cache
def _vocabulary() -> str:
    """A BPE model trained on a little text, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([_TEXT] * 3, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    return str(tokenizer.to_str())


def marks_of(template: str) -> list[str]:
    """Marks in a template's text: `<|im_end|>`, `</s>`, `[INST]`."""
    return sorted(set(_MARK.findall(template)))


def tokenizer_with(
    template: str, *, bos: str | None = "<s>", eos: str = "</s>", plain: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer of about 350 tokens with `template`, in which each of its marks is a token.

    plain   marks that are added tokens but not special ones, as `<think>` is
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_vocabulary()), bos_token=bos, eos_token=eos, pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"extra_special_tokens": [m for m in marks_of(template) if m not in plain]})
    tokenizer.add_tokens(list(plain))
    tokenizer.chat_template = template
    return tokenizer


BOS_AND_EOS: tuple[tuple[str, str | None, str], ...] = (
    # a mark in the template, and the model's BOS and EOS
    ("<turn|>", "<bos>", "<eos>"),
    ("<end_of_turn>", "<bos>", "<eos>"),
    ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    ("<｜User｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    ("<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>"),
    ("<|eot|>", "<|begin_of_text|>", "<|eot|>"),
    ("<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    ("<|return|>", "<|startoftext|>", "<|return|>"),
    ("[gMASK]", None, "<|endoftext|>"),
    ("<end_of_utterance>", "<|im_start|>", "<end_of_utterance>"),
    ("[|endofturn|]", "[BOS]", "[|endofturn|]"),
    ("<|end|>", "<s>", "<|endoftext|>"),
)


def published_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the special tokens of the template's own model; thought tags are plain tokens, as in the original."""
    plain = tuple(mark for mark in ("<think>", "</think>") if mark in template)
    if "<|im_end|>" in template:
        bos = "<|startoftext|>" if "bos_token" in template else None
        return tokenizer_with(template, bos=bos, eos="<|im_end|>", plain=plain)
    bos, eos = next(((bos, eos) for mark, bos, eos in BOS_AND_EOS if mark in template), ("<s>", "</s>"))
    return tokenizer_with(template, bos=bos, eos=eos, plain=plain)
