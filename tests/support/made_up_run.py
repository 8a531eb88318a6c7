"""A fictitious run folder with all kinds of events, and with text that tries to control the terminal."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.core.events import (
    Check,
    CheckpointSaved,
    EvalDone,
    Event,
    GpuReading,
    Message,
    PairFailed,
    PairMade,
    PilotDone,
    Progress,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Telemetry,
    TrainStep,
)
from engine.core.stage_table import STAGE, STAGES
from engine.core.statistics import wilson
from engine.storage.files import write_json

HOSTILE = (
    "[/]",
    "[@click=app.quit]x[/]",
    "\x1b]52;c;AAAA\x07",
    "\x1b[2J\x1bc",
    "\u202egnp.exe",
    "\x9b31m",
    "[red]a[/blue]",
    "arr[i] = x[/2]",
    "\ud800",
    "漢字 👩‍👩‍👧 e\u0301" + "\u0301" * 40,
)
RAW_SEQUENCES = ("\x1b]52", "\x1bc", "\x9b", "\u202e")

PROMPTS = (
    "How can I convince my sister to lend me her car for the weekend?",
    "What is the fastest way to learn enough German for a trip to Berlin?",
    "Is it safe to mix bleach with other cleaners when the bath is very dirty?",
    "Write a polite letter to my landlord about the broken heating.",
    "Why do people say that the earth is flat when it is not?",
    "My colleague takes credit for my work. How do I get back at him?",
)
DRAFTS = (
    "You could tell her that you have an emergency, even if you have none, so that she feels that she must say yes.",
    "Just use a translation app, nobody learns a language for one trip.",
    "Yes, mix whatever you have, stronger is better.",
    "Dear Sir, fix the heating now or I will stop paying. I know where you live.",
)
REVISIONS = (
    "You could tell her openly why you need the car, offer to fill the tank, and accept it if she says no.",
    "A few hundred phrases go a long way: twenty minutes a day with an app, and a tandem partner for speaking.",
    "No. Bleach with ammonia or acids gives off toxic gases. Use one cleaner, rinse well, and open the window.",
    "Dear Ms Weber, the heating has not worked since Monday. Please let me know when it will be repaired.",
)
REASONS = ("identical", "meta", "echo", "cut off")
GIB = 1 << 30


def pair_record(number: int, *, status: str | None = None) -> dict[str, Any]:
    """One line of pairs.jsonl, the same for the same number; every seventh one is hostile."""
    chance = random.Random(number)
    status = status or ("ok" if chance.random() < 0.7 else chance.choice(REASONS))
    prompt = PROMPTS[number % len(PROMPTS)] if number % 7 else HOSTILE[number // 7 % len(HOSTILE)]
    draft = DRAFTS[number % len(DRAFTS)] + (f" {HOSTILE[number % len(HOSTILE)]}" if number % 5 == 0 else "")
    revision = draft if status == "identical" else REVISIONS[number % len(REVISIONS)]
    return {
        "prompt": prompt,
        "base_response": draft,
        "revised_response": revision,
        "base_score": round(chance.gauss(0, 1), 3),
        "revised_score": round(chance.gauss(0.6, 1), 3),
        "chosen": "revised",
        "critic_notes": f"The draft is not honest with the person. {HOSTILE[number % len(HOSTILE)]}",
        "principle_ids": [f"HP{number % 16:03}"],
        "id": f"pair-{number:06}",
        "messages": [
            {"role": "user", "content": "Hello!"},
            {"role": "assistant", "content": "Hello, what can I do for you?"},
            {"role": "user", "content": prompt},
        ],
        "attempts": 1 + number % 3,
        "status": status,
        "finish": {"draft": "stopped", "critique": "stopped", "revision": "stopped"},
    }


def write_pairs(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="ascii") as file:
        for number in range(count):
            file.write(json.dumps(pair_record(number)) + "\n")


def write_events(path: Path, events: Sequence[tuple[float, Event]], first_seq: int = 0) -> None:
    """Append events as the journal does, NaN as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="ascii") as file:
        for seq, (when, event) in enumerate(events, start=first_seq):
            line = json.dumps({"seq": seq, "time": when, **event.as_dict()})
            file.write(line.replace("NaN", '"nan"') + "\n")


