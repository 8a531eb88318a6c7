"""The ten stages in order (a contract): name, sentence, inputs and output files.

Imports nothing heavy, because the command line imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.core import layout


@dataclass(frozen=True)
class StageSpec:
    name: str
    title: str
    sentence: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    """The earlier results that its own result depends on: `stage.field` → the name that users read."""
    outputs: tuple[str, ...] = ()
    """Its files in the run folder. They are set aside before the stage runs again."""
    part_outputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The outputs to set aside if only options of one part of the stage changed. Options name parts in `changes`
    (`engine.core.config`)."""
    keeps_records: bool = False
    """Whether the stage itself decides which of its records are still valid, by the inputs that they were made from. The
    pipeline sets its files aside only for `--from`."""
    always_runs: bool = False
    """Whether the stage is never reused, because it quickly checks things that change on their own (free disk, a driver)."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names by which options declare that they change this stage's result."""
        return (self.name, *self.part_outputs)


STAGE2_ADAPTER, BASE_COMMIT = "the Stage 2 adapter", "the base model's commit"
MODEL_INPUTS = {
    "adapter.tensors_sha256": STAGE2_ADAPTER,
    "adapter.base_model_id": "the base model",
    "adapter.base_model_commit": BASE_COMMIT,
    "preflight.dtype": "the number format",
}
"""The models, for the stages that generate and train with them."""

STAGE_TABLE: tuple[StageSpec, ...] = (
    StageSpec(
        "workspace",
        "Workspace",
        "Finds or clones the repository, and checks the free disk space.",
        always_runs=True,
    ),
    StageSpec("toolchain", "Toolchain", "Looks for Python, uv, git, tmux and the GPU driver.", always_runs=True),
    StageSpec(
        "credentials", "Credentials", "Checks the Hugging Face token, and what it may read, before any download."
    ),
    StageSpec(
        "dependencies",
        "Dependencies",
        "Checks the installed packages, and tries the device.",
        always_runs=True,
    ),
    StageSpec("adapter", "Adapter", "Verifies that the Stage 2 adapter is complete, finite and has an effect."),
    StageSpec(
        "preflight",
        "Preflight",
        "Rehearses the run on a small scale, and forecasts time, memory and disk.",
        inputs={"adapter.tensors_sha256": STAGE2_ADAPTER, "adapter.base_model_commit": BASE_COMMIT},
        outputs=("preflight",),
    ),
    StageSpec(
        "pairs",
        "Pairs",
        "Drafts an answer to every prompt, critiques it and revises it.",
        inputs=MODEL_INPUTS,
        outputs=("pairs",),
        keeps_records=True,
    ),
    StageSpec(
        "quality",
        "Quality",
        "Checks every pair, and refuses a set that cannot teach.",
        inputs={"pairs.pairs_sha256": "the pairs", "adapter.base_model_commit": BASE_COMMIT},
        outputs=(layout.PAIRS_REPORT, "dpo_dataset"),
    ),
    StageSpec(
        "training",
        "Training",
        "Trains with DPO against the Stage 2 policy, then compares both on held-out prompts.",
        inputs={"quality.train_sha256": "the training set", "quality.eval_sha256": "the held-out set", **MODEL_INPUTS},
        outputs=(layout.CHECKPOINTS_DIR, layout.ADAPTER_DIR, "evaluation", layout.METRICS_JSON),
        part_outputs={"evaluation": ("evaluation", layout.METRICS_JSON)},
    ),
    StageSpec(
        "packaging",
        "Packaging",
        "Packs the adapter into one archive, with its provenance.",
        inputs={"training.tensors_sha256": "the Stage 3 adapter", "training.verdict": "the verdict"},
    ),
)

STAGES: tuple[str, ...] = tuple(stage.name for stage in STAGE_TABLE)
STAGE: dict[str, StageSpec] = {stage.name: stage for stage in STAGE_TABLE}
