"""Worked examples of critique and revision, inserted before each critique (Bai et al. 2022, section 3.1: "few-shot")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.core.errors import ConfigError
from engine.core.reading import read_yaml
from engine.models.chat import Conversation

TURNS = (
    ("user", "prompt"),
    ("assistant", "response"),
    ("user", "critique_request"),
    ("assistant", "critique"),
    ("user", "revision_request"),
    ("assistant", "revision"),
)
"""(role, key) of the messages of one example."""


def load_few_shot(path: Path | None) -> Conversation:
    """The examples of a YAML file as one conversation, in the same format as the critique that follows.

    The file has `examples:` with a list of {prompt, response, critique_request, critique, revision_request, revision}.
    None means no examples. Raises ConfigError, with the example and the key, if the file has another format.
    """
    if path is None:
        return []
    try:
        data = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Cannot read the examples {path}.", str(error), "Pass another file with --few-shot."
        ) from error
    examples = data.get("examples") if isinstance(data, dict) else None
    if not isinstance(examples, list) or not examples:
        raise _format_error(path, "It has no list under `examples:`.")
    return [message for number, example in enumerate(examples, 1) for message in _dialogue(path, number, example)]


def _dialogue(path: Path, number: int, example: Any) -> Conversation:
    if not isinstance(example, dict):
        raise _format_error(path, f"Example {number} is not a mapping.")
    turns: Conversation = []
    for role, key in TURNS:
        text = example.get(key)
        if not isinstance(text, str) or not text.strip():
            raise _format_error(path, f"Example {number} has no text under {key!r}.")
        turns.append({"role": role, "content": text.strip()})
    return turns


def _format_error(path: Path, why: str) -> ConfigError:
    keys = ", ".join(key for _, key in TURNS)
    return ConfigError(f"The examples {path} have an unknown format.", why, f"Each example needs {keys}.")