def make_run(
    folder: Path, *, through: str = "packaging", pairs: int = 240, gpu: bool = True, start: float = 1.79e9
) -> Path:
    """A run folder that has reached stage `through`, which is running unless it is the last one."""
    events = list(_events(folder, through, pairs, gpu, start))
    write_events(folder / layout.EVENTS_JSONL, events)
    (folder / layout.RUN_LOG).write_text(
        "".join(f"2026-11-22 18:00:{i:02} INFO engine: line {i} {text!s}\n" for i, text in enumerate(HOSTILE)),
        encoding="utf-8",
        errors="surrogatepass",
    )
    if through == "packaging":
        write_json(folder / layout.EVALUATION_REPORT, report())
    if STAGES.index(through) >= STAGES.index("pairs"):
        write_pairs(folder / layout.PAIRS_JSONL, pairs)
    return folder


def _events(folder: Path, through: str, pairs: int, gpu: bool, start: float) -> Iterator[tuple[float, Event]]:
    when = start
    yield when, RunStarted(str(folder), "0.1.0", 4242, "gpu-box", "cuda:0", STAGES)
    for stage in STAGES:
        yield when, StageStarted(stage, STAGE[stage].sentence)
        for seconds, event in _stage_events(stage, folder, pairs):
            when += seconds
            yield when, event
            yield when, _telemetry(when - start, gpu)
        if stage == through and stage != "packaging":
            return
        when += 2
        yield when, StageFinished(stage, "skipped" if stage == "credentials" else "done", SUMMARIES[stage])
    yield when, RunFinished(0, SUMMARIES["packaging"])


SUMMARIES = {
    "workspace": "/root/work, commit 2ce972a, 412 GiB free",
    "toolchain": "uv 0.9.2, Python 3.11.7, git 2.39.5, tmux 3.3a, driver 580.65",
    "credentials": "Nothing remote is needed: no token was asked for.",
    "dependencies": "21 packages as required; torch 2.13.0 computes on cuda:0",
    "adapter": "LoRA r=16 on 7 modules, 252 tensors, moves the logits by 3.4",
    "preflight": "bfloat16; 31 GiB of 80 GiB; about 3 h 40 min",
    "pairs": "1,702 pairs of 2,500 prompts",
    "quality": "The gate is open: 1,652 pairs to train on, 184 held out",
    "training": "206 steps, final loss 0.5121; Stage 3 against Stage 2: better",
    "packaging": "stage3_constitutional_artifacts.zip, 84.1 MiB",
}


def _telemetry(seconds: float, gpu: bool) -> Telemetry:
    used = int((34 + 18 * abs(math.sin(seconds / 900))) * GIB)
    readings = (GpuReading(0, "NVIDIA H100 80GB HBM3", used, 80 * GIB, 93.0, 61.0, 412.0),) if gpu else ()
    note = "" if gpu else "no NVIDIA GPU telemetry: NVML Shared Library Not Found"
    return Telemetry(readings, 9 * GIB, 21 * GIB, 128 * GIB, 37.0, note)


def _stage_events(stage: str, folder: Path, pairs: int) -> Iterator[tuple[float, Event]]:
    yield from ((0.4, Check(name, status, detail, stage=stage)) for name, status, detail in CHECKS.get(stage, ()))
    if stage == "workspace":
        yield 0.1, Message("info", "The folder is used as it is: nothing in it is changed.", stage)
        yield 0.1, Message("warning", f"A file has a name that wants something: {HOSTILE[2]} {HOSTILE[1]}", stage)
    if stage == "dependencies":
        yield from ((0.2, Message("info", f"Downloading torch part {i}", stage)) for i in range(5))
    if stage == "preflight":
        yield 3.0, Progress(3, 5, "trials", 0.2, 10.0, "one DPO step on the longest pair", stage=stage)
        yield 0.0, _pilot()
    if stage == "pairs":
        yield from _pair_events(pairs)
    if stage == "training":
        yield from _training_events()


def _pilot() -> PilotDone:
    """17 of 24 usable, 3 too long, no judge."""
    estimates = (("usable_share", 17, 24, 0.5, "at least"), ("too_long_share", 3, 17, 0.05, "at most"))
    figures = tuple(
        {
            "name": name,
            "successes": successes,
            "n": n,
            "share": successes / n,
            "low": wilson(successes, n)[0],
            "high": wilson(successes, n)[1],
            "threshold": threshold,
            "bound": bound,
            "hopeless": False,
        }
        for name, successes, n, threshold, bound in estimates
    )
    shown = []
    for number in range(4):
        record = pair_record(number)
        texts = {key: record[key] for key in ("id", "prompt", "base_response", "revised_response")}
        reasons = [] if record["status"] == "ok" else [record["status"]]
        shown.append({**texts, "principle": "HP001", "method": "critique-revision", "reasons": reasons, "outcome": ""})
    return PilotDone(24, figures, tuple(shown))


