"""Build the demo's model and data: `python -m engine.demo.build` writes everything in engine/demo/assets/.

constitution.yaml → conversations → tokenizer → base model → Stage 2 adapter → prompts → recorded answers.
About eight minutes on one core. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from engine.demo.grammar import (
    BASE_MIX,
    SOURCE,
    STAGE2_MIX,
    Mix,
    Question,
    draw_answer,
    draw_conversation,
    draw_prompt,
    grammar,
    questions,
)
from engine.pairs.generation.dialogue import Conversation
from engine.pairs.principles.constitution import Constitution, load_constitution

ASSETS = Path(__file__).with_name("assets")
BASE_NAME = "stage3-tui/demo-base"


@dataclass(frozen=True)
class Settings:
    seed: int = 7
    vocabulary: int = 2048
    base_steps: int = 3000
    base_learning_rate: float = 3e-3
    plain_share: float = 0.3
    stage2_steps: int = 200
    stage2_learning_rate: float = 2e-3
    train_rows: int = 600
    test_rows: int = 150
    recorded: int = 6


def fingerprint(settings: Settings, constitution: Constitution) -> str:
    """A hash of everything that the weights were trained on: settings, sentences, constitution, and fifty generated conversations,
    which reveal changes to grammar.py and dialogue.py."""
    all_questions = questions(held_out=False)
    random = Random(0)
    sample = [draw_conversation(random, random.choice(all_questions), constitution, BASE_MIX) for _ in range(50)]
    parts = [asdict(settings), yaml.safe_load(SOURCE.read_text(encoding="utf-8")), BASE_MIX, STAGE2_MIX, sample]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


Note = Callable[[str], None]
"""Receives progress lines."""


def build(settings: Settings, out: Path) -> None:
    import torch  # heavy, and not needed for the fingerprint
    from transformers.utils import logging

    torch.set_num_threads(1)  # the order of summation, and with it the weights, depends on it
    logging.disable_progress_bar()
    started = time.monotonic()

    def note(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

    out.mkdir(parents=True, exist_ok=True)
    (out / "constitution.yaml").write_text(_constitution_text(), encoding="utf-8")
    constitution = load_constitution(out / "constitution.yaml")
    base, tokenizer = _build_base(settings, out / "base", constitution, note)
    _build_adapter(settings, out / "adapter", base, tokenizer, constitution, note)
    _write_prompts(settings, out / "prompts")
    note(f"figures: {record(settings, out)}")
    files = [file for file in out.rglob("*") if file.is_file()]
    for file in files:
        file.chmod(0o644)  # safetensors makes files readable only by the owner, and a wheel keeps that mode
    size = sum(file.stat().st_size for file in files)
    note(f"{size / 1e6:.2f} MB in {os.path.relpath(out)}")


def _build_base(settings: Settings, out: Path, constitution: Constitution, note: Note) -> tuple[Any, Any]:
    """Train and save the base model and its tokenizer."""
    import torch
    from transformers import GenerationConfig, set_seed

    from engine.demo.tokenizer import train_tokenizer
    from engine.demo.train import new_base, train

    set_seed(settings.seed)
    draw, sample = _draw(constitution, BASE_MIX), Random(settings.seed)
    texts = [message["content"] for _ in range(4000) for message in draw(sample)]
    tokenizer = train_tokenizer(texts, settings.vocabulary)
    tokenizer.save_pretrained(out, save_jinja_files=False)
    note(f"tokenizer of {len(tokenizer)} tokens")

    base = new_base(tokenizer)
    train(
        base,
        tokenizer,
        draw,
        steps=settings.base_steps,
        learning_rate=settings.base_learning_rate,
        plain_share=settings.plain_share,
        seed=settings.seed + 1,
        on_step=_step_printer(note),
    )
    # Stored in fp32, but rounded to bf16, so that runs in either precision start from the same weights.
    for parameter in base.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    base.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, end_of_turn],
        pad_token_id=tokenizer.pad_token_id,
    )
    base.save_pretrained(out)
    note(f"base model of {base.num_parameters():,} parameters")
    return base, tokenizer


def _build_adapter(
    settings: Settings, out: Path, base: Any, tokenizer: Any, constitution: Constitution, note: Note
) -> None:
    from transformers import set_seed

    from engine.demo.train import add_adapter, train

    # So that the adapter's initial weights do not depend on how many random numbers the base model used.
    set_seed(settings.seed + 2)
    model = add_adapter(base, BASE_NAME)
    train(
        model,
        tokenizer,
        _draw(constitution, STAGE2_MIX),
        steps=settings.stage2_steps,
        learning_rate=settings.stage2_learning_rate,
        seed=settings.seed + 2,
        on_step=_step_printer(note),
    )
    model.save_pretrained(out)
    _tidy_adapter(out)


def _write_prompts(settings: Settings, out: Path) -> None:
    out.mkdir(exist_ok=True)
    for split, rows in (("train", settings.train_rows), ("test", settings.test_rows)):
        chosen = _prompts(questions(held_out=split == "test"), rows, Random(3))
        _write_rows(out / f"{split}.jsonl.gz", chosen, Random(settings.seed + 3))


def _step_printer(note: Note) -> Callable[[int, float], None]:
    def on_step(step: int, loss: float) -> None:
        if step % 100 == 0:
            note(f"step {step:5d}  loss {loss:.3f} nats per token")

    return on_step


def record(settings: Settings, out: Path) -> dict[str, Any]:
    """Load the written files as a run would, and record the model's answers in recorded.json. Returns the figures.

    A test compares the answers. Only the greedy chains with the largest margins are recorded, so that rounding on another
    processor does not change them.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from engine.demo.sample import as_figures, generate_chains, least_margin, measure

    constitution = load_constitution(out / "constitution.yaml")
    tokenizer = AutoTokenizer.from_pretrained(out / "base")
    base = AutoModelForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(out / "adapter")).eval()
    held_out = [prompt for prompt, _ in _prompts(questions(held_out=True), settings.test_rows, Random(3))]
    stage2_chains = generate_chains(model, tokenizer, held_out, constitution)
    with model.disable_adapter():
        base_chains = generate_chains(model, tokenizer, held_out, constitution)
    margins = [least_margin(model, tokenizer, chain) for chain in stage2_chains]
    clearest = sorted(zip(margins, stage2_chains, strict=True), key=lambda pair: -pair[0])[: settings.recorded]
    figures = {
        "prompts": len(held_out),
        "base": as_figures(measure(base_chains)),
        "stage2": as_figures(measure(stage2_chains)),
    }
    recorded = {
        "settings": asdict(settings),
        "fingerprint": fingerprint(settings, constitution),
        "figures": figures,
        "chains": [
            asdict(chain) | {"principle": chain.principle.id, "least_margin": round(margin, 3)}
            for margin, chain in clearest
        ],
    }
    (out / "recorded.json").write_text(_as_json(recorded), encoding="utf-8")
    return figures


