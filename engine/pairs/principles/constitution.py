"""The constitution: principles, each with a request for a critique and a request for a revision.

Bai et al. 2022, "Constitutional AI: Harmlessness from AI Feedback", section 3.1 and appendix C.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from engine.core.errors import ConfigError
from engine.core.reading import read_yaml

DEFAULT_PATH = Path(__file__).with_name("constitution.yaml")

CRITIQUE_OF_TEXT = (
    "Look at your last answer in the light of this principle: {text} Name what in the answer goes against it, and why."
)
REVISION_OF_TEXT = (
    "Rewrite your answer to my question so that it follows this principle: {text} "
    "Give only the new answer, addressed to me, without speaking about the old one."
)
OPPOSITE_OF_TEXT = "Do the opposite of what this principle asks for: {text}"


@dataclass(frozen=True)
class Principle:
    id: str
    text: str
    critique_request: str
    revision_request: str
    weight: float = 1.0
    """How often it is drawn, relative to the others."""
    persona: str = ""
    """For --method contrast: the system message of an assistant that follows the principle; `text` by default."""
    opposite: str = ""
    """The same for an assistant that does the opposite; derived from `text` if missing."""

    @property
    def is_critique_request_only(self) -> bool:
        """Whether it says only how to criticize an answer (Anthropic's JSON), not what an answer should be."""
        return self.text == self.critique_request and not self.persona

    @property
    def chosen_system(self) -> str:
        """The system message for the chosen answer of --method contrast."""
        return self.persona or self.text

    @property
    def rejected_system(self) -> str:
        """The system message for the rejected answer of --method contrast."""
        return self.opposite or OPPOSITE_OF_TEXT.format(text=self.text)


@dataclass(frozen=True)
class Constitution:
    principles: tuple[Principle, ...]
    source: str
    """The file that it was read from, for the report."""

    def draw(self, random: Random, *, avoid: tuple[str, ...] = ()) -> Principle:
        """Draw a principle by weight; one in `avoid` only if there is no other."""
        candidates = [p for p in self.principles if p.id not in avoid] or list(self.principles)
        return random.choices(candidates, weights=[p.weight for p in candidates])[0]


def load_constitution(path: Path | None) -> Constitution:
    """Read a constitution; None loads the default one. Three formats are accepted:

    ours          `principles: [{id, text, critique_request, revision_request, weight, persona, opposite}]`
    the notebook  `categories: [{principles: [{id, text}]}]`, as a list or a mapping
    Anthropic     `{name: {"prompt": [request], "edit_request": request}}`

    Raises ConfigError if the file cannot be read or has no principles.
    """
    path = path or DEFAULT_PATH
    try:
        data = read_yaml(path)  # JSON is YAML
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Cannot read the constitution {path}.", str(error), "Pass another file with --constitution."
        ) from error
    try:
        principles = tuple(_principles(data))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"The constitution {path} has an unknown format.",
            f"Parsing it failed with {error!r}.",
            "Write `principles:` with a list of {id, text}; critique_request, revision_request, persona and opposite are optional.",
        ) from error
    if not principles:
        raise ConfigError(f"The constitution {path} has no principles.", "", "Add one under `principles:`.")
    duplicates = {p.id for p in principles if [q.id for q in principles].count(p.id) > 1}
    if duplicates:
        raise ConfigError(
            f"The constitution {path} has the id {sorted(duplicates)[0]!r} twice.",
            "The report refers to principles by id.",
            "Give each principle a unique id.",
        )
    return Constitution(principles, str(path))


def _principles(data: Any) -> list[Principle]:
    if "principles" in data:
        return [_principle(entry) for entry in data["principles"]]
    if "categories" in data:
        categories = data["categories"]
        groups = categories.values() if isinstance(categories, dict) else categories
        entries = [entry for group in groups for entry in (group["principles"] if isinstance(group, dict) else group)]
        return [_principle(entry) for entry in entries]
    return [_anthropic(name, entry) for name, entry in data.items()]


def _principle(entry: dict[str, Any]) -> Principle:
    text = str(entry["text"]).strip()
    return Principle(
        id=str(entry["id"]),
        text=text,
        critique_request=str(entry.get("critique_request") or CRITIQUE_OF_TEXT.format(text=text)).strip(),
        revision_request=str(entry.get("revision_request") or REVISION_OF_TEXT.format(text=text)).strip(),
        weight=float(entry.get("weight", 1.0)),
        persona=str(entry.get("persona") or "").strip(),
        opposite=str(entry.get("opposite") or "").strip(),
    )


def _anthropic(name: str, entry: dict[str, Any]) -> Principle:
    critique = "".join(entry["prompt"]).replace("CritiqueRequest:", "").strip()
    revision = entry["edit_request"].replace("RevisionRequest:", "").strip()
    return Principle(id=name, text=critique, critique_request=critique, revision_request=revision)
