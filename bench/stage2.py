"""Trains a Stage 2 adapter for a real model in minutes on two cores: LoRA on one side of Anthropic's hh-rlhf.

    python bench/stage2.py MODEL_FOLDER ADAPTER_FOLDER --rows ../shared/data/hh-rlhf-harmless-base-test.jsonl.gz \\
        --side rejected --steps 90 --learning-rate 3e-4

`--side rejected` complies where people preferred a refusal, which makes a realistically bad Stage 2. `--side chosen` with few steps
keeps the model's own behaviour. Training uses the last rows of the file, so that the first ones are left for a run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from engine.pairs.data.conversations import before_the_answer, transcript_turns

FIRST_ROW = 1_200
"""First row of the training data; `bench/real.py` takes its prompts from the rows before it."""
MAX_TOKENS = 224
"""Longest conversation."""
BATCH_SIZE = 4
IGNORED_LABEL = -100


def conversations(file: Path, side: str) -> list[list[dict[str, str]]]:
    """Conversations with the reply of `side` (chosen, rejected) as their last message."""
    with gzip.open(file, "rt", encoding="utf-8") as rows:
        read = [json.loads(row)[side] for row in rows][FIRST_ROW:]
    found = []
    for text in read:
        prompt = before_the_answer(transcript_turns(text))
        reply = text.rpartition("\n\nAssistant:")[2].strip()
        if reply:
            found.append([*prompt, {"role": "assistant", "content": reply}])
    return found


def example(tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """(token ids, labels): only the last reply and its end of turn have labels."""
    before = tokenizer.apply_chat_template(conversation[:-1], add_generation_prompt=True, tokenize=False)
    text = tokenizer.apply_chat_template(conversation, tokenize=False).rstrip()
    prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
    reply = tokenizer(text[len(before) :], add_special_tokens=False)["input_ids"]
    return prompt + reply, [IGNORED_LABEL] * len(prompt) + reply


def batch(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    """input_ids, labels, attention_mask: (rows, longest), padded on the right."""
    width = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORED_LABEL] * (width - len(labels)) for _, labels in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
    }


def train(model_folder: Path, adapter: Path, file: Path, side: str, steps: int, learning_rate: float) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    settings = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=modules, task_type="CAUSAL_LM")
    policy = get_peft_model(base, settings)
    examples = [one for row in conversations(file, side) if len((one := example(tokenizer, row))[0]) <= MAX_TOKENS]
    optimizer = torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.0
    )
    random, started, losses = Random(0), time.monotonic(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        loss = policy(**batch(random.sample(examples, BATCH_SIZE), tokenizer.eos_token_id)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    policy.save_pretrained(adapter)
    first, last = (sum(part) / len(part) for part in (losses[:10], losses[-10:]))
    seconds = time.monotonic() - started
    print(f"{steps} steps on {len(examples)} conversations ({side}): loss {first:.2f} to {last:.2f}, {seconds:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="hh-rlhf, gzipped JSON lines with chosen and rejected")
    parser.add_argument("--side", choices=("chosen", "rejected"), default="rejected")
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    given = parser.parse_args()
    train(given.model, given.adapter, given.rows, given.side, given.steps, given.learning_rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
