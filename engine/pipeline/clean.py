"""What `clean` may remove from a run folder: nothing that goes into the archive or that the next start needs.

Listing needs no lock. A caller that removes files holds the run's lock, and lists them again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from engine.core import layout
from engine.dpo.training.checkpoints import MANIFEST, CheckpointManifest, by_step, checkpoint_error
from engine.pairs.generation.superseded import CARRIED
from engine.run.folder import Run
from engine.run.listing import FINISHED_STATUSES, is_run
from engine.run.superseded import is_reusable, read_note, superseded_folders
from engine.storage.documents import read_json_or_none
from engine.storage.files import size_of_folder

Kind = Literal["superseded", "checkpoints", "caches"]
KINDS: tuple[Kind, ...] = ("superseded", "checkpoints", "caches")


@dataclass(frozen=True)
class CleanupItem:
    """A file or a folder of the run."""

    path: str
    """Relative to the run folder."""
    kind: Kind
    bytes: int
    why: str
    """What it is or, if it is kept, what needs it."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Cleanup:
    removable: tuple[CleanupItem, ...]
    kept: tuple[CleanupItem, ...]
    """What looks removable but is still needed."""

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.removable)

    def only(self, kinds: Iterable[Kind]) -> Cleanup:
        wanted = set(kinds)
        return Cleanup(*(tuple(p for p in items if p.kind in wanted) for items in (self.removable, self.kept)))


def find_removable(run: Run) -> Cleanup:
    """What can be removed from the run and its trials, and what must stay."""
    trials = trials_of(run)
    found = [*_caches(run, trials)]
    for one in (run, *trials):
        found += [*_superseded(run, one), *_checkpoints(run, one)]
    ordered = sorted(found, key=lambda each: (KINDS.index(each[0].kind), each[0].path))
    return Cleanup(tuple(p for p, goes in ordered if goes), tuple(p for p, goes in ordered if not goes))


def remove(run: Run, items: Iterable[CleanupItem]) -> None:
    """Remove these items. The caller has acquired the run and its trials. Raises OSError."""
    for item in items:
        path = run / item.path
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def trials_of(run: Run) -> list[Run]:
    return [Run(path) for path in sorted((run / layout.TRIALS_DIR).glob("*")) if is_run(path)]


def _is_finished(run: Run, stage: str) -> bool:
    return run.stage(stage).get("status") in FINISHED_STATUSES


def _item(run: Run, path: Path, kind: Kind, why: str) -> CleanupItem:
    size = size_of_folder(path) if path.is_dir() else path.lstat().st_size
    return CleanupItem(path.relative_to(run.folder).as_posix(), kind, size, why)


# -- what was set aside ------------------------------------------------------------------------------------------------


def _superseded(run: Run, one: Run) -> Iterator[tuple[CleanupItem, bool]]:
    for folder in superseded_folders(one.folder):
        needed = _needed_by(one, folder)
        yield (
            _item(run, folder, "superseded", needed or str(read_note(folder).get("why", "")) or "set aside"),
            not needed,
        )


def _needed_by(run: Run, folder: Path) -> str:
    """What needs the folder; empty if nothing does."""
    has_pairs, has_checkpoints = ((folder / name).exists() for name in (layout.PAIRS_JSONL, layout.CHECKPOINTS_DIR))
    if has_pairs and is_reusable(folder) and not _is_finished(run, "pairs"):
        return "stage pairs has not finished, and reuses records from it"
    if has_checkpoints and not _is_finished(run, "training"):
        return "stage training has not finished, and may resume from a checkpoint in it"
    if (folder / layout.EDITS_JSONL).is_file() and _lost_decisions(folder):
        return "it holds decisions that were not carried over to the current pairs"
    return ""


def _lost_decisions(folder: Path) -> bool:
    """Whether some decisions were not carried over to the next set; True if that was never checked."""
    carried = read_json_or_none(folder / CARRIED, dict[str, Any])
    return carried is None or bool(carried.get("not_carried", True))


# -- checkpoints -------------------------------------------------------------------------------------------------------


def _checkpoints(run: Run, one: Run) -> Iterator[tuple[CleanupItem, bool]]:
    """All are kept during training, since the newest may turn out damaged; afterwards only the newest valid one, so that
    a new evaluation needs no training.
    """
    folder = one / layout.CHECKPOINTS_DIR
    for path in sorted([*folder.glob("broken-checkpoint-*"), *folder.glob(".checkpoint-*.part")]):
        yield _item(run, path, "checkpoints", "incomplete: no start resumes from it"), True
    checkpoints = by_step(folder)
    newest = next((path for path in reversed(checkpoints) if _is_valid(path)), None)
    unfinished = not _is_finished(one, "training")
    for path in checkpoints:
        if unfinished or newest is None:
            yield _item(run, path, "checkpoints", "stage training has not finished"), False
        elif path == newest:
            yield _item(run, path, "checkpoints", "the newest: with it, another evaluation needs no training"), False
        else:
            yield _item(run, path, "checkpoints", "training has finished, and there is a newer one"), True


def _is_valid(checkpoint: Path) -> bool:
    manifest = read_json_or_none(checkpoint / MANIFEST, CheckpointManifest)
    return manifest is not None and not checkpoint_error(checkpoint, manifest.fingerprint)


# -- caches ------------------------------------------------------------------------------------------------------------

CACHES = {
    layout.REFERENCE_LOGPS: "log-probabilities of the reference: another training on these pairs would compute them again",
    layout.ANSWERS: "answers of the evaluation: another evaluation would generate them again",
    layout.EXAMS: "results of the judge's exam: another scoring would repeat it",
}


def _caches(run: Run, trials: list[Run]) -> Iterator[tuple[CleanupItem, bool]]:
    unfinished = not _is_finished(run, "training") or not all(_is_finished(trial, "training") for trial in trials)
    for name, why in CACHES.items():
        path = run / layout.CACHE_DIR / name
        if path.is_file():
            yield (
                _item(run, path, "caches", "stage training has not finished, and uses it" if unfinished else why),
                not unfinished,
            )
