"""The methods of generating pairs: each turns a batch of prompts into records."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError
from engine.core.events import Event
from engine.models.backend import Backend
from engine.pairs.data.record import PairRecord
from engine.pairs.generation import best_of_n, contrast, critique_revision
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.settings import GenerationSettings
from engine.pairs.judges.base import Judge
from engine.pairs.principles.constitution import load_constitution
from engine.run.stop import StopToken

MakeRecords = Callable[[Sequence[Prompt]], Generator[str, None, list[PairRecord]]]
"""Returns the records of one batch, in the order of its prompts. Yields each step as it begins: "24 drafts".

Every random draw has its own seed, made from the run's seed, the prompt's id, the step and the attempt, so a run that was
killed and restarted makes the same records."""


Batch = Sequence[Prompt]
MadeBatch = list[tuple[Prompt, PairRecord]]
MakeBatches = Callable[[Sequence[Batch]], Iterator[Event | str | MadeBatch]]
"""Makes the records of batches, in order. Between batches it yields events, and each step as it begins."""


def sequentially(make: MakeRecords) -> MakeBatches:
    """Make one batch after another, in this process."""

    def make_batches(batches: Sequence[Batch]) -> Iterator[Event | str | MadeBatch]:
        for batch in batches:
            made = yield from make(batch)
            yield list(zip(batch, made, strict=True))

    return make_batches


def needs_judge(config: Stage3Config) -> bool:
    """Whether the method needs a judge to generate pairs."""
    return config.method == "best-of-n" and config.pairs is None


def is_generated_locally(config: Stage3Config, judge: str = "none") -> bool:
    """Whether models on this machine generate the pairs, without any server.

    judge   the judge that ranks drafts; "none" if the method needs none
    """
    return config.server_url is None and config.critic_url is None and judge != "server"


def check_method(config: Stage3Config) -> None:
    """Raise ConfigError if the method lacks what it needs, before anything is loaded."""
    if config.method == "contrast" and config.pairs is None:
        _check_personas(config)
    if not needs_judge(config):
        return
    if config.judge == "none":
        raise ConfigError(
            "--method best-of-n needs a judge, and --judge is none.",
            "Nothing would decide which draft is best.",
            "Set --judge to self, reward-model or server, or use --method contrast, which needs no judge.",
        )
    if config.temperature == 0:
        raise ConfigError(
            "--method best-of-n cannot rank identical drafts.",
            "At --temperature 0 every draft is the same.",
            "Set --temperature to 0.7 or more, or use another --method.",
        )


def _check_personas(config: Stage3Config) -> None:
    constitution = load_constitution(config.constitution)
    if any(principle.is_critique_request_only for principle in constitution.principles):
        raise ConfigError(
            f"--method contrast needs principles, but {constitution.source} has only requests for critiques and revisions.",
            "A contrast answers as an assistant that follows a principle; a request for a critique is not a principle.",
            "Write `principles:` with {id, text}, ideally also persona and opposite, or use --method critique-revision.",
        )


def record_maker(backend: Backend, settings: GenerationSettings, judge: Judge | None, stop: StopToken) -> MakeRecords:
    """The record maker of `settings.method`. `judge` may be None if the method needs no judge."""
    match settings.method:
        case "contrast":
            return lambda prompts: contrast.make_records(prompts, backend, settings)
        case "best-of-n":
            if judge is None:
                raise ValueError("best-of-n needs a judge")
            return lambda prompts: best_of_n.make_records(prompts, backend, settings, judge, stop)
        case _:
            return lambda prompts: critique_revision.make_records(prompts, backend, settings)
