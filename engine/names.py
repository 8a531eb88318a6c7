"""The ten stages and their order (a contract), and the files of a run folder. Imports nothing: the command line reads it."""

from __future__ import annotations

from typing import NamedTuple


class StageName(NamedTuple):
    name: str
    title: str
    sentence: str


STAGE_TABLE: tuple[StageName, ...] = (
    StageName("workspace", "Workspace", "Finds or clones the repository and makes sure that the disk has room."),
    StageName("toolchain", "Toolchain", "Looks for Python, uv, git, tmux and the GPU driver."),
    StageName(
        "credentials", "Credentials", "Checks the Hugging Face token, and what it may read, before any download."
    ),
    StageName(
        "dependencies", "Dependencies", "Compares installed packages with what the run needs, and tries the device."
    ),
    StageName("adapter", "Adapter", "Verifies the Stage 2 adapter: complete, finite, and with an effect."),
    StageName("preflight", "Preflight", "Does the long run in small and forecasts time, memory and disk."),
    StageName("pairs", "Pairs", "Drafts, criticises and revises an answer to every prompt."),
    StageName("quality", "Quality", "Judges every pair, and refuses a set that cannot teach."),
    StageName(
        "training", "Training", "Trains with DPO against the Stage 2 policy, then compares the two on held-out prompts."
    ),
    StageName("packaging", "Packaging", "Packs the adapter, and all that tells where it came from, into one archive."),
)

STAGES: tuple[str, ...] = tuple(stage.name for stage in STAGE_TABLE)
STAGE: dict[str, StageName] = {stage.name: stage for stage in STAGE_TABLE}

RUN_JSON = "run.json"
PAIRS_JSONL = "pairs/pairs.jsonl"
PAIRS_PLAN = "pairs/plan.json"
EDITS_JSONL = "pairs/edits.jsonl"
SCORES_JSONL = "pairs/scores.jsonl"
PAIRS_REPORT = "pairs/report.json"
TRAIN_JSONL = "dpo_dataset/train.jsonl"
EVAL_JSONL = "dpo_dataset/eval.jsonl"
REFERENCE_LOGPS = "dpo_dataset/reference_logps.json"
ADAPTER_DIR = "models/lora_adapters"
CHECKPOINTS_DIR = "checkpoints"
EVENTS_JSONL = "logs/events.jsonl"
RUN_LOG = "logs/run.log"
EVALUATION_REPORT = "evaluation/report.json"
METRICS_JSON = "metrics.json"
STOP_REQUEST = "logs/stop-request"
LOCK_FILE = "logs/lock"
SUPERSEDED_DIR = "superseded"
ARCHIVE_SUFFIX = "_artifacts.zip"
