"""The ten stages, in order (a contract): what each is, which results it builds on, and which files it leaves.

Imports nothing heavy: the command line reads it.
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
    """The results of earlier stages that its own result depends on: `stage.field`, and what that is called."""
    outputs: tuple[str, ...] = ()
    """Its files in the run folder: set aside before they are made again."""
    part_outputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of these outputs, the ones to set aside where only options of one part of the stage have changed. A part is named
    in `changes` of the options (`engine.core.config`)."""
    keeps_records: bool = False
    """Its records are kept by what made them, so the stage itself decides which of them still hold; the pipeline sets its
    files aside for `--from` alone."""
    every_time: bool = False
    """Looks at what changes by itself (free disk, a driver), in moments: never reused."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names by which options say that they change this stage's result."""
        return (self.name, *self.part_outputs)


STAGE2_ADAPTER, BASE_COMMIT = "the Stage 2 adapter", "the base model's commit"
MODELS = {
    "adapter.tensors_sha256": STAGE2_ADAPTER,
    "adapter.base_model_id": "the base model",
    "adapter.base_model_commit": BASE_COMMIT,
    "preflight.dtype": "the number format",
}
"""What writes texts and learns."""

STAGE_TABLE: tuple[StageSpec, ...] = (
    StageSpec(
        "workspace",
        "Workspace",
        "Finds or clones the repository and makes sure that the disk has room.",
        every_time=True,
    ),
    StageSpec("toolchain", "Toolchain", "Looks for Python, uv, git, tmux and the GPU driver.", every_time=True),
    StageSpec(
        "credentials", "Credentials", "Checks the Hugging Face token, and what it may read, before any download."
    ),
    StageSpec(
        "dependencies",
        "Dependencies",
        "Compares installed packages with what the run needs, and tries the device.",
        every_time=True,
    ),
    StageSpec("adapter", "Adapter", "Verifies the Stage 2 adapter: complete, finite, and with an effect."),
    StageSpec(
        "preflight",
        "Preflight",
        "Does the long run in small and forecasts time, memory and disk.",
        inputs={"adapter.tensors_sha256": STAGE2_ADAPTER, "adapter.base_model_commit": BASE_COMMIT},
        outputs=("preflight",),
    ),
    StageSpec(
        "pairs",
        "Pairs",
        "Drafts, criticises and revises an answer to every prompt.",
        inputs=MODELS,
        outputs=("pairs",),
        keeps_records=True,
    ),
    StageSpec(
        "quality",
        "Quality",
        "Judges every pair, and refuses a set that cannot teach.",
        inputs={"pairs.pairs_sha256": "the pairs", "adapter.base_model_commit": BASE_COMMIT},
        outputs=(layout.PAIRS_REPORT, "dpo_dataset"),
    ),
    StageSpec(
        "training",
        "Training",
        "Trains with DPO against the Stage 2 policy, then compares the two on held-out prompts.",
        inputs={"quality.train_sha256": "the training set", "quality.eval_sha256": "the held-out set", **MODELS},
        outputs=(layout.CHECKPOINTS_DIR, layout.ADAPTER_DIR, "evaluation", layout.METRICS_JSON),
        part_outputs={"evaluation": ("evaluation", layout.METRICS_JSON)},
    ),
    StageSpec(
        "packaging",
        "Packaging",
        "Packs the adapter, and all that tells where it came from, into one archive.",
        inputs={"training.tensors_sha256": "the Stage 3 adapter", "training.verdict": "the verdict"},
    ),
)

STAGES: tuple[str, ...] = tuple(stage.name for stage in STAGE_TABLE)
STAGE: dict[str, StageSpec] = {stage.name: stage for stage in STAGE_TABLE}
