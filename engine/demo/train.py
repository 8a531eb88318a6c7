"""Train the demo's base model from scratch, and the Stage 2 adapter on top of it.

Both learn complete conversations of the grammar, with the next-token loss on the model's turns. Training is seeded and uses one
thread and fp32, so the same processor and versions give the same weights; across processors this is untested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from random import Random

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import GemmaConfig, GemmaForCausalLM, GemmaTokenizer, PreTrainedModel

from engine.pairs.generation.dialogue import Conversation

Draw = Callable[[Random], Conversation]

CONVERSATIONS_A_BATCH = 8
BATCHES_A_BUCKET = 8
"""Conversations are sorted by length within this many batches, to keep padding low."""

IGNORED = -100


def new_base(tokenizer: GemmaTokenizer) -> GemmaForCausalLM:
    """A random Gemma of half a million parameters."""
    return GemmaForCausalLM(
        GemmaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=1024,
            # Copying the question's word into the answer is learnt last, and with the usual 0.02 very late.
            initializer_range=0.06,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def add_adapter(base: GemmaForCausalLM, base_name: str) -> PeftModel:
    """Add a LoRA on all linear layers, as Stage 2 would."""
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(
        base, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=linear, task_type="CAUSAL_LM")
    )
    model.peft_config["default"].base_model_name_or_path = base_name
    return model


def train(
    model: PreTrainedModel | PeftModel,
    tokenizer: GemmaTokenizer,
    draw: Draw,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    plain_share: float = 0.0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train in place. Returns the mean loss of the last 20 steps, in nats per token.

    plain_share   weight of plain language modelling (all tokens) in the first half of training
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = max(1, steps // 20)
    losses: list[float] = []
    model.train()
    for step, (ids, labels) in zip(range(steps), _batches(tokenizer, draw, Random(seed)), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(step, steps, warm_up)
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)  # (B * (T - 1), V); padding is on the right
        loss = cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED)
        losses.append(loss.item())
        if plain_share and step < steps // 2:
            loss = loss + plain_share * cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        on_step(step + 1, losses[-1])
    model.eval()
    return sum(losses[-20:]) / len(losses[-20:])


def label_model_turns(ids: Sequence[int], tokenizer: GemmaTokenizer) -> list[int]:
    """The labels of one conversation: the model's turns, each with its end of turn and newline; all other tokens are ignored.

    <start_of_turn> model \\n  Wipe  it  .  <end_of_turn> \\n  <start_of_turn> user …
         -100        -100 -100 Wipe  it  .  <end_of_turn> \\n       -100       -100
    """
    opening = tokenizer.encode("<start_of_turn>model\n", add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    labels = [IGNORED] * len(ids)
    in_model_turn = False
    for index, token in enumerate(ids):
        if in_model_turn:
            labels[index] = token
        if in_model_turn and ids[index - 1] == end:
            in_model_turn = False
        elif list(ids[index + 1 - len(opening) : index + 1]) == opening:
            in_model_turn = True
    return labels


def _batches(tokenizer: GemmaTokenizer, draw: Draw, random: Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (token ids, labels), both (B, T), endlessly."""
    while True:
        conversations = [draw(random) for _ in range(CONVERSATIONS_A_BATCH * BATCHES_A_BUCKET)]
        rows = sorted((tokenizer.apply_chat_template(c, return_dict=False) for c in conversations), key=len)
        starts = list(range(0, len(rows), CONVERSATIONS_A_BATCH))
        random.shuffle(starts)
        for start in starts:
            batch = rows[start : start + CONVERSATIONS_A_BATCH]
            labels = [label_model_turns(row, tokenizer) for row in batch]
            yield _padded(batch, tokenizer.pad_token_id), _padded(labels, IGNORED)


def _padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    """(B, T), padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])


def _schedule(step: int, steps: int, warm_up: int) -> float:
    """The learning rate as a fraction of its peak: linear warm-up, then cosine decay."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
