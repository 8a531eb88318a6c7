"""The files of a run folder, relative to it (a contract)."""

from __future__ import annotations

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


ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
