"""Fit the weights in `engine/pairs/detectors/meta.json`.

    python bench/fit_detectors.py ../shared/data/gemma-2b-it-pairs.jsonl \\
        --labels ../shared/data/gemma-2b-it-pairs.labels.jsonl \\
        --replies ../shared/data/hh-rlhf-harmless-base-test.jsonl.gz [--write]

There are four kinds of training text: labelled revisions, `meta` against `answer` (410 labels are our own, in
`more_labels.jsonl`); the drafts of the same lines, which are answers; the replies that people preferred in hh-rlhf, so
that other models' answers are recognised; and texts of our own (`own_replies.jsonl`): talk about an answer in other
words than Gemma's, and answers about writing, asking and judging, which use the words of such talk. Borderline lines
are judged but not trained on. A line's draft and revision are always in the same fold.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # `bench` is not part of the installed package

import torch

from engine.pairs.detectors.candidate import Candidate
from engine.pairs.detectors.malformed import is_leak
from engine.pairs.detectors.meta import SHARPNESS, WEIGHTS_FILE, Term, Weights, terms_of

OWN_REPLIES = Path(__file__).with_name("own_replies.jsonl")

MORE_LABELS = Path(__file__).with_name("more_labels.jsonl")
"""Labels made like those in ../shared/data, for other lines of the same pairs: line, kind, whether it is borderline."""
LABELLED_PAIRS = "dcbe3fe07f593ee7311c076b1f18533c25349c72c8a937295f2a1154f0d0f4e9"
"""SHA-256 of the pairs file that they label."""

BORDERLINE = frozenset({173, 344, 43, 599, 199, 1233, 418, 210, 1256, 1169})
"""The borderline lines among the 300 labels, from their README; later label files mark each line."""

DRAFT_WEIGHT = 0.2
REPLY_WEIGHT = 0.3
OWN_WEIGHT = 1.0
L2 = 0.5
L2_BELOW_ZERO = 10.0
"""Keeps negative weights small: evidence for a reply must not outweigh evidence against it."""
THRESHOLD = -1.0
MIN_TEXTS = 4
"""Terms that occur in fewer texts are ignored; texts of hh-rlhf do not count."""
MAX_TERMS = 400


class Labelled(NamedTuple):
    line: int
    kind: str
    borderline: bool
    prompt: str
    draft: str
    revision: str

    @property
    def unusable(self) -> bool:
        return self.kind != "answer"


class Example(NamedTuple):
    terms: list[set[Term]]
    meta: bool
    weight: float


def read_labelled(pairs: Path, label_files: Sequence[Path]) -> list[Labelled]:
    """Every labelled line, including identical ones; if a line is labelled twice, the last file wins."""
    rows = [json.loads(line) for line in pairs.open(encoding="utf-8")]
    found: dict[int, Labelled] = {}
    for file in label_files:
        for text in file.open(encoding="utf-8"):
            label = json.loads(text)
            row = rows[label["line"]]
            borderline = bool(label.get("borderline", label["line"] in BORDERLINE))
            texts = (row["prompt"], row["base_response"], row["revised_response"])
            found[label["line"]] = Labelled(label["line"], label["kind"], borderline, *texts)
    return [found[line] for line in sorted(found)]


def more_labels(pairs: Path) -> list[Path]:
    """Our own labels, if `pairs` is the file that they label."""
    return [MORE_LABELS] if sha256(pairs.read_bytes()).hexdigest() == LABELLED_PAIRS else []


def read_replies(path: Path) -> Iterator[tuple[str, str]]:
    """(last user turn, preferred reply) of hh-rlhf."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            before, reply = json.loads(line)["chosen"].rsplit("\n\nAssistant:", 1)
            yield before.rsplit("\n\nHuman:", 1)[-1].strip(), reply.strip()


def examples_of(labelled: Sequence[Labelled]) -> dict[int, list[Example]]:
    """The training examples of each line."""
    found: dict[int, list[Example]] = {}
    for one in labelled:
        found[one.line] = [Example(terms_of(Candidate(one.prompt, None, one.draft)), False, DRAFT_WEIGHT)]
        if one.kind in ("meta", "answer") and not one.borderline:
            terms = terms_of(Candidate(one.prompt, one.draft, one.revision))
            found[one.line].append(Example(terms, one.kind == "meta", 1.0))
    return found


def examples_of_replies(replies: Iterator[tuple[str, str]]) -> list[Example]:
    """The training examples of every fold: preferred replies, and our own texts."""
    own = [json.loads(line) for line in OWN_REPLIES.open(encoding="utf-8")]
    return [Example(terms_of(Candidate(row["prompt"], None, row["reply"])), row["meta"], OWN_WEIGHT) for row in own] + [
        Example(terms_of(Candidate(prompt, None, reply)), False, REPLY_WEIGHT)
        for prompt, reply in replies
        if reply and not is_leak(Candidate(prompt, None, reply))
    ]