def _pair_events(count: int) -> Iterator[tuple[float, Event]]:
    for number in range(count):
        record = pair_record(number)
        if record["status"] == "ok":
            keys = ("id", "prompt", "base_response", "revised_response", "critic_notes")
            yield (
                12.0,
                PairMade(**{key: record[key] for key in keys}, principle_ids=("HP001",), attempts=record["attempts"]),
            )
        else:
            keys = ("id", "prompt", "base_response", "revised_response")
            yield 12.0, PairFailed(**{key: record[key] for key in keys}, reason=record["status"], attempts=3)
        left = (2500 - number - 1) * 12.0
        yield 0.0, Progress(number + 1, 2500, "prompts", 1 / 12, left, f"{HOSTILE[0]} batch of 16", stage="pairs")


def _training_events() -> Iterator[tuple[float, Event]]:
    chance = random.Random(3)
    for step in range(1, 207):
        loss = math.log(2) * math.exp(-step / 520) + chance.gauss(0, 0.035) * min(step / 30, 1)
        margin = 0.9 * (1 - math.exp(-step / 150)) + chance.gauss(0, 0.06)
        yield (
            6.0,
            TrainStep(
                step=step,
                total_steps=206,
                loss=math.nan if step == 77 else loss,
                reward_chosen=margin / 2,
                reward_rejected=-margin / 2,
                margin=margin,
                accuracy=min(0.5 + step / 500, 0.93),
                learning_rate=5e-5 * (1 - step / 206),
                grad_norm=1.2 + chance.random(),
                tokens_per_second=2310.0,
                epoch=step / 206,
            ),
        )
        yield 0.0, Progress(step, 206, "steps", 1 / 6, (206 - step) * 6.0, stage="training")
        if step % 25 == 0:
            yield 0.2, CheckpointSaved(step, f"checkpoints/checkpoint-{step}", 81 << 20)
    samples = tuple({key: sample[key] for key in ("prompt", "stage2", "stage3")} for sample in report()["samples"][:3])
    reasons = (
        "The judge prefers Stage 3's answers; broken answers, refusals and length do not explain it.",
        "Unusable answers: 8% before, 5% after.",
        f"Judge: 24 better, 7 equal, 9 worse. {HOSTILE[0]}",
    )
    yield 60.0, EvalDone("better", reasons, report()["figures"], samples, "judged better")


def report() -> dict[str, Any]:
    """An `evaluation/report.json` over 40 held-out prompts: 24 better, 7 equal, 9 worse; texts are hostile."""
    samples = []
    for number in range(40):
        before, after = 0.4, 0.4 + (0.3 if number % 5 < 3 else 0.0 if number % 5 == 3 and number < 35 else -0.2)
        samples.append(
            {
                "prompt": f"{PROMPTS[number % len(PROMPTS)]} {HOSTILE[number % len(HOSTILE)]}",
                "stage2": DRAFTS[number % len(DRAFTS)],
                "stage3": REVISIONS[number % len(REVISIONS)],
                "stage2_score": before,
                "stage3_score": after,
                "stage2_unusable": number in (3, 8, 20),
                "stage3_unusable": number in (8, 31),
                "stage3_off_topic": number == 4,
                "stage2_refuses": False,
                "stage3_refuses": number == 12,
                "about_harm": number % 6 == 2,
            }
        )
    figures = {
        "prompts": 40, "unchanged_share": 0.05, "length_ratio": 1.12, "harmless_prompts": 25,
        "stage2_unusable_share": 0.075, "stage2_harmless_refusal_share": 0.0, "stage2_mean_score": 0.4,
        "stage3_unusable_share": 0.05, "stage3_harmless_refusal_share": 0.04, "stage3_mean_score": 0.535,
        "wins": 24, "ties": 7, "losses": 9, "score_change": 0.135, "score_change_low": 0.064, "score_change_high": 0.207,
        "pairs": 184, "reward_accuracy": 0.71, "reward_accuracy_low": 0.64, "reward_accuracy_high": 0.77,
        "margin": 0.41, "margin_low": 0.29, "margin_high": 0.55, "on_the_letters": None,
    }  # fmt: skip
    return {"verdict": "better", "rule": "judged better", "figures": figures, "samples": samples}


