"""The ten stages and their order (a contract). Imports nothing heavy: the command line reads it."""

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
