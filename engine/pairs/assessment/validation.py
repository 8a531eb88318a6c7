"""`stage3-tui validate`: the quality report and the gate for any pairs file, streamed in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, DataError, DiskError
from engine.core.layout import RELEVANCE_JSONL, SCORES_JSONL
from engine.core.system_errors import system_error
from engine.hub.references import looks_like_hub_id
from engine.pairs.assessment.assess import PairVerdict
from engine.pairs.assessment.export import Export
from engine.pairs.assessment.gate import Tally, damage, failed, figures, gate_error, report
from engine.pairs.assessment.training_set import assessed_pairs
from engine.pairs.data.edits import Edits, edits_path_of, read_edits
from engine.pairs.data.record import Pair
from engine.pairs.formats.containers import NumberedRow
from engine.pairs.formats.reading import RowReader, pairs_of
from engine.pairs.formats.sources import STDIN, hub_rows, rows_of_source
from engine.pairs.relevance.cache import read_relevance, with_measures
from engine.pairs.relevance.measure import ReplyMeasures
from engine.pairs.relevance.pairs import measure_stream
from engine.security.sanitize import visible_line
from engine.storage.jsonl import BadLine, read_jsonl

if TYPE_CHECKING:
    from engine.pairs.relevance.measure import RelevanceMeter

BAD_LINES_KEPT = 100
OnLine = Callable[[PairVerdict | BadLine], None]


@dataclass(frozen=True)
class Validation:
    report: dict[str, Any]
    """Everything except the verdicts, which `on_line` receives one at a time."""
    error: DataError | None
    """Why the file may not train; None if the gate is open."""
    bad_lines: list[BadLine]
    """The first bad lines; `figures.bad_lines` in the report counts all of them."""
    source: str = ""

    @property
    def open(self) -> bool:
        return self.error is None


def validate(
    source: Path,
    config: Stage3Config,
    on_line: OnLine = lambda line: None,
    *,
    export: Path | None = None,
    force: bool = False,
    split: str | None = None,
    meter: RelevanceMeter | None = None,
) -> Validation:
    """Assess every line, together with the `edits.jsonl` and the scores beside the file. Report and skip lines that are not pairs.

    source    a file, a folder, or a dataset on the Hub; `-` is standard input
    split     the split of a folder or a dataset; by default the full folder, or the dataset's train split
    on_line   receives the verdict on every pair, and every bad line, in order
    export    where to write the training set in TRL's format, if the gate is open
    force     allow `export` to replace a file
    meter     measures the relevance of pairs that have none yet

    Raises ConfigError if the file is missing or empty, DataError for a KTO file, DiskError, and the Hub's errors.
    """
    sidecar = SidecarFiles.of(source)
    lines = _Lines(RowReader.of(config), sidecar, on_line)
    inputs = (source, sidecar.edits_path, sidecar.scores_path)
    with open_rows(source, split) as rows, Export(export, inputs, force=force) if export else nullcontext() as out:
        made = measure_stream(lines.pairs(rows), meter, sidecar.measures) if meter else lines.pairs(rows)
        _assess(made, sidecar, lines.tally, on_line, out)
        if lines.tally.made + lines.tally.bad_lines == 0:
            raise ConfigError(f"{_name(source)} is empty.", "", "Pass a file with one pair per row.")
        data = report(lines.tally, config)
        if out is not None and data["gate"]["open"]:
            out.keep()
    data["bad_lines"] = [asdict(bad) for bad in lines.bad]
    data["people"] |= sidecar.as_dict(lines.decided)
    data["scored_by"] = sidecar.judge
    data["export"] = None if out is None else _export_report(out, written=data["gate"]["open"])
    return Validation(data, _gate_error(lines.tally, config, data, sidecar, source), lines.bad, _name(source))


class _Lines:
    """The pairs among the rows of a file. Counts bad lines, and records which pairs a person decided about."""

    def __init__(self, reading: RowReader, sidecar: SidecarFiles, on_line: OnLine) -> None:
        self._reading, self._sidecar, self._on_line = reading, sidecar, on_line
        self.tally = Tally(bad_edits=len(sidecar.edits.damaged))
        self.bad: list[BadLine] = []
        """The first bad lines."""
        self.decided: set[str] = set()

    def pairs(self, rows: Iterator[NumberedRow]) -> Iterator[tuple[int, Pair]]:
        for line, pair in pairs_of(rows, self._reading):
            if isinstance(pair, BadLine):
                self._note(pair)
                continue
            if pair.id in self._sidecar.edits:
                self.decided.add(pair.id)
            yield line, with_measures(pair, self._sidecar.measures)

    def _note(self, bad: BadLine) -> None:
        self.tally.bad_lines += 1
        if len(self.bad) < BAD_LINES_KEPT:
            self.bad.append(bad)
        self._on_line(bad)


def _assess(
    pairs: Iterator[tuple[int, Pair]], sidecar: SidecarFiles, tally: Tally, on_line: OnLine, out: Export | None
) -> None:
    """Count each pair, report its verdict, and export the usable ones."""
    for judged in assessed_pairs(pairs, sidecar.edits, tally, sidecar.annotated):
        on_line(judged.verdict)
        if out is not None and judged.verdict.usable:
            out.add(judged.pair)


def _export_report(out: Export, *, written: bool) -> dict[str, Any]:
    return {"path": str(out.path), "pairs": out.pairs if written else 0, "written": written}


def _gate_error(
    tally: Tally, config: Stage3Config, data: dict[str, Any], sidecar: SidecarFiles, source: Path
) -> DataError | None:
    """The gate's error, together with what --accept-quality does not cover: damaged lines here or in the edits."""
    if data["gate"]["open"]:
        return None
    if not tally.made:
        return _no_pair_error(tally.bad_lines, data["bad_lines"][0], source)
    shut = failed(figures(tally, config))
    parts = [(error.what, error.why, error.what_to_do) for error in ([gate_error(shut)] if shut else [])]
    if "bad_lines" in damage(tally, config):
        parts.append(
            (
                _bad_lines_sentence(tally.bad_lines, source),
                "Their content is lost, or never was a pair.",
                "Fix or remove the lines listed above, set how the rows are read with --form or --columns, or allow a "
                "share of bad rows with --max-bad-rows.",
            )
        )
    if tally.bad_edits:
        first = sidecar.edits.damaged[0]
        what = f"Line {first.line + 1} of {sidecar.edits_path} is damaged: {first.reason}"
        more = f", and {tally.bad_edits - 1} more" if tally.bad_edits > 1 else ""
        parts.append((f"{what}{more}.", "It may hold a decision that would be lost.", "Fix or remove it."))
    if not tally.training and not tally.bad_lines:
        parts.append(("", "Nothing is left to train on.", ""))
    whats, whys, remedies = (" ".join(filter(None, column)) for column in zip(*parts, strict=True))
    return DataError(whats, whys, remedies)