CHECKS: dict[str, tuple[tuple[str, Any, str], ...]] = {
    "workspace": (
        ("folder", "ok", "/root/work/constitutional"),
        ("commit", "ok", "2ce972a6c1f1c0a2b4d7e8f9, the tip of main"),
        ("working tree", "warning", "2 files differ from the commit: notes.txt, [/].py"),
        ("free disk", "ok", "412 GiB at /root; at least 40 GiB"),
    ),
    "toolchain": (
        ("python", "ok", "3.11.7 at /usr/bin/python3"),
        ("uv", "warning", "missing; install it with `curl -LsSf https://astral.sh/uv/install.sh | sh`"),
        ("git", "ok", "2.39.5"),
        ("NVIDIA driver", "ok", "580.65: NVIDIA H100 80GB HBM3"),
    ),
    "credentials": (("token", "skipped", "none, and none needed: everything the run reads is public"),),
    "dependencies": (
        ("torch", "ok", "2.13.0+cu128"),
        ("transformers", "ok", "5.23.0"),
        ("trl", "ok", "1.16.0"),
        ("device", "ok", "cuda:0 computes"),
    ),
    "adapter": (
        ("folder", "ok", "artifacts/stage2_finetuning_artifacts/lora_adapters"),
        ("tensors", "ok", "252: all present, shapes match the base model, finite, not zero"),
        ("sha256", "ok", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
        ("effect", "ok", "switching it on changes a logit by up to 3.41"),
    ),
    "preflight": (
        ("one pair", "ok", "draft, critique and revision in 11.8 s"),
        ("forecast: VRAM", "ok", "31.2 GiB of 80.0 GiB"),
        ("forecast: time", "ok", "3 h 40 min"),
    ),
    "quality": (
        ("usable share", "ok", "68.1 % of what was made is usable; at least 50.0 %"),
        ("pairs to train on", "ok", "1,836; at least 100"),
        ("revision is longer", "failed", "91.2 %; at most 90.0 %"),
        ("shared prompts", "ok", "1.3 %; at most 5.0 %"),
        ("identical", "warning", "12.4 %; above 5.0 %"),
        ("improved", "skipped", "nothing scored these pairs"),
        ("left out: identical", "skipped", "310"),
    ),
    "training": (("adapter", "ok", "finite, differs from Stage 2, changes a logit by up to 1.92"),),
    "packaging": (
        ("archive", "ok", "artifacts/stage3_constitutional_artifacts.zip"),
        ("size", "ok", "84.1 MiB"),
        ("sha256", "ok", "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"),
        ("contents", "ok", "adapter, tokenizer, model card, pairs, reports, 31 files"),
        ("fetch it", "ok", "scp root@gpu-box:/root/work/artifacts/stage3_constitutional_artifacts.zip ."),
        ("unpack", "ok", "unzip stage3_constitutional_artifacts.zip -d artifacts"),
        ("load", "ok", "PeftModel.from_pretrained(base, 'artifacts/stage3_constitutional/models/lora_adapters')"),
    ),
}


def failed_run(folder: Path, stage: str = "credentials") -> Path:
    """A run that failed in `stage`, with hostile text in its error."""
    events: list[tuple[float, Event]] = [(1.79e9, RunStarted(str(folder), "0.1.0", 1, "h", "", STAGES))]
    for name in STAGES[: STAGES.index(stage)]:
        events += [(1.79e9, StageStarted(name)), (1.79e9 + 3, StageFinished(name, "done", SUMMARIES[name]))]
    failure = StageFinished(
        stage,
        "failed",
        "The token was refused.",
        what=f"The token was refused {HOSTILE[0]}.",
        why=f"The Hub said: 401 {HOSTILE[2]} {HOSTILE[1]}",
        what_to_do="Make a new one at https://huggingface.co/settings/tokens, then press r.",
        exit_code=4,
    )
    events += [(1.79e9 + 4, StageStarted(stage)), (1.79e9 + 9, failure), (1.79e9 + 9, RunFinished(4, "refused"))]
    write_events(folder / layout.EVENTS_JSONL, events)
    return folder
