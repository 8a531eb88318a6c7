"""The result that each stage records in `run.json` for later stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar


@dataclass(frozen=True)
class StageResult:
    """Base class of all results. Unknown fields are dropped on reading (a newer version wrote them)."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Result = TypeVar("Result", bound=StageResult)


def read_result(cls: type[Result], record: Mapping[str, Any]) -> Result | None:
    """The result in a record of `run.json`; None if there is none or if it is incomplete."""
    if not record:
        return None
    known = {f.name for f in fields(cls)}
    try:
        return cls(**{name: value for name, value in record.items() if name in known})
    except TypeError:
        return None


@dataclass(frozen=True)
class WorkspaceResult(StageResult):
    folder: str
    commit: str | None = None
    """None if the folder is not a git checkout."""
    dirty: bool | None = None
    """Whether tracked files differ from the commit; None if unknown."""
    free_bytes: int = 0
    url: str | None = None
    ref: str | None = None
    fresh: bool = False


@dataclass(frozen=True)
class ToolchainResult(StageResult):
    """The versions of the tools; None for a missing one."""

    python: str
    uv: str | None
    git: str | None
    tmux: str | None
    driver: str | None
    ends_at_logout: bool
    executable: str
    torch: Mapping[str, Any] | None


@dataclass(frozen=True)
class CredentialsResult(StageResult):
    account: str | None = None
    role: str | None = None
    source: str | None = None
    """Where the token came from."""
    offline: bool = False
    reads: tuple[str, ...] = ()
    commits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For each thing that is read (base_model, adapter, …): `repo`, `commit`, and the `revisions` that resolved to it."""


@dataclass(frozen=True)
class DependenciesResult(StageResult):
    environment: Mapping[str, Any]
    """The versions and settings that the probe depends on, and that the run was computed with."""
    probe: Mapping[str, Any]


@dataclass(frozen=True)
class AdapterResult(StageResult):
    """The Stage 2 adapter and its base model."""

    tensors_sha256: str
    base_model_id: str = ""
    base_model_commit: str | None = None
    """The commit on the Hub; None for a local folder."""
    folder: str = ""
    adapter_id: str | None = None
    adapter_revision: str | None = None
    adapter_commit: str | None = None
    adapter_sha256: str = ""
    rank: int = 0
    alpha: float = 0.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    variant: str = ""
    target_modules: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    trainable_parameters: int = 0
    bytes: int = 0
    named_base: str | None = None
    base_parameters: int = 0
    effect: float = 0.0
    """The largest change of a logit when the adapter is switched on."""


@dataclass(frozen=True)
class PreflightResult(StageResult):
    dtype: str
    """The chosen number format: bfloat16, float16 or float32."""
    forecast: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes at the peak of training, by term of the forecast's formula."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    date: str = ""
    """The date of the run's first preflight, which chat templates use as today's date throughout the run."""


@dataclass(frozen=True)
class PairsResult(StageResult):
    pairs_sha256: str
    records: int = 0
    ok: int = 0
    taken_over: int = 0
    """Records reused from an earlier start or a superseded set."""
    generated_tokens: int = 0
    imported: Mapping[str, Any] | None = None
    """The source of imported pairs: `name`, `sha256`, `rows`, `bad_rows`; None if the run made its own."""
    split: str = ""
    """The rows of the dataset that the prompts are from; empty in older runs and for imported pairs."""


@dataclass(frozen=True)
class QualityResult(StageResult):
    train_sha256: str
    eval_sha256: str
    train: int = 0
    held_out: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    accepted_for: str | None = None
    edits_bytes: int | None = None
    """How many bytes of `pairs/edits.jsonl` the stage read: later decisions count for the next run. None in older runs."""
    judge: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class TrainingResult(StageResult):
    tensors_sha256: str
    adapter_sha256: str = ""
    steps: int = 0
    final_loss: float = 0.0
    verdict: str = ""
    effect: float = 0.0
    plan: Mapping[str, Any] = field(default_factory=dict)
    memory_ran_out: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class PackagingResult(StageResult):
    archive: str = ""
    sha256: str = ""
    bytes: int = 0
    files: int = 0
    contents: tuple[tuple[str, int], ...] = ()
    scp: str = ""
    check: str = ""
    unzip: str = ""
    load: tuple[str, ...] = ()
    pushed: Mapping[str, Any] | None = None


RESULTS: Mapping[str, type[StageResult]] = {
    "workspace": WorkspaceResult,
    "toolchain": ToolchainResult,
    "credentials": CredentialsResult,
    "dependencies": DependenciesResult,
    "adapter": AdapterResult,
    "preflight": PreflightResult,
    "pairs": PairsResult,
    "quality": QualityResult,
    "training": TrainingResult,
    "packaging": PackagingResult,
}
"""The class of each stage's result."""


class Results:
    """The recorded results of a run, typed; None for a stage without one."""

    def __init__(self, recorded: Mapping[str, Mapping[str, Any]]) -> None:
        self._recorded = recorded

    def _read(self, stage: str, cls: type[Result]) -> Result | None:
        return read_result(cls, self._recorded.get(stage, {}).get("result") or {})

    @property
    def workspace(self) -> WorkspaceResult | None:
        return self._read("workspace", WorkspaceResult)

    @property
    def credentials(self) -> CredentialsResult | None:
        return self._read("credentials", CredentialsResult)

    @property
    def dependencies(self) -> DependenciesResult | None:
        return self._read("dependencies", DependenciesResult)

    @property
    def adapter(self) -> AdapterResult | None:
        return self._read("adapter", AdapterResult)

    @property
    def preflight(self) -> PreflightResult | None:
        return self._read("preflight", PreflightResult)

    @property
    def pairs(self) -> PairsResult | None:
        return self._read("pairs", PairsResult)

    @property
    def quality(self) -> QualityResult | None:
        return self._read("quality", QualityResult)

    @property
    def training(self) -> TrainingResult | None:
        return self._read("training", TrainingResult)

    @property
    def packaging(self) -> PackagingResult | None:
        return self._read("packaging", PackagingResult)
