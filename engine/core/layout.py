"""The files of a run folder, relative to it (a contract)."""

from __future__ import annotations

RUN_JSON = "run.json"
PAIRS_JSONL = "pairs/pairs.jsonl"
PAIRS_PLAN = "pairs/plan.json"
PILOT_PAIRS = "preflight/pairs.jsonl"
PILOT_PLAN = "preflight/plan.json"
PILOT_REPORT = "preflight/report.json"
EDITS_JSONL = "pairs/edits.jsonl"
SCORES_JSONL = "pairs/scores.jsonl"
RELEVANCE_JSONL = "pairs/relevance.jsonl"
SHARES_DIR = "pairs/shares"
"""With several processes: one file per process, kept until its rows are merged into the pairs or the scores."""
EVALUATION_SHARES_DIR = "evaluation/shares"
"""The same for the evaluation, kept until the report is written."""
PAIRS_REPORT = "pairs/report.json"
TRAIN_JSONL = "dpo_dataset/train.jsonl"
EVAL_JSONL = "dpo_dataset/eval.jsonl"
CACHE_DIR = "cache"
"""Results by the hash of their inputs, shared by the run and its trials: reference log-probabilities, evaluation answers,
and the exams of judges."""
REFERENCE_LOGPS = "reference_logps.jsonl"
ANSWERS = "answers.jsonl"
EXAMS = "exams.jsonl"
"""These three files are in `CACHE_DIR`."""
ADAPTER_DIR = "models/lora_adapters"
CHECKPOINTS_DIR = "checkpoints"
EVENTS_JSONL = "logs/events.jsonl"
RUN_LOG = "logs/run.log"
PROCESSES_DIR = "logs/processes"
"""With several processes: their tasks, the log of each, and the log of their launcher."""
CURVES_CSV, CURVES_SVG = "logs/curves.csv", "logs/curves.svg"
"""Charts exported by a person."""
EVALUATION_REPORT = "evaluation/report.json"
METRICS_JSON = "metrics.json"
STOP_REQUEST = "logs/stop-request"
LOCK_FILE = "logs/lock"
RESERVE = "logs/reserve"
"""Disk space reserved for a run's last messages while a process works on it (`engine.run.reserve`)."""
SUPERSEDED_DIR = "superseded"
SUPERSEDED_NOTE = "note.json"
"""In each folder of `SUPERSEDED_DIR`: why the files were set aside, and whether their records may be reused."""
TRIALS_DIR = "trials"
SWEEP_REPORT = "trials/sweep.json"
ARCHIVE_SUFFIX = "_artifacts.zip"


ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

FILES = (
    RUN_JSON,
    PAIRS_JSONL,
    PAIRS_PLAN,
    PILOT_PAIRS,
    PILOT_PLAN,
    PILOT_REPORT,
    EDITS_JSONL,
    SCORES_JSONL,
    RELEVANCE_JSONL,
    PAIRS_REPORT,
    TRAIN_JSONL,
    EVAL_JSONL,
    EVENTS_JSONL,
    RUN_LOG,
    EVALUATION_REPORT,
    METRICS_JSON,
    STOP_REQUEST,
    LOCK_FILE,
    SWEEP_REPORT,
)
"""All files of a run. None of these paths may be a folder."""
FOLDERS = tuple(
    sorted(
        {
            *(name.partition("/")[0] for name in FILES if "/" in name),
            *(CACHE_DIR, ADAPTER_DIR, ADAPTER_DIR.partition("/")[0], CHECKPOINTS_DIR, SUPERSEDED_DIR, TRIALS_DIR),
        }
    )
)