def fit(lines: Sequence[Example], replies: Sequence[Example] = ()) -> Weights:
    """Logistic regression of meta on the soft maximum over sentences (L-BFGS, L2), reduced to the most important terms."""
    counted = [*lines, *(example for example in replies if example.weight == OWN_WEIGHT)]
    texts = Counter(term for example in counted for term in set().union(*example.terms))
    names = sorted((term for term, count in texts.items() if count >= MIN_TEXTS), key=str)
    constant, values = _solve(names, [*lines, *replies])
    if len(names) > MAX_TERMS:
        heaviest = sorted(zip(names, values, strict=True), key=lambda one: -abs(one[1]) * texts[one[0]] ** 0.5)
        names = sorted((name for name, _ in heaviest[:MAX_TERMS]), key=str)
        constant, values = _solve(names, [*lines, *replies])
    return Weights(constant, dict(zip(names, values, strict=True)), THRESHOLD)


def _solve(names: Sequence[Term], examples: Sequence[Example]) -> tuple[float, list[float]]:
    column = {name: number for number, name in enumerate(names)}
    examples = [example for example in examples if example.terms]
    sentences = [(owner, terms) for owner, example in enumerate(examples) for terms in example.terms]
    entries = [(row, column[t]) for row, (_, terms) in enumerate(sentences) for t in terms if t in column]
    rows, columns = torch.tensor(entries).T
    owner = torch.tensor([owner for owner, _ in sentences])
    sign = torch.tensor([1.0 if example.meta else -1.0 for example in examples], dtype=torch.float64)
    weight = torch.tensor([example.weight for example in examples], dtype=torch.float64)
    values = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)
    constant = torch.full((1,), -2.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([values, constant], max_iter=100, history_size=8, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = torch.zeros(len(sentences), dtype=torch.float64).index_add(0, rows, values[columns]) + constant
        start = torch.full((len(examples),), float("-inf"), dtype=torch.float64)
        highest = start.scatter_reduce(0, owner, scores.detach(), "amax")
        sums = torch.zeros_like(highest).index_add(0, owner, torch.exp(SHARPNESS * (scores - highest[owner])))
        log_odds = highest + torch.log(sums) / SHARPNESS
        cost = (weight * torch.nn.functional.softplus(-sign * log_odds)).sum()
        cost = cost + L2 / 2 * (torch.where(values < 0, L2_BELOW_ZERO, 1.0) * values.square()).sum()
        cost.backward()
        return cost

    optimizer.step(loss)
    return constant.item(), values.tolist()


def folds(items: Sequence[Any], count: int, seed: int) -> list[list[Any]]:
    shuffled = list(items)
    Random(seed).shuffle(shuffled)
    return [shuffled[start::count] for start in range(count)]


def cross_validated(
    labelled: Sequence[Labelled], replies: Sequence[Example], count: int = 10, seed: int = 0
) -> Iterator[tuple[Weights, list[Labelled]]]:
    """For each fold: weights that never saw its lines, and its lines."""
    examples = examples_of(labelled)
    for fold in folds(labelled, count, seed):
        held_out = {one.line for one in fold}
        yield fit([e for line, es in examples.items() if line not in held_out for e in es], replies), fold


def as_json(weights: Weights, about: Mapping[str, Any]) -> str:
    """The weights as readable JSON: heaviest first, with three digits."""
    ordered = sorted(weights.terms.items(), key=lambda one: -one[1])
    terms = {term if isinstance(term, str) else " ".join(term): round(value, 3) for term, value in ordered}
    content = {**about, "constant": round(weights.constant, 3), "threshold": weights.threshold, "terms": terms}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--labels", type=Path, action="append", required=True)
    parser.add_argument("--replies", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help=f"write {WEIGHTS_FILE.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    labelled = read_labelled(options.pairs, [*more_labels(options.pairs), *options.labels])
    training = [example for examples in examples_of(labelled).values() for example in examples]
    weights = fit(training, examples_of_replies(read_replies(options.replies)))
    print(f"{len(labelled)} labelled lines, {len(weights.terms)} terms, constant {weights.constant:.3f}")
    if options.write:
        made_by = (
            "bench/fit_detectors.py gemma-2b-it-pairs.jsonl --labels gemma-2b-it-pairs.labels.jsonl --replies hh-rlhf-…"
        )
        about = {"made_by": made_by, "labelled_lines": len(labelled)}
        WEIGHTS_FILE.write_text(as_json(weights, about), encoding="utf-8")
        print(f"written: {WEIGHTS_FILE}")


if __name__ == "__main__":
    main()
