"""Remove machine-specific information from each packed file, by kind of file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from engine.core import layout
from engine.core.errors import DamagedState
from engine.core.layout import ADAPTER_CONFIG
from engine.core.stage_table import STAGES
from engine.hub.references import is_local, local_path
from engine.packaging.contents import CHAT_TEMPLATE, MODEL_CARD, TOKENIZER, TOKENIZER_CONFIG
from engine.packaging.scrubber import Scrubber, map_strings
from engine.run.folder import Run
from engine.storage.jsonl import dumps, loads

VOCABULARY = ("model", "added_tokens")
"""Keys of `tokenizer.json` that contain the tokens themselves."""
TEMPLATE = "chat_template"
VOLATILE_KEYS = frozenset({"started", "seconds", "free_bytes", "error"})
"""Keys whose values change from start to start."""
PERSONAL_KEYS = frozenset({"account", "role", "source", "host"})
"""Keys that reveal who was logged in, from where, and on which machine."""
IRRELEVANT_OPTIONS = ("push_to_hub", "push_public", "theme", "mouse")
"""Options that do not affect what is packed."""


def anonymise(run: Run, name: str, data: bytes, private: Scrubber) -> bytes:
    """The bytes to pack for the file `name`. Raises DamagedState for invalid JSON."""
    return _cleaner(name)(run, name, data, private)


def json_bytes(data: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode(
        "utf-8", errors="backslashreplace"
    )


_Cleaner = Callable[[Run, str, bytes, Scrubber], bytes]


def _cleaner(name: str) -> _Cleaner:
    special: Mapping[str, _Cleaner] = {
        layout.RUN_JSON: _run_json,
        ADAPTER_CONFIG: _adapter_config,
        TOKENIZER: _tokenizer,
        TOKENIZER_CONFIG: _tokenizer,
        MODEL_CARD: _text,
        CHAT_TEMPLATE: _text,
    }
    file = PurePosixPath(name)
    if found := special.get(name) or (special.get(file.name) if name.startswith(layout.ADAPTER_DIR) else None):
        return found
    if name.startswith(layout.ADAPTER_DIR):
        return lambda run, name, data, private: data  # weights and vocabulary
    return _lines if file.suffix == ".jsonl" else _report


# -- kinds of files -----------------------------------------------------------------------------------------------------


def _run_json(run: Run, name: str, data: bytes, private: Scrubber) -> bytes:
    return json_bytes(map_strings(packed_record(_json(run, name, data)), private.scrub_records))


def _adapter_config(run: Run, name: str, data: bytes, private: Scrubber) -> bytes:
    """Name the base model so that others can find it: repository and commit, or the bare name of a local folder."""
    settings = map_strings(_json(run, name, data), private.scrub_settings)
    base = run.manifest.get("config", {}).get("base_model_id")
    if base:
        public_name = local_path(base).name if is_local(base) else base
        commit = None if is_local(base) else run.result("adapter").get("base_model_commit")
        settings |= {"base_model_name_or_path": public_name, "revision": commit}
    return json_bytes(settings)


def _tokenizer(run: Run, name: str, data: bytes, private: Scrubber) -> bytes:
    is_vocabulary = name.endswith(TOKENIZER)
    if is_vocabulary and not private.found_in(_decoded(data)):
        return data  # several megabytes, written by the tokenizer's library
    found = _json(run, name, data)
    clean = map_strings(found, private.scrub_settings, but=VOCABULARY if is_vocabulary else (TEMPLATE,))
    if TEMPLATE in clean:  # a Jinja program, where a slash may mean anything
        clean[TEMPLATE] = map_strings(clean[TEMPLATE], private.scrub_text)
    return data if clean == found else json_bytes(clean)


def _report(run: Run, name: str, data: bytes, private: Scrubber) -> bytes:
    """JSON with strings written by people and models."""
    if not private.found_in(_decoded(data)):
        return data
    return json_bytes(map_strings(_json(run, name, data), private.scrub_text))


def _lines(run: Run, name: str, data: bytes, private: Scrubber) -> bytes:
    if not private.found_in(_decoded(data)):
        return data
    return b"\n".join(_line(line, private) for line in data.split(b"\n"))


def _line(line: bytes, private: Scrubber) -> bytes:
    if not private.found_in(_decoded(line)):
        return line
    try:
        return dumps(map_strings(loads(line), private.scrub_text)).encode("ascii")
    except ValueError:  # a torn line, which readers skip because it is not JSON
        return _encoded(private.scrub_text(_decoded(line)))


def _text(run: Run, name: str, data: bytes, private: Scrubber) -> bytes:
    clean = private.scrub_records if name.endswith(MODEL_CARD) else private.scrub_text
    return _encoded(clean(_decoded(data)))


def _json(run: Run, name: str, data: bytes) -> dict[str, Any]:
    try:
        found = loads(data)
    except ValueError as error:
        raise DamagedState(
            f"{run / name} is not valid JSON.", str(error), "Redo the stage that writes it, with --from."
        ) from error
    if not isinstance(found, dict):
        raise DamagedState(f"{run / name} is not a JSON object.", "", "Redo the stage that writes it, with --from.")
    return found


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")


# -- the record of the run ----------------------------------------------------------------------------------------------


def packed_record(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """`run.json` without times, free memory and disk, the user, and pushes of the archive, so that two archives of one run are
    identical.
    """
    stages = manifest.get("stages", {})
    config = {key: value for key, value in manifest.get("config", {}).items() if key not in IRRELEVANT_OPTIONS}
    earlier = STAGES[:-1]  # without packaging itself, which ends after the archive is made
    packed = {stage: _packed_stage(stages[stage]) for stage in earlier if stage in stages}
    return {**{key: value for key, value in manifest.items() if key != "error"}, "config": config, "stages": packed}


def _packed_stage(facts: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in sorted(facts.items()) if key not in VOLATILE_KEYS}
    if facts.get("fingerprint") is None:
        kept.pop("summary", None)  # such a stage runs at every start, and its summary varies
    if isinstance(facts.get("result"), dict):
        kept["result"] = _without(facts["result"], VOLATILE_KEYS | PERSONAL_KEYS)
    return kept


def _without(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return [_without(inner, keys) for inner in value] if isinstance(value, list) else value