def _draw(constitution: Constitution, mix: Mix) -> Callable[[Random], Conversation]:
    all_questions = questions(held_out=False)
    return lambda random: draw_conversation(random, random.choice(all_questions), constitution, mix)


def _prompts(all_questions: list[Question], rows: int, random: Random) -> list[tuple[Conversation, Question]]:
    """`rows` different prompts. No question is repeated in another context before all have been used."""
    prompts: list[tuple[Conversation, Question]] = []
    seen: set[str] = set()
    while len(prompts) < rows:
        for question in random.sample(all_questions, len(all_questions)):
            prompt = draw_prompt(random, question)
            if prompt[-1]["content"] not in seen:
                seen.add(prompt[-1]["content"])
                prompts.append((prompt, question))
    return prompts[:rows]


def _write_rows(path: Path, prompts: list[tuple[Conversation, Question]], random: Random) -> None:
    """Write rows in hh-rlhf's format: the same conversation twice, with the better and the worse last turn."""
    lines = []
    for prompt, question in prompts:
        turns = "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in prompt)
        good, flawed = draw_answer(random, question, {"good": 1.0}), draw_answer(random, question, {"careless": 1.0})
        row = {"chosen": f"{turns}\n\nAssistant: {good.text}", "rejected": f"{turns}\n\nAssistant: {flawed.text}"}
        lines.append(json.dumps(row) + "\n")
    # Without time and file name in the header, so that equal rows give equal bytes.
    with path.open("wb") as file, gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
        packed.write("".join(lines).encode())


def _constitution_text() -> str:
    heading = "# Written by python -m engine.demo.build: the model knows these words and no others.\n"
    principles = [{**principle, "weight": 1.0} for principle in grammar().principles]
    return heading + yaml.safe_dump({"principles": principles}, sort_keys=False, width=120)


def _tidy_adapter(folder: Path) -> None:
    """Sort the target modules, which PEFT keeps in a set, and delete its empty model card."""
    config = folder / "adapter_config.json"
    values: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    values["target_modules"].sort()
    config.write_text(_as_json(values), encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def main() -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="python -m engine.demo.build", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write (default: the packaged one)")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--base-steps", type=int, default=defaults.base_steps, help="training steps of the base model")
    args = parser.parse_args()
    build(Settings(seed=args.seed, base_steps=args.base_steps), args.out)


if __name__ == "__main__":
    main()