def _bad_lines_sentence(count: int, source: Path) -> str:
    if count == 1:
        return f"One line of {_name(source)} is not a pair."
    return f"{count:,} lines of {_name(source)} are not pairs."


def _no_pair_error(rows: int, first: dict[str, Any], source: Path) -> DataError:
    return DataError(
        f"None of the {rows:,} rows of {_name(source)} is a pair.",
        visible_line(f"Row {first['line'] + 1}: {first['reason']}.", 600),
        "Set how the rows are read with --columns prompt=…,chosen=…,rejected=… or --form NAME (`stage3-tui validate --help` "
        "lists the forms), or pass another file.",
    )


# -- sidecar files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SidecarFiles:
    """People's decisions and a judge's scores, from the files beside the pairs."""

    edits_path: Path
    edits: Edits
    scores_path: Path
    judge: str | None
    """The judge whose scores count: the last one in the file."""
    scored: Callable[[Pair], Pair]
    measures: dict[str, ReplyMeasures]
    """The relevance that stage quality measured, by key."""

    @classmethod
    def of(cls, source: Path) -> SidecarFiles:
        edits_path = edits_path_of(source).resolve()
        scores_path = source.parent / Path(SCORES_JSONL).name
        if source == STDIN:  # a pipe has no sidecar files
            return cls(edits_path, Edits({}), scores_path, None, lambda pair: pair, {})
        judge = _last_judge(scores_path)
        scored = (lambda pair: pair) if judge is None else _with_scores_of(judge, scores_path)
        measures = read_relevance(source.parent / Path(RELEVANCE_JSONL).name)
        return cls(edits_path, read_edits(edits_path), scores_path, judge, scored, measures)

    def annotated(self, pair: Pair) -> Pair:
        """The edited pair with its scores and its relevance."""
        return with_measures(self.scored(pair), self.measures)

    def as_dict(self, decided: set[str]) -> dict[str, Any]:
        """For the report: pairs decided about, decisions about pairs that are not here, and damage."""
        return {
            "decided": len(decided),
            "not_here": len(self.edits) - len(decided),
            "damaged": [asdict(bad) for bad in self.edits.damaged[:BAD_LINES_KEPT]],
            "torn": self.edits.torn,
        }


def _last_judge(path: Path) -> str | None:
    judge = None
    if path.exists():
        for _, row in read_jsonl(path):
            if isinstance(row, dict) and isinstance(row.get("judge"), str):
                judge = row["judge"]
    return judge


def _with_scores_of(judge: str, path: Path) -> Callable[[Pair], Pair]:
    """A function that sets a pair's scores to the judge's; to None if its texts have changed since."""
    from engine.pairs.judges.base import ScorePair
    from engine.pairs.judges.scores import comparison_of, key_of, read_scores

    known, _ = read_scores(path, judge)
    none = ScorePair(None, None)

    def scored(pair: Pair) -> Pair:
        scores = known.get(key_of(comparison_of(pair)), none)
        return replace(pair, base_score=scores.first, revised_score=scores.second)

    return scored


# -- opening ----------------------------------------------------------------------------------------------------------


@contextmanager
def open_rows(source: Path, split: str | None = None) -> Iterator[Iterator[NumberedRow]]:
    """The rows of the source. Raises ConfigError if it cannot be opened, DiskError if reading fails."""
    advice = "Pass a file with one pair per row (JSONL, JSON, CSV, Parquet, …), or a dataset on the Hub (owner/name)."
    try:
        if source.is_dir() and (run := _advice_for_folder(source)):
            raise ConfigError(f"{source} is a run folder.", "", run)
        if source != STDIN and looks_like_hub_id(str(source)):
            yield hub_rows(str(source), split or "train", "main", None)
        else:
            yield rows_of_source(source, split)
    except FileNotFoundError:
        raise ConfigError(f"The pairs file {source} does not exist.", "", advice) from None
    except PermissionError as error:
        raise ConfigError(f"Cannot read {source}.", str(error.strerror), advice) from None
    except OSError as error:
        what = f"Cannot read {_name(source)}."
        raise system_error(error, what) or DiskError(
            what, str(error), "Download it again, or pass another file."
        ) from error


def _advice_for_folder(folder: Path) -> str:
    """Point to the pairs file inside, if this is a run folder or looks like one."""
    pairs = next((path for name in ("pairs/pairs.jsonl", "pairs.jsonl") if (path := folder / name).is_file()), None)
    return f"Did you mean {pairs}?" if pairs else ""


def _name(source: Path) -> str:
    return "standard input" if source == STDIN else str(source)
